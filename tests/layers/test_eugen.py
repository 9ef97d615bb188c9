"""EUGenLinear against hand-computed values, and its laws as a torch module."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear
from eugen3d.layers import EUGenFeatures

# Six blocks of two projections of x = (3, 4), ‖x‖ = 5: rows of [G | bias | norm] and, beside them, G x⁺.
BLOCKS = torch.tensor(
    [
        [[1.0, 0, 1, 2], [0, -1, 0, 1]],  # 14, 1
        [[1.0, 1, 0, 0], [0, 0, 1, -1]],  # 7, -4
        [[0.0, 1, 0, 0], [1, 0, 0, 1]],  # 4, 8
        [[1.0, -1, 0, 1], [0, 1, -3, 0]],  # 4, 1
        [[0.0, 0, 2, 0], [1, 0, 0, 0]],  # 2, 3
        [[1.0, 0, -2, 0], [0, 0, 0, -1]],  # 1, -5
    ]
)


def by_hand(order: int, phi, shared: bool) -> EUGenLinear:
    """The layer of the first of `BLOCKS`, with the readout [1, 2, …] and the output bias 0.5."""
    layer = EUGenLinear(2, 1, num_features=2, order=order, phi=phi, shared=shared)
    blocks = BLOCKS[: order if shared else order * (order + 1) // 2].flatten(0, 1)
    norm_weight = layer.features.norm_weight
    assert norm_weight is not None
    with torch.no_grad():
        layer.features.projection.weight.copy_(blocks[:, :2])
        layer.features.projection.bias.copy_(blocks[:, 2])
        norm_weight.copy_(blocks[:, 3])
        layer.readout.weight.copy_(torch.arange(1.0, 2 * order + 1)[None])
        layer.readout.bias.fill_(0.5)
    return layer


@pytest.mark.parametrize(
    ("order", "phi", "shared", "expected"),
    [
        (1, "relu", True, 14 + 2 * 1 + 0.5),
        (1, "relu", False, 14 + 2 * 1 + 0.5),
        (2, "identity", True, 16 + 3 * 98 + 4 * -4 + 0.5),  # 98 = 14·7, -4 = 1·-4
        (2, "relu", True, 16 + 3 * 98 + 0.5),
        (2, "identity", False, 16 + 3 * 28 + 4 * -32 + 0.5),  # 28 = 7·4, -32 = -4·8
        (2, "relu", False, 16 + 3 * 28 + 0.5),
        (3, "identity", True, 294 + 5 * 392 + 6 * -32 + 0.5),  # 294 as at order 2, 392 = 98·4, -32 = -4·8
        (3, "relu", True, 310 + 5 * 392 + 0.5),
        (3, "identity", False, -28 + 5 * 8 + 6 * -15 + 0.5),  # 8 = 4·2·1, -15 = 1·3·-5
        (3, "relu", False, 100 + 5 * 8 + 0.5),
    ],
)
def test_values_computed_by_hand(order: int, phi, shared: bool, expected: float) -> None:
    assert by_hand(order, phi, shared)(torch.tensor([3.0, 4.0])).item() == pytest.approx(expected)


def test_value_without_norm_and_bias_computed_by_hand() -> None:
    layer = EUGenLinear(2, 1, num_features=2, use_norm=False, bias=False)
    with torch.no_grad():
        layer.features.projection.weight.copy_(torch.tensor([[1.0, 0], [0, -1]]))
        layer.readout.weight.copy_(torch.tensor([[5.0, 7.0]]))
    assert layer(torch.tensor([3.0, 4.0])).item() == 5 * 3 + 7 * 0
    assert [name for name, _ in layer.named_parameters()] == ["features.projection.weight", "readout.weight"]


def test_phi_is_applied_to_the_products_not_to_the_projections() -> None:
    features = EUGenFeatures(1, 1, order=2, phi="relu", bias=False)
    with torch.no_grad():
        features.projection.weight.copy_(torch.tensor([[-2.0], [-3.0]]))
    assert features(torch.ones(1)).tolist() == [0.0, 6.0]


def test_fresh_features_of_inputs_with_unit_variance_have_unit_variance() -> None:
    layer = EUGenLinear(64, 8, num_features=2000, phi="identity", projection="gaussian")
    phi = layer.features(torch.randn(64, 64))
    assert phi.var().item() == pytest.approx(1, rel=0.1)
    assert not layer.features.norm_weight.any()  # pyright: ignore[reportOptionalMemberAccess]


def test_the_generator_decides_the_whole_draw() -> None:
    draws = [EUGenLinear(6, 4, 8, generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)]
    for name in ("features.projection.weight", "readout.weight"):
        assert torch.equal(draws[0][name], draws[1][name])
        assert not torch.equal(draws[0][name], draws[2][name])


def randomised(layer: nn.Module) -> nn.Module:
    """The module with every parameter drawn anew, those that start at zero too."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    return layer


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("phi", ["identity", "relu", "gelu", "softplus", "softplus-100", "sine"])
def test_gradients_are_those_of_the_function(phi, shared: bool) -> None:
    layer = randomised(EUGenLinear(3, 2, num_features=2, order=2, phi=phi, shared=shared, dtype=torch.float64))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def function(x: Tensor, *values: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters))
    if phi != "relu":
        assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_gradients_at_the_zero_input_are_finite() -> None:
    layer = randomised(EUGenLinear(3, 2, num_features=4, order=2, phi="softplus"))
    x = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert gradient.isfinite().all() and gradient.any()


def test_second_derivatives_at_the_zero_input_are_finite() -> None:
    layer = randomised(EUGenLinear(3, 2, num_features=4, order=2, phi="softplus"))
    x = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)],
)
@pytest.mark.parametrize("order", [1, 3])
def test_every_dtype_agrees_with_numpy_in_float64(dtype: torch.dtype, tolerance: float, order: int) -> None:
    layer = randomised(EUGenLinear(16, 8, num_features=12, order=order, shared=True)).to(dtype)
    x = torch.randn(32, 16).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    weights = {name: value.double().numpy() for name, value in layer.state_dict().items()}
    wide = x.double().numpy()
    u = wide @ weights["features.projection.weight"].T + weights["features.projection.bias"]
    u += np.linalg.norm(wide, axis=1, keepdims=True) * weights["features.norm_weight"]
    products = np.concatenate(list(np.cumprod(u.reshape(32, order, 12), axis=1).swapaxes(0, 1)), axis=1)
    expected = np.maximum(products, 0) @ weights["readout.weight"].T + weights["readout.bias"]
    assert np.linalg.norm(y.detach().double().numpy() - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_large_half_precision_inputs_does_not_overflow(dtype: torch.dtype) -> None:
    features = EUGenFeatures(64, 1, phi="identity", use_norm=True, bias=False, dtype=dtype)
    assert features.norm_weight is not None
    with torch.no_grad():
        features.projection.weight.zero_()
        features.norm_weight.fill_(1.0)
    x = torch.full((1, 64), 300.0, dtype=dtype)
    assert x.square().sum(dtype=torch.float64) > torch.finfo(torch.float16).max
    assert features(x).item() == pytest.approx(2400, rel=1e-2)


def test_a_norm_beyond_half_precision_counts_for_nothing_where_its_weight_is_zero() -> None:
    features = EUGenFeatures(64, 1, phi="identity", use_norm=True, bias=False, dtype=torch.float16)
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    assert torch.linalg.vector_norm(x, dtype=torch.float32) > torch.finfo(torch.float16).max
    with torch.no_grad():
        features.projection.weight.zero_()
    assert features(x).item() == 0


def test_autocast_computes_in_half_precision_and_trains() -> None:
    layer = randomised(EUGenLinear(16, 8, num_features=12, order=2))
    x = torch.randn(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    reference = layer(x)
    assert 0 < (y.float() - reference).norm() / reference.norm() < 4e-2
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())


def test_autocast_leaves_the_norm_of_a_folded_input_in_full_precision() -> None:
    """The norm factor's product too, or its rounding would be that of bfloat16, 2⁻⁹."""
    features = EUGenFeatures(16, 1, phi="identity", use_norm=True, bias=False, norm_rank=17)
    randomised(features)
    assert features.norm_weight is not None and features.norm_factor is not None
    with torch.no_grad():
        features.projection.weight.zero_()
        features.norm_weight.fill_(1.0)
    x = torch.randn(32, 16)
    norm = features.norm_factor(x).norm(dim=-1, keepdim=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert features.norm_factor(x).dtype == torch.bfloat16
        torch.testing.assert_close(features._norm(x), norm, rtol=1e-6, atol=0)
        assert features._norm(x.bfloat16()).dtype == torch.float32
        y = features(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, norm.bfloat16())


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("order", [1, 2])
def test_compiles_without_a_break(order: int) -> None:
    layer = randomised(EUGenLinear(6, 5, num_features=4, order=order, shared=False))
    x = torch.randn(7, 6)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("batch", [(), (1,), (0,), (4,), (2, 3), (2, 0, 3)])
def test_leading_axes_are_rows(batch: tuple[int, ...]) -> None:
    layer = randomised(EUGenLinear(6, 5, num_features=4, order=2))
    x = torch.randn(*batch, 6)
    y = layer(x)
    assert y.shape == (*batch, 5)
    torch.testing.assert_close(y.reshape(-1, 5), layer(x.reshape(-1, 6)))


def test_pickle_deepcopy_and_state_dict_keep_the_function() -> None:
    layer = randomised(EUGenLinear(6, 5, num_features=4, order=2))
    x = torch.randn(7, 6)
    fresh = EUGenLinear.from_config(layer.config, 6, 5)  # pyright: ignore[reportArgumentType]
    assert not torch.allclose(fresh(x), layer(x))
    fresh.load_state_dict(layer.state_dict())
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), fresh):
        assert torch.equal(twin(x), layer(x))
        assert twin.config == layer.config
        assert all(p is not q for p, q in zip(twin.parameters(), layer.parameters(), strict=True))


def test_fixed_projections_get_no_gradient() -> None:
    layer = EUGenLinear(6, 5, num_features=4, train_projections=False)
    layer(torch.randn(7, 6)).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in layer.features.parameters())
    assert all(p.grad is not None for p in layer.readout.parameters())
    trained = EUGenLinear(6, 5, num_features=4)
    trained(torch.randn(7, 6)).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0, "out_features": 2}, "widths are 0 and 2, expected at least 1"),
        ({"in_features": 2, "out_features": -1}, "widths are 2 and -1, expected at least 1"),
        ({"num_features": 0}, "num_features is 0, expected at least 1"),
        ({"order": 0}, "order is 0, expected at least 1"),
        ({"projection_rank": 0}, "projection_rank is 0, expected at least 1, or None"),
        ({"phi": "tanh"}, "phi 'tanh' is unknown, expected one of identity, relu"),
        ({"projection": "cauchy"}, "projection 'cauchy' is unknown, expected one of orthogonal"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    widths: dict[str, Any] = {"in_features": 2, "out_features": 2}
    with pytest.raises(ValueError, match=message):
        EUGenLinear(**(widths | arguments))


def test_an_input_of_another_width_is_refused() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        EUGenLinear(6, 5)(torch.randn(2, 7))


@pytest.mark.parametrize("bias", [True, False])
def test_a_fit_to_inputs_is_the_least_squares_solution(bias: bool) -> None:
    linear = nn.Linear(6, 3, dtype=torch.float64)
    x = torch.randn(10, 20, 6, dtype=torch.float64)
    layer = EUGenLinear.from_linear(linear, "relu", EUGenConfig(num_features=5, order=2, bias=bias), x)
    phi = layer.features(x).detach().flatten(0, 1).numpy()
    if bias:
        phi = np.concatenate([phi, np.ones((len(phi), 1))], axis=1)
    target = linear(x).relu().detach().flatten(0, 1).numpy()
    expected = np.linalg.lstsq(phi, target, rcond=None)[0].T
    readout = layer.readout.weight.detach().numpy()
    np.testing.assert_allclose(readout, expected[:, :10], rtol=1e-9, atol=1e-11)
    if bias:
        np.testing.assert_allclose(layer.readout.bias.detach().numpy(), expected[:, 10], rtol=1e-9, atol=1e-11)


def test_a_fit_without_inputs_comes_close_on_standard_normal_ones() -> None:
    linear = nn.Linear(6, 3)
    layer = EUGenLinear.from_linear(linear, "relu", EUGenConfig(num_features=64))
    x = torch.randn(500, 6)
    target = linear(x).relu()
    error = (layer(x) - target).norm() / target.norm()
    assert 0 < error < 0.2, "64 random ReLU features of 6 inputs: a few per cent, never exact"


def test_too_few_rows_to_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 input rows for 9 unknowns, expected at least as many rows"):
        EUGenLinear.from_linear(nn.Linear(6, 3), "relu", EUGenConfig(num_features=8), torch.randn(5, 6))


def test_low_rank_fit_at_full_rank_is_exact() -> None:
    linear = nn.Linear(6, 3, dtype=torch.float64)
    x = torch.randn(50, 6, dtype=torch.float64)
    layer = EUGenLinear.from_linear(linear, "identity", EUGenConfig(num_features=6, phi="identity", use_norm=False), x)
    torch.testing.assert_close(layer(x), linear(x))
    assert layer.features.is_affine
    assert math.prod(layer.readout.weight.shape) == 18


def test_factored_projections_computed_by_hand() -> None:
    layer = EUGenLinear(2, 1, num_features=2, projection_rank=1)
    assert layer.features.down is not None and layer.features.norm_weight is not None
    with torch.no_grad():
        layer.features.down.weight.copy_(torch.tensor([[2.0, -1.0]]))  # of (3, 4): 2
        layer.features.projection.weight.copy_(torch.tensor([[5.0], [-3.0]]))
        layer.features.projection.bias.copy_(torch.tensor([1.0, 0.0]))
        layer.features.norm_weight.copy_(torch.tensor([0.0, 2.0]))
        layer.readout.weight.copy_(torch.tensor([[1.0, 10.0]]))
        layer.readout.bias.fill_(0.5)
    assert layer(torch.tensor([3.0, 4.0])).item() == 11 + 10 * 4 + 0.5


def test_factored_projections_start_with_unit_variance() -> None:
    layer = EUGenLinear(64, 8, num_features=1000, phi="identity", projection="gaussian", projection_rank=48)
    assert layer.features(torch.randn(64, 64)).var().item() == pytest.approx(1, rel=0.15)
    assert [tuple(p.shape) for p in layer.features.parameters() if p.dim() == 2] == [(48, 64), (1000, 48)]


def test_whole_projections_have_the_parameters_that_they_always_had() -> None:
    """What was saved before there were factored ones still loads strictly."""
    names = ["features.norm_weight", "features.projection.weight", "features.projection.bias"]
    assert list(EUGenLinear(3, 2).state_dict()) == [*names, "readout.weight", "readout.bias"]
    factored = EUGenLinear(3, 2, projection_rank=2).state_dict()
    assert factored.keys() - EUGenLinear(3, 2).state_dict().keys() == {"features.down.weight"}


def test_a_fit_with_factored_projections_is_a_fit() -> None:
    """Nothing is unbiased about them, so even Φ = identity takes the least squares."""
    linear, x = nn.Linear(6, 3), torch.randn(200, 6)
    for activation, phi in (("identity", "identity"), ("relu", "relu")):
        config = EUGenConfig(24, phi=phi, projection_rank=5, use_norm=False)  # pyright: ignore[reportArgumentType]
        layer = EUGenLinear.from_linear(linear, activation, config)  # pyright: ignore[reportArgumentType]
        target = linear(x).relu() if activation == "relu" else linear(x)
        assert 0 < (layer(x) - target).norm() < 0.7 * target.norm()
