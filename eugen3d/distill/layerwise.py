"""Replace the layers of a field one after the other, each solved on what the student before it really outputs.

The targets of layer i are the teacher's outputs, its inputs are the student's: a layer makes up for the errors of
those before it as far as it can. The dense layers and heads that come after a replaced one make up for them too: a
least-squares correction of their weights, which costs nothing at inference. What gradients can add comes after that:
steps on one layer at a time (`eugen3d.distill.fit`), and end-to-end refinement (`eugen3d.distill.refine`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill.moments import Moments
from eugen3d.distill.problem import LayeredField, LayerMoments, LayerProblem
from eugen3d.distill.rays import Rows
from eugen3d.distill.solve import pick_columns, reduced_rank_regression, relative_residual, solve_readout
from eugen3d.layers import EUGenConfig, EUGenLinear, make_activation

Start = Literal["picked", "orthogonal", "gaussian", "rademacher"]

REFIT_RIDGE = 1e-4
HELD_OUT = 8  # one row in so many is kept for the relative error


@dataclass(frozen=True)
class LayerwiseConfig:
    """How every layer is found."""

    layer: EUGenConfig = field(default_factory=lambda: EUGenConfig(use_norm=False))
    """The layer that stands for a dense layer and its ReLU."""
    start: Start = "picked"
    """Where projections come from when phi is not the identity: the teacher's own neurons, or a random draw."""

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(f"projection {self.start!r} is unknown, expected one of {', '.join(get_args(Start))}")
        if self.layer.projection_rank is not None:
            raise ValueError(
                f"projection_rank is {self.layer.projection_rank}, expected None: whole projections are fitted"
            )


@dataclass
class LayerReport:
    """How one layer was replaced."""

    index: int
    rows: int
    relative_error: float
    """‖student's output − teacher's‖ / ‖teacher's‖ of this layer, on rows that no solve saw."""


def rows_needed(config: EUGenConfig, in_features: int) -> int:
    """Rows below which a layer's closed form is under-determined, four a unknown of one output."""
    return 4 * (max(config.order * config.num_features, in_features) + 1) * HELD_OUT // (HELD_OUT - 1)


@torch.no_grad()
def replace_layer(
    teacher: LayeredField,
    student: LayeredField,
    index: int,
    rows: Rows,
    config: LayerwiseConfig,
    generator: torch.Generator,
) -> None:
    """Replace trunk layer `index` of the student, in place; the layers before it are final, those after are not used.

    Args:
        teacher: the trained field, dense.
        student: the same field with its earlier layers already replaced.

    Raises:
        ValueError: when the rows are too few for the layer, or hold values that are not finite.
    """
    dense = _dense_of(teacher.trunk[index], f"layer {index}")
    needed = rows_needed(config.layer, dense.in_features)
    if len(rows) < needed:
        raise ValueError(f"{len(rows)} rows for layer {index} with m = {config.layer.num_features}, expected {needed}")
    problem = LayerProblem(teacher, student, index, training_rows(rows), dense)
    moments = problem.moments()
    if config.layer.phi == "identity":
        block = _reduced_rank_block(problem, dense, moments, config.layer)
    else:
        block = nn.Sequential(_start_layer(problem, dense, moments, config, generator))
    block = block.to(dense.weight.device, dense.weight.dtype)
    if config.layer.phi != "identity" or config.layer.order > 1:
        _solve_block(problem, block)
    student.trunk[index] = block.train(student.trunk[index].training)


@torch.no_grad()
def report_layer(teacher: LayeredField, student: LayeredField, index: int, rows: Rows) -> LayerReport:
    """How the student's trunk layer `index` stands for the teacher's."""
    dense = _dense_of(teacher.trunk[index], f"layer {index}")
    problem = LayerProblem(teacher, student, index, rows[: _held_out(rows)], dense)
    return LayerReport(index, len(rows), problem.relative_error(student.trunk[index]))


def training_rows(rows: Rows) -> Rows:
    """The rows that solves and fits may see; the others are for the errors that are reported."""
    return rows[_held_out(rows) :]


def _held_out(rows: Rows) -> int:
    return len(rows) // HELD_OUT


@torch.no_grad()
def refit_dense(teacher: LayeredField, student: LayeredField, name: str, rows: Rows) -> None:
    """Correct a dense layer or head of the student for what its replaced predecessors do, in place.

    The correction ΔW, Δb is the ridge regression of what is missing, z_teacher − W x_student, on x_student: where the
    student's input tells nothing of it, the teacher's weights stay.

    Args:
        name: "trunk.3", or a head's name.
    """
    head = student.heads.get(name)
    index = len(student.trunk) if head is not None else int(name.removeprefix("trunk."))
    dense = _dense_of(student.trunk[index] if head is None else head, name)
    target = _dense_of(teacher.trunk[index] if head is None else teacher.heads[name], name)
    moments = Moments()
    for x, z in LayerProblem(teacher, student, index, rows, target).chunks():
        moments.update(x, z - dense(x))
    weight, bias = solve_readout(moments.covariances(), REFIT_RIDGE)
    dense.weight.add_(weight)
    if dense.bias is not None:
        dense.bias.add_(bias)


def _reduced_rank_block(
    problem: LayerProblem, dense: nn.Linear, moments: LayerMoments, config: EUGenConfig
) -> nn.Sequential:
    """Φ = identity: the best A G x + b for the pre-activation, and the ReLU outside (activation-aware low rank).

    Errors of the pre-activation are weighed as the next layer sees them: through its matrix W, and only where the
    neurons are active, so by the metric M = WᵀW ∘ P(active together).
    """
    layer = EUGenLinear.from_config(config, dense.in_features, dense.out_features)
    rank = min(config.num_features, dense.in_features, dense.out_features)
    readers = problem.readers(moments)
    metric = readers.T @ readers * moments.active
    readout, projection, bias = reduced_rank_regression(moments.linear, rank, metric=metric)
    layer.features.projection.weight[:rank] = projection.to(layer.features.projection.weight)
    layer.readout.weight.zero_()
    layer.readout.weight[:, :rank] = readout.to(layer.readout.weight)
    if layer.readout.bias is None:
        raise ValueError("the layer has no bias, expected one: it stands for a dense layer with a bias")
    layer.readout.bias.copy_(bias)
    return nn.Sequential(layer, make_activation("relu"))


def _start_layer(
    problem: LayerProblem,
    dense: nn.Linear,
    moments: LayerMoments,
    config: LayerwiseConfig,
    generator: torch.Generator,
) -> EUGenLinear:
    """A layer whose projections are the teacher's own neurons that span the others best, or a random draw."""
    settings = config.layer
    layer = EUGenLinear.from_config(settings, dense.in_features, dense.out_features, generator=generator)
    projection = layer.features.projection
    if config.start == "picked":
        loudness = torch.linalg.vector_norm(problem.readers(moments), dim=0)  # how strongly each neuron is read
        picked = pick_columns(moments.outputs.xx * torch.outer(loudness, loudness), projection.out_features).cpu()
        projection.weight[: len(picked)] = dense.weight[picked].to(projection.weight)
        if projection.bias is not None and dense.bias is not None:
            projection.bias[: len(picked)] = dense.bias[picked].to(projection.bias)
    else:  # unit-variance projections of standardised inputs, in the input's own units
        deviation = moments.linear.xx.diagonal().clamp(min=0).sqrt()
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
        projection.weight.mul_(scale.to(projection.weight))
        if projection.bias is not None:
            projection.bias.copy_(-(projection.weight.double().cpu() @ moments.linear.mean_x.cpu()))
    return layer


def _solve_block(problem: LayerProblem, block: nn.Sequential) -> None:
    """Set the readout to the ridge regression of the features that the student's inputs give."""
    layer, target = block[0], _target_of(block)
    assert isinstance(layer, EUGenLinear)
    moments = Moments()
    for x, z in problem.chunks():
        moments.update(layer.features(x), target(z))
    covariances = moments.covariances()
    weight, bias = solve_readout(covariances)
    before = layer.readout.weight.double(), layer.readout.bias.double()
    if relative_residual(covariances, weight, bias) <= relative_residual(covariances, *before):
        layer.readout.weight.copy_(weight)
        layer.readout.bias.copy_(bias)


def _first_of(chain: nn.Module) -> nn.Module:
    """The layer of a trunk layer or head, without the activation that may follow it."""
    return chain[0] if isinstance(chain, nn.Sequential) else chain


def _dense_of(chain: nn.Module, name: str) -> nn.Linear:
    layer = _first_of(chain)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"{name} is a {type(layer).__name__}, expected a dense layer")
    return layer


def _target_of(block: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """What the layer itself has to give: the pre-activation where the ReLU stands outside, the output otherwise."""
    return F.relu if len(block) == 1 else nn.Identity()


def chosen_layers(field: LayeredField, layers: Sequence[str] | None) -> tuple[int, ...]:
    """Indices of the trunk layers that `--layers` names.

    Args:
        layers: indices ("3") or names ("trunk.3"), or None for every layer whose input is as wide as its output: the
            first layer and the one after the skip connection see the encoded position itself and stay dense.

    Raises:
        ValueError: naming what did not match and what there is.
    """
    firsts = {i: _first_of(block) for i, block in enumerate(field.trunk)}
    dense = {i: layer for i, layer in firsts.items() if isinstance(layer, nn.Linear)}
    if layers is None:
        return tuple(i for i, linear in dense.items() if linear.in_features == linear.out_features)
    chosen = []
    for name in layers:
        index = name.removeprefix("trunk.")
        if not index.isdigit() or int(index) not in dense:
            names = ", ".join(f"trunk.{i}" for i in dense)
            raise ValueError(f"{name!r} matches none of the teacher's dense layers, expected of {names}")
        chosen.append(int(index))
    return tuple(sorted(set(chosen)))
