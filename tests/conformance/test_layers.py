"""One suite for every layer kind, against the dense algebra that it stands for. A new kind adds one row.

The dense equivalent of a layer is a plain function of its input and of its parameters by name, written as its equation
reads: with every matrix formed and nothing shared or folded.
"""

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear, layer_status

IN_FEATURES, OUT_FEATURES, NUM_FEATURES = 6, 5, 4
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A layer kind: how to make it, and its dense equivalent."""

    name: str
    make: Callable[[], nn.Module]
    dense: Callable[[Tensor, Parameters], Tensor]
    kind: str


def dense_linear(x: Tensor, parameters: Parameters) -> Tensor:
    """W x + b."""
    return torch.einsum("ld,...d->...l", parameters["weight"], x) + parameters.get("bias", 0)


def dense_eugen(config: EUGenConfig) -> Callable[[Tensor, Parameters], Tensor]:
    """W Φ(concat ∏ G_ij [x; 1; ‖x‖]) + b (EUGens 2025, eq. 1, inference form), the products one by one."""

    def evaluate(x: Tensor, parameters: Parameters) -> Tensor:
        columns, extended = [parameters["features.projection.weight"]], [x]
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


def eugen_row(name: str, config: EUGenConfig) -> Row:
    return Row(
        name, lambda: EUGenLinear.from_config(config, IN_FEATURES, OUT_FEATURES), dense_eugen(config), kind="eugen"
    )


ROWS = [
    Row("linear", lambda: nn.Linear(IN_FEATURES, OUT_FEATURES), dense_linear, "linear"),
    Row("linear without bias", lambda: nn.Linear(IN_FEATURES, OUT_FEATURES, bias=False), dense_linear, "linear"),
    eugen_row("eugen", EUGenConfig(NUM_FEATURES)),
    eugen_row("eugen low rank", EUGenConfig(NUM_FEATURES, phi="identity", use_norm=False)),
    eugen_row("eugen without bias", EUGenConfig(NUM_FEATURES, bias=False)),
    eugen_row("eugen order 2", EUGenConfig(NUM_FEATURES, order=2)),
    eugen_row("eugen order 3 independent", EUGenConfig(NUM_FEATURES, order=3, shared=False, phi="sine")),
    eugen_row("eugen order 3 identity", EUGenConfig(NUM_FEATURES, order=3, phi="identity", projection="rademacher")),
]


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
class TestLayerConformance:
    """Every layer kind is a torch module that computes what its equation says."""

    @pytest.mark.parametrize("batch", [(), (0,), (1,), (7,), (2, 3), (2, 0, 3)])
    def test_forward_equals_the_dense_equivalent(self, row: Row, batch: tuple[int, ...]) -> None:
        layer = randomised(row.make()).double()
        x = torch.randn(*batch, IN_FEATURES, dtype=torch.float64)
        y = layer(x)
        assert y.shape == (*batch, OUT_FEATURES)
        torch.testing.assert_close(y, row.dense(x, dict(layer.named_parameters())), rtol=1e-12, atol=1e-12)

    def test_gradients_equal_those_of_the_dense_equivalent(self, row: Row) -> None:
        layer = randomised(row.make()).double()
        parameters = dict(layer.named_parameters())
        x = torch.randn(7, IN_FEATURES, dtype=torch.float64, requires_grad=True)
        inputs = [x, *parameters.values()]
        weights = torch.randn(7, OUT_FEATURES, dtype=torch.float64)
        ours = torch.autograd.grad((layer(x) * weights).sum(), inputs)
        theirs = torch.autograd.grad((row.dense(x, parameters) * weights).sum(), inputs)
        for gradient, expected in zip(ours, theirs, strict=True):
            assert gradient.any()
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)

    # A product of three projections, and the sine of it, lose a few times the rounding of one.
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1.25e-2), (torch.bfloat16, 1e-1)]
    )
    def test_dtypes_agree_with_float64(self, row: Row, dtype: torch.dtype, tolerance: float) -> None:
        layer = randomised(row.make()).to(dtype)
        x = torch.randn(50, IN_FEATURES).to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        expected = copy.deepcopy(layer).double()(x.double())
        assert 0 < (y.double() - expected).norm() < tolerance * expected.norm()

    def test_state_dict_pickle_and_deepcopy_keep_the_function(self, row: Row) -> None:
        layer, fresh = randomised(row.make()), row.make()
        x = torch.randn(7, IN_FEATURES)
        assert not torch.allclose(fresh(x), layer(x))
        fresh.load_state_dict(layer.state_dict(), strict=True)
        for twin in (fresh, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert torch.equal(twin(x), layer(x))
            randomised(twin)
            assert not torch.allclose(twin(x), layer(x)), "a copy has parameters of its own"

    def test_widths_and_status_are_reported(self, row: Row) -> None:
        layer = row.make()
        assert (layer.in_features, layer.out_features) == (IN_FEATURES, OUT_FEATURES)
        (status,) = layer_status(layer)
        assert status["kind"] == row.kind
        assert status["num_parameters"] == sum(p.numel() for p in layer.parameters())
        assert status["flops"] == 2 * sum(p.numel() for name, p in layer.named_parameters() if p.dim() == 2)

    def test_the_mode_does_not_change_the_function(self, row: Row) -> None:
        layer, x = randomised(row.make()), torch.randn(7, IN_FEATURES)
        assert torch.equal(layer.train()(x), layer.eval()(x))
