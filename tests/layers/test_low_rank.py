"""LowRankLinear: the best layer of its rank, with and without inputs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eugen3d import LowRankConfig, LowRankLinear


def dense(in_features: int = 6, out_features: int = 5, bias: bool = True) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=bias, dtype=torch.float64)


def skewed_rows(count: int = 300) -> Tensor:
    """Rows with a mean of their own, and directions of very different size."""
    mixing = torch.randn(6, 6, dtype=torch.float64) * torch.tensor([5, 2, 1, 0.3, 0.1, 0.03], dtype=torch.float64)
    return torch.randn(count, 6, dtype=torch.float64) @ mixing.T + torch.randn(6, dtype=torch.float64)


def squared_error(layer: nn.Module, linear: nn.Linear, rows: Tensor) -> float:
    return float((layer(rows) - linear(rows)).detach().square().sum())


def test_value_computed_by_hand() -> None:
    layer = LowRankLinear(2, 2, rank=1)
    with torch.no_grad():
        layer.down.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.up.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        layer.up.bias.copy_(torch.tensor([0.5, 0.0]))
    assert layer(torch.tensor([4.0, 5.0])).tolist() == [42.5, -14.0]


def test_without_inputs_the_error_is_the_discarded_singular_values() -> None:
    linear = dense()
    singular = np.linalg.svd(linear.weight.detach().numpy(), compute_uv=False)
    for rank in range(1, 6):
        layer = LowRankLinear.from_linear(linear, config=LowRankConfig(rank))
        difference = (layer.up.weight @ layer.down.weight - linear.weight).detach().numpy()
        assert np.linalg.norm(difference) == pytest.approx(np.linalg.norm(singular[rank:]), abs=1e-14)
        assert torch.equal(layer.up.bias, linear.bias)
    assert singular[-1] > 1e-3, "a dense layer of full rank, so that every rank below has an error"


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_with_inputs_it_is_the_whitened_truncation(rank: int, bias: bool) -> None:
    """In numpy: W S^{1/2} truncated, times S^{−1/2}; S the covariance, or the second moment where no bias can shift."""
    linear, rows = dense(bias=bias), skewed_rows()
    layer = LowRankLinear.from_linear(linear, config=LowRankConfig(rank, bias), inputs=rows)
    weight, x = linear.weight.detach().numpy(), rows.numpy()
    mean = x.mean(axis=0) if bias else np.zeros(6)
    values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    left, singular, right = np.linalg.svd(weight @ root, full_matrices=False)
    expected = (left[:, :rank] * singular[:rank]) @ right[:rank] @ inverse
    ours = (layer.up.weight @ layer.down.weight).detach().numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-7, atol=1e-9)
    assert squared_error(layer, linear, rows) == pytest.approx(float((singular[rank:] ** 2).sum()), rel=1e-9)
    if bias:
        shifted = linear.bias.detach().numpy() + (weight - expected) @ mean
        np.testing.assert_allclose(layer.up.bias.detach().numpy(), shifted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_nothing_near_the_optimum_is_better_and_the_plain_truncation_is_worse(bias: bool) -> None:
    linear, rows = dense(bias=bias), skewed_rows()
    layer = LowRankLinear.from_linear(linear, config=LowRankConfig(2, bias), inputs=rows)
    plain = LowRankLinear.from_linear(linear, config=LowRankConfig(2, bias))
    assert squared_error(layer, linear, rows) < 0.9 * squared_error(plain, linear, rows)
    (layer(rows) - linear(rows).detach()).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.norm() < 1e-8 * rows.square().sum(), "a stationary point"


def test_leading_axes_of_inputs_are_rows() -> None:
    linear, rows = dense(), skewed_rows()
    layers = [
        LowRankLinear.from_linear(linear, config=LowRankConfig(2), inputs=x) for x in (rows, rows.view(3, 100, 6))
    ]
    assert torch.equal(layers[0].down.weight, layers[1].down.weight)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_rows_than_the_rank_are_fitted_exactly(count: int) -> None:
    linear, rows = dense(), skewed_rows(count)
    layer = LowRankLinear.from_linear(linear, config=LowRankConfig(3), inputs=rows)
    torch.testing.assert_close(layer(rows), linear(rows))
    others = skewed_rows()
    assert squared_error(layer, linear, others) > 1e-3 * float(linear(others).detach().square().sum())


@pytest.mark.parametrize("inputs", [True, False])
def test_a_rank_above_the_widths_is_exact_and_can_be_trained(inputs: bool) -> None:
    linear, rows = dense(), skewed_rows()
    layer = LowRankLinear.from_linear(linear, config=LowRankConfig(8), inputs=rows if inputs else None)
    torch.testing.assert_close(layer(rows), linear(rows))
    assert not layer.up.weight[:, 5:].any() and layer.down.weight[5:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_mode_and_requires_grad_carry_over(dtype: torch.dtype) -> None:
    linear = nn.Linear(6, 5).to(dtype).eval().requires_grad_(False)
    layer = LowRankLinear.from_linear(linear, config=LowRankConfig(2), inputs=torch.randn(50, 6))
    assert all(p.dtype == dtype and not p.requires_grad for p in layer.parameters())
    assert not layer.training and not layer.up.training


def test_a_fresh_layer_keeps_the_second_moment_behind_a_relu() -> None:
    layer = LowRankLinear(400, 400, rank=200, generator=torch.Generator().manual_seed(1))
    x = torch.randn(500, 400)
    assert layer(x).relu().square().mean().item() == pytest.approx(1, rel=0.1)
    again = LowRankLinear(400, 400, rank=200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x), layer(x))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        LowRankLinear(3, 2, rank=0)
    with pytest.raises(ValueError, match="widths are 3 and 0"):
        LowRankLinear(3, 0)
    with pytest.raises(ValueError, match="activation is 'relu', expected 'identity': a low-rank layer has none inside"):
        LowRankLinear.from_linear(dense(), "relu")
    with pytest.raises(ValueError, match=r"config\.bias is False, expected True"):
        LowRankLinear.from_linear(dense(), config=LowRankConfig(bias=False))
    with pytest.raises(ValueError, match="there are no input rows"):
        LowRankLinear.from_linear(dense(), inputs=torch.zeros(0, 6))
