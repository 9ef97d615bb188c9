"""How well a layer of some kind can stand for a trained one: its relative error on rows that no fit saw, and its cost.

Symbols: x (n, d) inputs, z (n, l) pre-activations of the trained layer, y = f(z) its outputs. EUGen layers and narrow
pairs see [x; ‖x‖] standardised column by column, the norm only where it is asked for: an affine map of what they would
see, which goes into their projections. So a fixed draw weighs the norm as it does every input.

- closed form: projections as drawn, readout by ridge regression of y, or of z where the activation stays outside.
- trained: Adam on projections and readout from there, on ‖ŷ − y‖², then the ridge regression again.
- low rank is reduced-rank regression of z, each output weighed by E[f'(z)²], what y makes of its error to first order.
  It is the best that an EUGen layer of order 1 with Φ = identity can be in that measure.
- narrow is the pair that order 1 with Φ = ReLU and no norm is, too, trained from He's start by gradients alone; without
  a closed form to start from it takes more steps, five times as many.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from eugen3d.distill.moments import Moments
from eugen3d.distill.solve import reduced_rank_regression, solve_readout
from eugen3d.layers import (
    EUGenConfig,
    EUGenLinear,
    KindConfig,
    LowRankConfig,
    SNNKConfig,
    SNNKLinear,
    fold,
    make_layer,
    num_products,
)
from eugen3d.layers.features import Phi, Projection, input_norm

CandidateKind = Literal["eugen", "low-rank", "snnk", "narrow"]
Setting = Literal["lone", "chain"]

LEARNING_RATE = 2e-3
BATCH_ROWS = 512
NARROW_STEPS = 5
"""Steps of a narrow pair for each of a layer that starts from its closed form."""
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Activations:
    """Rows of a trained layer."""

    inputs: Tensor
    """x, (n, d)."""
    pre_activations: Tensor
    """z, (n, l)."""
    activation: Callable[[Tensor], Tensor]
    """f."""

    def split(self, count: int) -> tuple["Activations", "Activations"]:
        """The first `count` rows and the others."""
        return tuple(
            replace(self, inputs=self.inputs[part], pre_activations=self.pre_activations[part])
            for part in (slice(count), slice(count, None))
        )  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Candidate:
    """What stands for the trained layer."""

    kind: CandidateKind
    num_features: int
    """m, or the rank."""
    order: int = 1
    projection: Projection | None = None
    trained: bool = False
    phi: Phi = "identity"
    use_norm: bool = False

    @property
    def config(self) -> KindConfig:
        """The layer that it is; a narrow pair is one of order 1, by its cost."""
        if self.kind == "low-rank":
            return LowRankConfig(self.num_features)
        if self.kind == "snnk":
            return SNNKConfig(self.num_features)
        projection = self.projection or "gaussian"
        return EUGenConfig(self.num_features, self.order, self.phi, self.use_norm, projection)

    @property
    def is_random(self) -> bool:
        """Whether its error depends on a seed."""
        return self.kind != "low-rank"


class ApproximationProblem:
    """One trained layer, with the rows that candidates are fitted on and those that they are judged on."""

    def __init__(self, train: Activations, held_out: Activations) -> None:
        extended = _extend(train.inputs)
        self.mean, deviation = extended.mean(dim=0), extended.std(dim=0)
        self.scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
        self.train, self.held_out = train, held_out

    def relative_error(self, candidate: Candidate, seed: int = 0, steps: int = 200) -> float:
        """‖ŷ − y‖ / ‖y‖ on the held-out rows.

        Args:
            steps: Adam's, for what is trained from its closed form.
        """
        fitted = self._low_rank(candidate) if candidate.kind == "low-rank" else self._fit(candidate, seed, steps)
        return _relative(fitted, self._seen(candidate, self.held_out), self.held_out)

    def _fit(self, candidate: Candidate, seed: int, steps: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        x = self._seen(candidate, self.train)
        layer = _draw(candidate, x.shape[1], self.train.pre_activations.shape[1], generator)
        outer = nn.Identity() if candidate.config.includes_activation else _Activation(self.train.activation)
        block = nn.Sequential(layer, outer)
        if candidate.kind == "narrow":
            with torch.no_grad():  # outputs as large as the wanted ones
                layer.readout.weight.mul_(self._target(block).square().mean().sqrt())
        else:
            self._solve(block, x)
        if candidate.trained:
            before, error = {k: v.clone() for k, v in block.state_dict().items()}, _relative(block, x, self.train)
            self._descend(block, x, steps * (NARROW_STEPS if candidate.kind == "narrow" else 1), generator)
            if candidate.kind != "narrow":
                self._solve(block, x)
                if not _relative(block, x, self.train) < error:
                    block.load_state_dict(before)
        return block

    @torch.no_grad()
    def _solve(self, block: nn.Sequential, x: Tensor) -> None:
        """Set the readout to the ridge regression of what the layer itself has to give."""
        layer, moments = block[0], Moments()
        assert isinstance(layer, EUGenLinear | SNNKLinear)
        for rows, wanted in zip(x.split(CHUNK_ROWS), self._target(block).split(CHUNK_ROWS), strict=True):
            moments.update(layer.features(rows), wanted)
        weight, bias = solve_readout(moments.covariances())
        layer.readout.weight.copy_(weight)
        layer.readout.bias.copy_(bias)

    def _descend(self, block: nn.Sequential, x: Tensor, steps: int, generator: torch.Generator) -> None:
        """Adam with a rate that falls to zero along a cosine, on mean squares relative to the outputs'.

        Features of higher orders and outputs of different targets differ in scale by orders of magnitude, so the
        readout is one between features of unit variance and outputs of unit mean square while it is trained.
        """
        layer, outer = block[0], block[1]
        assert isinstance(layer, EUGenLinear | SNNKLinear)
        with torch.no_grad():
            deviation = layer.features(x[:CHUNK_ROWS]).std(dim=0)
            scale = torch.where(deviation > 0, 1 / deviation, 1.0)
            unit = self._target(block).square().mean().sqrt()
            layer.readout.weight.div_(scale * unit)
            layer.readout.bias.div_(unit)
        total = self.outputs.square().mean()
        optimizer = torch.optim.Adam(block.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + math.cos(math.pi * n / steps)) / 2)
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH_ROWS,), generator=generator)
            outputs = outer(unit * layer.readout(layer.features(x[rows]) * scale))
            loss = (outputs - self.outputs[rows]).square().mean() / total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            layer.readout.weight.mul_(scale * unit)
            layer.readout.bias.mul_(unit)

    def _target(self, block: nn.Sequential) -> Tensor:
        """What the layer itself has to give: z where the activation stands outside, y otherwise."""
        return self.outputs if isinstance(block[1], nn.Identity) else self.train.pre_activations

    @torch.no_grad()
    def _low_rank(self, candidate: Candidate) -> nn.Module:
        readout, projection, bias = reduced_rank_regression(
            self._linear_moments, candidate.num_features, metric=torch.diag(self._sensitivity)
        )
        up = nn.Linear(readout.shape[1], len(readout))
        up.weight.copy_(readout)
        up.bias.copy_(bias)
        down = nn.Linear(projection.shape[1], len(projection), bias=False)
        down.weight.copy_(projection)
        return nn.Sequential(down, up, _Activation(self.train.activation))

    @cached_property
    def outputs(self) -> Tensor:
        """y of the rows to fit."""
        return self.train.activation(self.train.pre_activations)

    @cached_property
    def _linear_moments(self):
        moments = Moments()
        moments.update(self.train.inputs, self.train.pre_activations)
        return moments.covariances()

    @cached_property
    def _sensitivity(self) -> Tensor:
        """E[f'(z)²] of every output."""
        z = self.train.pre_activations.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.train.activation(z).sum(), z)
        return slope.double().square().mean(dim=0)

    def _seen(self, candidate: Candidate, rows: Activations) -> Tensor:
        """What the candidate takes for its input."""
        if candidate.kind in ("low-rank", "snnk"):
            return rows.inputs
        extended = (_extend(rows.inputs) - self.mean) * self.scale
        return extended if candidate.use_norm else extended[:, :-1]


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


class _Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _draw(candidate: Candidate, width: int, outputs: int, generator: torch.Generator) -> EUGenLinear | SNNKLinear:
    config = candidate.config
    if isinstance(config, SNNKConfig):
        return SNNKLinear.from_config(config, width, outputs, generator=generator)
    assert isinstance(config, EUGenConfig)  # the norm is a column of the input here
    layer = EUGenLinear.from_config(replace(config, use_norm=False), width, outputs, generator=generator)
    if candidate.kind == "narrow":
        with torch.no_grad():
            layer.features.projection.weight.mul_(math.sqrt(2))
    return layer


def _extend(x: Tensor) -> Tensor:
    return torch.cat([x, input_norm(x)], dim=1)


@torch.no_grad()
def _relative(block: nn.Module, x: Tensor, rows: Activations) -> float:
    squares = torch.zeros(2, dtype=torch.float64)
    for part, z in zip(x.split(CHUNK_ROWS), rows.pre_activations.split(CHUNK_ROWS), strict=True):
        y = rows.activation(z).double()
        squares += torch.stack([(block(part).double() - y).square().sum(), y.square().sum()])
    return float((squares[0] / squares[1].clamp(min=1e-300)).sqrt())


def _counts(module: nn.Module) -> tuple[int, int]:
    return sum(parameter.numel() for parameter in module.parameters()), 2 * num_products(module)
