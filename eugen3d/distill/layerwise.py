"""Replace the layers of a network one after the other, each solved on what the student before it really outputs.

The targets of a layer are the teacher's outputs, its inputs are the student's: a layer makes up for the errors of
those before it as far as it can. The dense layers that come after a replaced one make up for them too: a
least-squares correction of their weights, which costs nothing at inference. What gradients can add comes after that:
steps on one layer at a time (`eugen3d.distill.fit`), and end-to-end refinement (`eugen3d.distill.refine`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eugen3d.distill.moments import Covariances
from eugen3d.distill.network import Batch, Network
from eugen3d.distill.problem import LayerMoments, LayerProblem, Pairs
from eugen3d.distill.solve import (
    Conditioning,
    choose_ridge,
    pick_columns,
    reduced_rank_regression,
    relative_residual,
    solve_readout,
)
from eugen3d.layers import EUGenConfig, EUGenLinear, KindConfig, LowRankConfig, LowRankLinear, SNNKConfig, SNNKLinear
from eugen3d.layers.features import Projection
from eugen3d.training.distributed import broadcast_module

Start = Literal["picked", "largest", "orthogonal", "gaussian", "rademacher"]
FeatureLayer = EUGenLinear | SNNKLinear


@dataclass(frozen=True)
class LayerwiseConfig:
    """How a layer is found."""

    layer: KindConfig = field(default_factory=lambda: EUGenConfig(use_norm=False))
    """The layer that stands for a dense layer and, where it has one inside, its activation: EUGen, low rank or SNNK."""
    start: Start = "picked"
    """Where an EUGen layer's projections come from when phi is not the identity: the teacher's own neurons that tell
    most of what is read from all of them or those with the largest weights, or a random draw."""

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(f"projection {self.start!r} is unknown, expected one of {', '.join(get_args(Start))}")
        if not isinstance(self.layer, EUGenConfig | LowRankConfig | SNNKConfig):
            raise ValueError(f"{type(self.layer).__name__} has no closed form, expected EUGen, low rank or SNNK")
        if isinstance(self.layer, EUGenConfig) and self.layer.projection_rank is not None:
            raise ValueError(
                f"projection_rank is {self.layer.projection_rank}, expected None: whole projections are fitted"
            )
        if not getattr(self.layer, "bias", True):
            raise ValueError("the layer has no bias, expected one: it stands for a dense layer with a bias")


@dataclass
class LayerReport:
    """How one layer was replaced."""

    name: str
    relative_error: float
    """‖student's output − teacher's‖ / ‖teacher's‖ of this layer, on rows that chose the ridge of its closed form among
    six and were in no solve."""


def rows_needed(config: KindConfig, in_features: int) -> int:
    """Rows below which a layer's closed form is under-determined, four an unknown of one output."""
    return 4 * (max(config.inner_width, in_features) + 1)


@torch.no_grad()
def replace_layer(
    teacher: Network,
    student: Network,
    name: str,
    batches: Iterable[Batch],
    config: LayerwiseConfig,
    generator: torch.Generator,
    held_out: Iterable[Batch] | None = None,
) -> Conditioning:
    """Replace a layer of the student, in place; the layers before it are final, those after are not used.

    Over several processes each has batches of its own, and all of them get the same layer.

    Args:
        teacher: the trained network, dense there.
        student: the same network with its earlier layers already replaced.
        batches: what the layer is solved on.
        held_out: what the ridge is chosen on; without any it is `RIDGE`.

    Returns:
        The ridge of the last regression solved, and how well its inputs determine it.

    Raises:
        ValueError: when the rows are too few for the layer, or hold values that are not finite.
    """
    problem = LayerProblem(teacher, student, name, batches)
    judge = None if held_out is None else LayerProblem(teacher, student, name, held_out)
    moments = problem.moments()
    if moments.num_rows < (needed := rows_needed(config.layer, problem.dense.in_features)):
        width = config.layer.inner_width
        raise ValueError(f"{moments.num_rows} rows for layer {name} with m = {width}, expected {needed}")
    layer, conditioning = _closed_form(problem, judge, moments, config, generator)
    broadcast_module(layer)  # sums are the same in all processes; what a processor solves from them need not be
    student.place(name, layer.to(problem.dense.weight), config.layer)
    return conditioning


@torch.no_grad()
def report_layer(teacher: Network, student: Network, name: str, batches: Iterable[Batch]) -> LayerReport:
    """How the student's layer of that name stands for the teacher's."""
    return LayerReport(name, LayerProblem(teacher, student, name, batches).relative_error(student.block(name)))


@torch.no_grad()
def refit_dense(
    teacher: Network,
    student: Network,
    name: str,
    batches: Iterable[Batch],
    held_out: Iterable[Batch] | None = None,
) -> None:
    """Correct a dense layer of the student for what its replaced predecessors do, in place.

    The correction ΔW, Δb is the ridge regression of what is missing, z_teacher − W x_student, on x_student: where the
    student's input tells nothing of it, the teacher's weights stay.
    """
    dense = student.dense(name)
    problem = LayerProblem(teacher, student, name, batches)
    judge = None if held_out is None else LayerProblem(teacher, student, name, held_out)
    weight, bias, _ = _ridge(*_moments(problem, judge, lambda x, z: (x, z - dense(x))))
    dense.weight.add_(weight)
    if dense.bias is not None:
        dense.bias.add_(bias)
    broadcast_module(dense)


def _closed_form(
    problem: LayerProblem,
    judge: LayerProblem | None,
    moments: LayerMoments,
    config: LayerwiseConfig,
    generator: torch.Generator,
) -> tuple[nn.Module, Conditioning]:
    """The layer that stands for the teacher's, and how well it was determined."""
    settings, dense = config.layer, problem.dense
    like = {"device": dense.weight.device, "dtype": dense.weight.dtype, "generator": generator}
    if isinstance(settings, LowRankConfig):
        low_rank = LowRankLinear.from_config(settings, dense.in_features, dense.out_features, **like)
        return low_rank, _reduce_rank(problem, judge, moments, low_rank.down, low_rank.up, settings.rank)
    if isinstance(settings, SNNKConfig):
        snnk = SNNKLinear.from_config(settings, dense.in_features, dense.out_features, **like)
        return snnk, _solve_readout(problem, judge, snnk)
    assert isinstance(settings, EUGenConfig)
    if config.start in get_args(Projection):
        settings = replace(settings, projection=config.start)
    layer = EUGenLinear.from_config(settings, dense.in_features, dense.out_features, **like)
    if settings.phi != "identity":
        _start_projections(problem, moments, layer, config.start)
        return layer, _solve_readout(problem, judge, layer)
    projection, rank = layer.features.projection, settings.num_features
    conditioning = _reduce_rank(problem, judge, moments, projection, layer.readout, rank)
    return layer, conditioning if settings.order == 1 else _solve_readout(problem, judge, layer)


def _reduce_rank(
    problem: LayerProblem,
    judge: LayerProblem | None,
    moments: LayerMoments,
    down: nn.Linear,
    up: nn.Linear,
    rank: int,
) -> Conditioning:
    """The best A G x + b for the pre-activation, with the activation outside (activation-aware low rank).

    Errors of the pre-activation are weighed as the next layer sees them: through its matrix W, and through the slopes
    of the activation, by the metric M = WᵀW ∘ E[f'f'ᵀ] (with ReLU, the chance that two neurons are active together).
    """
    rank = min(rank, *problem.dense.weight.shape)
    metric = reader_metric(problem, moments)

    def solve(ridge: float) -> tuple[Tensor, Tensor]:
        readout, projection, bias = reduced_rank_regression(moments.linear, rank, ridge, metric)
        return readout @ projection, bias

    held_out = None if judge is None else judge.regression(lambda x, z: (x, z))
    conditioning = choose_ridge(moments.linear, held_out, solve, metric)
    readout, projection, bias = reduced_rank_regression(moments.linear, rank, conditioning.ridge, metric)
    down.weight[:rank] = projection.to(down.weight)
    up.weight.zero_()
    up.weight[:, :rank] = readout.to(up.weight)
    if down.bias is not None:
        down.bias.zero_()
    up.bias.copy_(bias)
    return conditioning


def reader_metric(problem: LayerProblem, moments: LayerMoments) -> Tensor:
    """M = WᵀW ∘ E[f'f'ᵀ], W being what reads the layer: how errors of its pre-activations are weighed."""
    readers = problem.readers(moments)
    return readers.T @ readers * moments.together


def _start_projections(problem: LayerProblem, moments: LayerMoments, layer: EUGenLinear, start: Start) -> None:
    """Set the projections to some of the teacher's own neurons, or scale the random draw to the inputs."""
    projection, dense = layer.features.projection, problem.dense
    if start in ("picked", "largest"):
        picked = picked_neurons(problem, moments, projection.out_features, start)
        projection.weight[: len(picked)] = dense.weight[picked].to(projection.weight)
        if projection.bias is not None and dense.bias is not None:
            projection.bias[: len(picked)] = dense.bias[picked].to(projection.bias)
    else:  # unit-variance projections of standardised inputs, in the input's own units
        deviation = moments.linear.xx.diagonal().clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
        projection.weight.mul_(scale.to(projection.weight))
        if projection.bias is not None:
            projection.bias.copy_(-(projection.weight.double() @ moments.linear.mean_x))


def picked_neurons(problem: LayerProblem, moments: LayerMoments, count: int, start: Start) -> Tensor:
    """Numbers of the neurons that tell most of what is read from all of them, or of the largest weights."""
    if start == "largest":
        size = torch.linalg.vector_norm(problem.dense.weight, dim=1)
        return size.argsort(descending=True, stable=True)[:count]
    return pick_columns(moments.outputs.xx, count, problem.readers(moments)).to(problem.dense.weight.device)


def _solve_readout(problem: LayerProblem, judge: LayerProblem | None, layer: FeatureLayer) -> Conditioning:
    """Set the readout to the ridge regression of the features that the student's inputs give.

    The target is the output where the layer has an activation inside, and the pre-activation where it stands outside.
    """
    target = problem.activation if layer.config.includes_activation else nn.Identity()
    moments, held_out = _moments(problem, judge, lambda x, z: (layer.features(x), target(z)))
    weight, bias, conditioning = _ridge(moments, held_out)
    before = layer.readout.weight.double(), layer.readout.bias.double()
    if relative_residual(moments, weight, bias) <= relative_residual(moments, *before):
        layer.readout.weight.copy_(weight)
        layer.readout.bias.copy_(bias)
    return conditioning


def _moments(problem: LayerProblem, judge: LayerProblem | None, pairs: Pairs) -> tuple[Covariances, Covariances | None]:
    """Of the rows to solve on, and of those to choose the ridge on."""
    return problem.regression(pairs), None if judge is None else judge.regression(pairs)


def _ridge(moments: Covariances, held_out: Covariances | None) -> tuple[Tensor, Tensor, Conditioning]:
    """W and b of the ridge regression whose ridge suits the held-out rows best."""
    conditioning = choose_ridge(moments, held_out, lambda ridge: solve_readout(moments, ridge))
    return *solve_readout(moments, conditioning.ridge), conditioning
