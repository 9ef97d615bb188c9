"""Distillation: from a teacher's rays to a student of EUGen layers, in closed form first, by gradients where asked."""

from eugen3d.distill.fit import FitConfig
from eugen3d.distill.layerwise import (
    LayerReport,
    LayerwiseConfig,
    chosen_layers,
    refit_dense,
    replace_layer,
    rows_needed,
    solve_order,
)
from eugen3d.distill.rays import RaySamples, Rows, draw_rows, shuffle_rows
from eugen3d.distill.refine import RefineConfig, RefineState, refine

__all__ = [
    "FitConfig",
    "LayerReport",
    "LayerwiseConfig",
    "RaySamples",
    "RefineConfig",
    "RefineState",
    "Rows",
    "chosen_layers",
    "draw_rows",
    "refine",
    "refit_dense",
    "replace_layer",
    "rows_needed",
    "shuffle_rows",
    "solve_order",
]
