"""SineLinear: the start that Sitzmann et al. (2020) give it, and its values."""

import math

import pytest
import torch
from torch import nn

from eugen3d import SineConfig, SineLinear, fold


def test_value_computed_by_hand() -> None:
    layer = SineLinear(2, 1, omega_0=10.0)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.tensor([[0.1, -0.2]]))
        layer.linear.bias.fill_(0.05)
    assert layer(torch.tensor([3.0, 1.0])).item() == pytest.approx(math.sin(10 * (0.3 - 0.2 + 0.05)), rel=1e-5)


@pytest.mark.parametrize(
    ("position", "omega_0", "bound"),
    [("first", 30.0, 1 / 50), ("hidden", 30.0, math.sqrt(6 / 50) / 30), ("hidden", 5.0, 0.0693)],
)
def test_weights_start_uniform_within_the_bound_of_their_position(position, omega_0: float, bound: float) -> None:
    layer = SineLinear(50, 400, omega_0, position)
    weight = layer.linear.weight.detach()
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.05)
    assert 0.9 / math.sqrt(50) < layer.linear.bias.abs().max() <= 1 / math.sqrt(50)


def test_the_distribution_of_activations_is_kept_through_the_depth() -> None:
    """Arcsine, of variance 1/2 (Sitzmann et al. 2020, theorem 1.8)."""
    layers = nn.Sequential(SineLinear(2, 256, position="first"), *(SineLinear(256, 256) for _ in range(5)))
    x = torch.rand(2000, 2) * 2 - 1
    for layer in layers:
        x = layer(x)
        assert x.var().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("omega_0", [30.0, 4.0])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_exact(omega_0: float, bias: bool) -> None:
    linear = nn.Linear(6, 5, bias=bias, dtype=torch.float64).eval().requires_grad_(False)
    layer = SineLinear.from_linear(linear, "sine", SineConfig(omega_0))
    x = torch.randn(20, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x).sin())
    assert not layer.training and not any(p.requires_grad for p in layer.parameters())
    assert torch.allclose(layer.linear.weight * omega_0, linear.weight)


def test_a_low_rank_map_before_it_folds_into_the_frequencies() -> None:
    siren = nn.Sequential(nn.Linear(3, 64), SineLinear(64, 8), nn.Linear(8, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    expected = siren(x)
    folded = fold(siren)
    torch.testing.assert_close(folded(x), expected)
    assert [p.shape for p in folded.parameters() if p.dim() == 2] == [(8, 3), (1, 8)]


def test_the_generator_decides_the_whole_draw() -> None:
    draws = [SineLinear(6, 4, generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)]
    for name in ("linear.weight", "linear.bias"):
        assert torch.equal(draws[0][name], draws[1][name])
        assert not torch.equal(draws[0][name], draws[2][name])


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match=r"omega_0 is 0\.0, expected a positive number"):
        SineLinear(3, 2, omega_0=0.0)
    with pytest.raises(ValueError, match="position 'last' is unknown, expected one of first, hidden"):
        SineLinear(3, 2, position="last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="widths are 3 and 0"):
        SineLinear(3, 0)
    with pytest.raises(ValueError, match="activation is 'relu', expected 'sine'"):
        SineLinear.from_linear(nn.Linear(3, 2), "relu")
    with pytest.raises(ValueError, match=r"config\.bias is False, expected True"):
        SineLinear.from_linear(nn.Linear(3, 2), "sine", SineConfig(bias=False))
