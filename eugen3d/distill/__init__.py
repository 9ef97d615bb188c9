"""Distillation: from a teacher's rays to a student of EUGen layers, in closed form first, by gradients where asked."""

from eugen3d.distill.distiller import Distiller, LayerTask
from eugen3d.distill.examples import Examples, OutputLoss
from eugen3d.distill.fit import FieldLoss, FitConfig, FitTarget, Loss, fit_layer, fit_network
from eugen3d.distill.folded_cost import FoldedCost, FoldedWidths, layer_options
from eugen3d.distill.layer_loss import LayerLoss
from eugen3d.distill.layerwise import (
    LayerReport,
    LayerwiseConfig,
    Start,
    refit_dense,
    replace_layer,
    report_layer,
    rows_needed,
)
from eugen3d.distill.module import DistillConfig, DistillReport, distill
from eugen3d.distill.network import Batch, Network, Reader
from eugen3d.distill.plan import Part, Plan, Planned, Planner, pareto
from eugen3d.distill.problem import LayerProblem
from eugen3d.distill.rays import HELD_OUT, RaySamples, Rows, draw_rows, join_rows
from eugen3d.distill.recorded import RecordedNetwork
from eugen3d.distill.refine import RefineConfig, RefineState, refine
from eugen3d.distill.sdf_loss import SdfLoss
from eugen3d.distill.sensitivity import NestedSolutions, layer_losses
from eugen3d.distill.solve import Conditioning
from eugen3d.distill.uniform import UNIFORM_KINDS, UniformKind, largest_uniform, uniform_plan
from eugen3d.distill.value_loss import ValueLoss

__all__ = [
    "HELD_OUT",
    "UNIFORM_KINDS",
    "Batch",
    "Conditioning",
    "DistillConfig",
    "DistillReport",
    "Distiller",
    "Examples",
    "FieldLoss",
    "FitConfig",
    "FitTarget",
    "FoldedCost",
    "FoldedWidths",
    "LayerLoss",
    "LayerProblem",
    "LayerReport",
    "LayerTask",
    "LayerwiseConfig",
    "Loss",
    "NestedSolutions",
    "Network",
    "OutputLoss",
    "Part",
    "Plan",
    "Planned",
    "Planner",
    "RaySamples",
    "Reader",
    "RecordedNetwork",
    "RefineConfig",
    "RefineState",
    "Rows",
    "SdfLoss",
    "Start",
    "UniformKind",
    "ValueLoss",
    "distill",
    "draw_rows",
    "fit_layer",
    "fit_network",
    "join_rows",
    "largest_uniform",
    "layer_losses",
    "layer_options",
    "pareto",
    "refine",
    "refit_dense",
    "replace_layer",
    "report_layer",
    "rows_needed",
    "uniform_plan",
]
