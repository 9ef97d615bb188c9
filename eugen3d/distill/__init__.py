"""Distillation: from a teacher's rays to a student of EUGen layers, in closed form first, by gradients where asked."""

from eugen3d.distill.field import FieldDistiller, LayerTask
from eugen3d.distill.fit import FieldLoss, FitConfig, fit_layer
from eugen3d.distill.layerwise import (
    LayerReport,
    LayerwiseConfig,
    chosen_layers,
    refit_dense,
    replace_layer,
    report_layer,
    rows_needed,
    training_rows,
)
from eugen3d.distill.rays import RaySamples, Rows, draw_rows, shuffle_rows
from eugen3d.distill.refine import RefineConfig, RefineState, refine

__all__ = [
    "FieldDistiller",
    "FieldLoss",
    "FitConfig",
    "LayerReport",
    "LayerTask",
    "LayerwiseConfig",
    "RaySamples",
    "RefineConfig",
    "RefineState",
    "Rows",
    "chosen_layers",
    "draw_rows",
    "fit_layer",
    "refine",
    "refit_dense",
    "replace_layer",
    "report_layer",
    "rows_needed",
    "shuffle_rows",
    "training_rows",
]
