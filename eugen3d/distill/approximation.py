"""How well a layer of some kind can stand for a trained one: its relative error on rows that no fit saw, and its cost.

Symbols: x (n, d) inputs, z (n, l) pre-activations of the trained layer, y = f(z) its outputs. All kinds see [x; ‖x‖]
standardised column by column, the norm only where it is asked for: an affine map of what they would see, which goes
into their projections. So a fixed draw weighs the norm as it does every input. SNNK's projections have no constant, so
its inputs are scaled, shrunk along their mean and not centred; its draw is that of the inputs as they are.

- closed form: projections as drawn, or the trained layer's own neurons that span the others best ("picked"), and the
  readout by ridge regression of y.
- Φ = identity, the activation outside: projections and readout by reduced-rank regression of z ("regression"), each
  output weighed by E[f'(z)²], what y makes of its error to first order. Low rank is the same with no constant in its
  projections, which is one too many there.
- trained: Adam on projections and readout from there, on ‖ŷ − y‖², the same number of steps for all kinds; then the
  ridge regression again where the activation is inside; the better on the rows that were fitted stays.
- narrow is the pair that order 1 with Φ = ReLU and no norm is, too, trained from He's start; without a closed form to
  start from it takes more steps, five times as many.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eugen3d.distill.draws import Draws, TwoMaps
from eugen3d.distill.moments import Covariances, Moments
from eugen3d.distill.solve import pick_columns, reduced_rank_regression, solve_readout
from eugen3d.layers import (
    EUGenConfig,
    EUGenLinear,
    KindConfig,
    LowRankConfig,
    LowRankLinear,
    SNNKConfig,
    SNNKLinear,
    fold,
    make_layer,
    num_products,
)
from eugen3d.layers.features import Phi, Projection, input_norm

CandidateKind = Literal["eugen", "low-rank", "snnk", "narrow"]
Start = Literal["orthogonal", "gaussian", "rademacher", "picked"]
"""Where projections come from: a draw, or the trained layer's own neurons."""
Source = Literal[Start, "regression"]
"""The same, or reduced-rank regression."""
Setting = Literal["lone", "chain"]

NARROW_STEPS = 5
"""Steps of a narrow pair for each of a layer that starts from its closed form."""


@dataclass(frozen=True)
class Activations:
    """Rows of a trained layer."""

    inputs: Tensor
    """x, (n, d)."""
    pre_activations: Tensor
    """z, (n, l)."""
    activation: Callable[[Tensor], Tensor]
    """f."""
    phi: Phi = "relu"
    """The Φ that f is: f(z) ∝ Φ(scale · z)."""
    scale: float = 1.0

    def split(self, count: int) -> tuple["Activations", "Activations"]:
        """The first `count` rows and the others."""
        return tuple(
            replace(self, inputs=self.inputs[part], pre_activations=self.pre_activations[part])
            for part in (slice(count), slice(count, None))
        )  # pyright: ignore[reportReturnType]

    @cached_property
    def outputs(self) -> Tensor:
        """y, (n, l)."""
        return self.activation(self.pre_activations)


@dataclass(frozen=True)
class Candidate:
    """What stands for the trained layer."""

    kind: CandidateKind
    num_features: int
    """m, or the rank."""
    order: int = 1
    projection: Source | None = None
    """Of EUGen, SNNK and narrow layers; "regression" goes with Φ = identity, order 1 and no norm."""
    trained: bool = False
    phi: Phi = "identity"
    use_norm: bool = False

    @property
    def config(self) -> KindConfig:
        """The layer that it is; a narrow pair is one of order 1, by its cost."""
        if self.kind == "low-rank":
            return LowRankConfig(self.num_features)
        if self.kind == "snnk":
            return SNNKConfig(self.num_features, train_projections=self.trained)
        drawn = self.projection if self.projection in get_args(Projection) else "gaussian"
        return EUGenConfig(self.num_features, self.order, self.phi, self.use_norm, drawn)  # pyright: ignore[reportArgumentType]

    @property
    def is_regression(self) -> bool:
        """Whether reduced-rank regression gives it."""
        return self.kind == "low-rank" or self.projection == "regression"

    @property
    def is_random(self) -> bool:
        """Whether its error depends on a seed: on the draw, or on the rows that the gradient steps see."""
        return self.trained or not (self.is_regression or self.projection == "picked")


class ApproximationProblem:
    """One trained layer, with the rows that candidates are fitted on and those that they are judged on."""

    def __init__(self, train: Activations, held_out: Activations) -> None:
        extended = _extend(train.inputs)
        self.mean, deviation = extended.mean(dim=0), extended.std(dim=0)
        self.varies = deviation > 1e-6 * deviation.max()
        self.scale = torch.where(self.varies, 1 / deviation, 1.0)
        self.train, self.held_out = train, held_out
        offset = self.mean[:-1] * self.scale[:-1]
        self.offset_norm = torch.linalg.vector_norm(offset)
        self.direction = offset / self.offset_norm.clamp(min=1e-30)

    def relative_errors(self, candidate: Candidate, seeds: Sequence[int] = (0,), steps: int = 200) -> list[float]:
        """‖ŷ − y‖ / ‖y‖ on the held-out rows, for every seed.

        Args:
            steps: Adam's, for what is trained from its closed form.
        """
        fitted = self._fit(candidate, seeds, steps)
        return fitted.relative_errors(self._seen(candidate, self.held_out), self.held_out.outputs).tolist()

    def _fit(self, candidate: Candidate, seeds: Sequence[int], steps: int) -> Draws:
        inside = candidate.config.includes_activation
        x, y = self._seen(candidate, self.train), self.train.outputs
        given = y if inside else self.train.pre_activations  # what the layer itself has to give
        unit = float(given.square().mean().sqrt())
        layers = [self._layer(candidate, x.shape[1], torch.Generator().manual_seed(seed)) for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # the same rows for every kind
        draws = Draws(layers, nn.Identity() if inside else self.train.activation)
        if candidate.kind == "narrow":
            draws.weight *= unit
            draws.descend(x, y, unit, steps * NARROW_STEPS, generators)
            draws.solve(x, y)
            return draws
        if not candidate.is_regression:
            draws.solve(x, given)
        if candidate.trained:
            before, errors = draws.state(), draws.relative_errors(x, y)
            draws.descend(x, y, unit, steps, generators)
            if inside:
                draws.solve(x, y)
            draws.keep(before, ~(draws.relative_errors(x, y) < errors))
        return draws

    @torch.no_grad()
    def _layer(self, candidate: Candidate, width: int, generator: torch.Generator) -> TwoMaps:
        """A layer with the projections that the candidate starts from."""
        config, outputs = candidate.config, self.train.pre_activations.shape[1]
        if isinstance(config, LowRankConfig):
            layer = LowRankLinear.from_config(config, width, outputs, generator=generator)
            self._set_by_regression(layer.down, layer.up)
        elif isinstance(config, SNNKConfig):
            layer = SNNKLinear.from_config(config, width, outputs, generator=generator)
            weight = layer.features.projection.weight.div_(self.scale[:-1])
            weight.add_(torch.outer(weight @ self.direction, self.direction), alpha=1 / self._shrinkage - 1)
        else:
            assert isinstance(config, EUGenConfig)  # the norm is a column of the input here
            layer = EUGenLinear.from_config(replace(config, use_norm=False), width, outputs, generator=generator)
            projection = layer.features.projection
            if candidate.kind == "narrow":
                projection.weight.mul_(math.sqrt(2))
            elif candidate.projection == "regression":
                self._set_by_regression(projection, layer.readout)
                projection.bias.requires_grad_(False)  # the output's bias can do all that it could
            elif candidate.projection == "picked":
                weight, bias = self._dense
                picked = pick_columns(self._outputs_covariance, candidate.num_features)
                projection.weight[: len(picked)] = (self.train.scale * weight[picked]).float()
                projection.bias[: len(picked)] = (self.train.scale * bias[picked]).float()
        return layer

    def _set_by_regression(self, down: nn.Linear, up: nn.Linear) -> None:
        readout, projection, bias = reduced_rank_regression(
            self._linear_moments, down.out_features, metric=torch.diag(self._sensitivity)
        )
        down.weight.copy_(projection)
        up.weight.copy_(readout)
        up.bias.copy_(bias)

    @property
    def _shrinkage(self) -> float:
        """What the inputs of SNNK are multiplied by along their mean, which then is at most one long."""
        return float((1 + self.offset_norm**2).rsqrt())

    @cached_property
    def _linear_moments(self) -> Covariances:
        """Of standardised inputs against pre-activations."""
        moments = Moments()
        moments.update(self._seen(Candidate("low-rank", 1), self.train), self.train.pre_activations)
        return moments.covariances()

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        """The trained layer itself, as a map of standardised inputs."""
        return solve_readout(self._linear_moments)

    @cached_property
    def _outputs_covariance(self) -> Tensor:
        return torch.cov(self.train.outputs.double().T)

    @cached_property
    def _sensitivity(self) -> Tensor:
        """E[f'(z)²] of every output."""
        z = self.train.pre_activations.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.train.activation(z).sum(), z)
        return slope.double().square().mean(dim=0)

    def _seen(self, candidate: Candidate, rows: Activations) -> Tensor:
        """What the candidate takes for its input."""
        if candidate.kind == "snnk":
            x = rows.inputs * self.scale[:-1]
            return x + (self._shrinkage - 1) * torch.outer(x @ self.direction, self.direction)
        extended = (_extend(rows.inputs) - self.mean) * self.scale * self.varies
        return extended if candidate.use_norm else extended[:, :-1].contiguous()


@cache
def layer_cost(config: KindConfig, width: int, setting: Setting) -> tuple[int, int]:
    """Parameters, and operations of one row in products of matrices, of a layer as wide as its input.

    Args:
        setting: "lone": what the layer stores, between dense layers. "chain": what one more such layer adds to a chain
            of them, once folded.
    """
    with torch.device("meta"):
        if setting == "lone":
            return _counts(make_layer(config, width, width))
        longer, shorter = (
            _counts(fold(nn.Sequential(*(part for _ in range(n) for part in make_layer(config, width, width)))))
            for n in (4, 3)
        )
    return longer[0] - shorter[0], longer[1] - shorter[1]


def _extend(x: Tensor) -> Tensor:
    return torch.cat([x, input_norm(x)], dim=1)


def _counts(module: nn.Module) -> tuple[int, int]:
    return sum(parameter.numel() for parameter in module.parameters()), 2 * num_products(module)
