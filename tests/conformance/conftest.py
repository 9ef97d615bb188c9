"""The rows of the conformance suite: every layer kind and variant, with the dense algebra that it stands for.

The dense equivalent of a layer is a plain function of its input and of its parameters by name, written as its equation
reads: with every matrix formed and nothing shared or folded. A new kind adds one row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, LinearConfig, LowRankConfig, SineConfig, SNNKConfig
from eugen3d.layers import KindConfig, make_layer

IN_FEATURES, OUT_FEATURES, NUM_FEATURES = 6, 5, 4
Parameters = Mapping[str, Tensor]
Dense = Callable[[Tensor, Parameters], Tensor]


@dataclass(frozen=True)
class Row:
    """A layer kind: its configuration, and its dense equivalent."""

    name: str
    kind: str
    config: KindConfig
    dense: Dense
    is_first_of_kind: bool = False
    """Whether what takes seconds a layer, compiling it, is done for it, too."""

    def make(self, in_features: int = IN_FEATURES, out_features: int = OUT_FEATURES) -> nn.Module:
        """The layer as it starts."""
        return make_layer(self.config, in_features, out_features, "identity")[0]

    def make_random(self, in_features: int = IN_FEATURES, out_features: int = OUT_FEATURES) -> nn.Module:
        """The layer with every parameter drawn anew, those too that start at zero or are fixed."""
        return self.randomise(self.make(in_features, out_features))

    @staticmethod
    def randomise(layer: nn.Module) -> nn.Module:
        """Draw every parameter anew."""
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(std=0.5)
        return layer


def dense_linear(x: Tensor, parameters: Parameters) -> Tensor:
    """W x + b."""
    return torch.einsum("ld,...d->...l", parameters["weight"], x) + parameters.get("bias", 0)


def dense_low_rank(x: Tensor, parameters: Parameters) -> Tensor:
    """(U V) x + b."""
    matrix = torch.einsum("lr,rd->ld", parameters["up.weight"], parameters["down.weight"])
    return torch.einsum("ld,...d->...l", matrix, x) + parameters.get("up.bias", 0)


def dense_sine(config: SineConfig) -> Dense:
    """sin(ω₀ (W x + b))."""

    def evaluate(x: Tensor, parameters: Parameters) -> Tensor:
        u = torch.einsum("ld,...d->...l", parameters["linear.weight"], x) + parameters.get("linear.bias", 0)
        return torch.sin(config.omega_0 * u)

    return evaluate


def dense_snnk(config: SNNKConfig) -> Dense:
    """Ψᵀ φ(G x) + b with φ = ReLU, or sin(G x + β)."""

    def evaluate(x: Tensor, parameters: Parameters) -> Tensor:
        u = torch.einsum("md,...d->...m", parameters["features.projection.weight"], x)
        phi = u.clamp(min=0) if config.form == "relu" else torch.sin(u + parameters["features.projection.bias"])
        return torch.einsum("lm,...m->...l", parameters["readout.weight"], phi) + parameters.get("readout.bias", 0)

    return evaluate


def dense_eugen(config: EUGenConfig) -> Dense:
    """W Φ(concat ∏ G_ij [x; 1; ‖x‖]) + b (EUGens 2025, eq. 1, inference form), the products one by one."""

    def evaluate(x: Tensor, parameters: Parameters) -> Tensor:
        matrix = parameters["features.projection.weight"]
        if config.projection_rank is not None:
            matrix = torch.einsum("mr,rd->md", matrix, parameters["features.down.weight"])
        columns, extended = [matrix], [x]
        if config.bias:
            columns.append(parameters["features.projection.bias"][:, None])
            extended.append(torch.ones_like(x[..., :1]))
        if config.use_norm:
            columns.append(parameters["features.norm_weight"][:, None])
            extended.append((x * x).sum(-1, keepdim=True).sqrt())
        matrices = torch.cat(columns, dim=1).split(config.num_features)
        activation = {"identity": lambda u: u, "relu": lambda u: u.clamp(min=0), "sine": torch.sin}[config.phi]
        taken, features = 0, []
        for degree in range(1, config.order + 1):
            start = 0 if config.shared else taken
            product = torch.ones(())
            for matrix in matrices[start : start + degree]:
                product = product * torch.einsum("md,...d->...m", matrix, torch.cat(extended, dim=-1))
            taken += degree
            features.append(activation(product))
        y = torch.einsum("lm,...m->...l", parameters["readout.weight"], torch.cat(features, dim=-1))
        return y + parameters["readout.bias"] if config.bias else y

    return evaluate


def eugen_row(name: str, config: EUGenConfig, is_first_of_kind: bool = False) -> Row:
    return Row(f"eugen {name}", "eugen", config, dense_eugen(config), is_first_of_kind)


def sine_row(name: str, config: SineConfig, is_first_of_kind: bool = False) -> Row:
    return Row(name, "sine", config, dense_sine(config), is_first_of_kind)


def snnk_row(name: str, config: SNNKConfig, is_first_of_kind: bool = False) -> Row:
    return Row(name, "snnk", config, dense_snnk(config), is_first_of_kind)


EUGEN = EUGenConfig(NUM_FEATURES)
ORDERS = [
    eugen_row(
        f"order {order} {phi} {'shared' if shared else 'independent'}",
        dataclasses.replace(EUGEN, order=order, phi=phi, shared=shared, use_norm=order != 4),
    )
    for order, phi in ((2, "relu"), (3, "sine"), (4, "sine"), (5, "sine"))
    for shared in (True, False)
]
ROWS = [
    Row("linear", "linear", LinearConfig(), dense_linear, True),
    Row("linear without bias", "linear", LinearConfig(bias=False), dense_linear),
    Row("low-rank", "low-rank", LowRankConfig(3), dense_low_rank, True),
    Row("low-rank without bias", "low-rank", LowRankConfig(3, bias=False), dense_low_rank),
    snnk_row("snnk relu", SNNKConfig(NUM_FEATURES), True),
    snnk_row("snnk fourier", SNNKConfig(NUM_FEATURES, "fourier", train_projections=True)),
    snnk_row("snnk without bias", SNNKConfig(NUM_FEATURES, "fourier", bias=False)),
    sine_row("sine", SineConfig(omega_0=1.5), True),
    sine_row("sine without bias", SineConfig(omega_0=1.5, bias=False)),
    eugen_row("order 1", EUGEN),
    eugen_row("low rank", EUGenConfig(NUM_FEATURES, phi="identity", use_norm=False)),
    eugen_row("without bias", EUGenConfig(NUM_FEATURES, bias=False)),
    eugen_row("fixed", EUGenConfig(NUM_FEATURES, train_projections=False)),
    *ORDERS,
    eugen_row("order 3 identity", EUGenConfig(NUM_FEATURES, order=3, phi="identity", projection="rademacher")),
    eugen_row("factored", EUGenConfig(NUM_FEATURES, order=2, use_norm=False, projection_rank=2)),
    eugen_row("factored with norm", EUGenConfig(NUM_FEATURES, order=2, projection_rank=2, shared=False), True),
    eugen_row("factored low rank", EUGenConfig(NUM_FEATURES, phi="identity", use_norm=False, projection_rank=2)),
]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    """Every layer kind and variant."""
    return request.param


@pytest.fixture(params=[row for row in ROWS if row.is_first_of_kind], ids=lambda row: row.name)
def first_row(request: pytest.FixtureRequest) -> Row:
    """One row per layer kind."""
    return request.param


@pytest.fixture
def kinds() -> set[str]:
    """The kinds that have a row for all tests."""
    return {row.kind for row in ROWS if row.is_first_of_kind}
