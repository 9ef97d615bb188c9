"""Distillation: from a teacher's rays to a student of EUGen layers, in closed form first, by gradients where asked."""

from eugen3d.distill.distiller import Distiller, LayerTask
from eugen3d.distill.fit import FieldLoss, FitConfig, Loss, fit_layer
from eugen3d.distill.layerwise import (
    LayerReport,
    LayerwiseConfig,
    Start,
    refit_dense,
    replace_layer,
    report_layer,
    rows_needed,
)
from eugen3d.distill.network import Batch, Network, Reader
from eugen3d.distill.problem import LayerProblem
from eugen3d.distill.rays import HELD_OUT, RaySamples, Rows, draw_rows, join_rows
from eugen3d.distill.refine import RefineConfig, RefineState, refine
from eugen3d.distill.solve import Conditioning

__all__ = [
    "HELD_OUT",
    "Batch",
    "Conditioning",
    "Distiller",
    "FieldLoss",
    "FitConfig",
    "LayerProblem",
    "LayerReport",
    "LayerTask",
    "LayerwiseConfig",
    "Loss",
    "Network",
    "RaySamples",
    "Reader",
    "RefineConfig",
    "RefineState",
    "Rows",
    "Start",
    "draw_rows",
    "fit_layer",
    "join_rows",
    "refine",
    "refit_dense",
    "replace_layer",
    "report_layer",
    "rows_needed",
]
