"""The start of networks of sines: what it promises is measured, at several depths, widths, m and orders."""

import math

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import SirenField, SirenFieldConfig
from eugen3d.layers import (
    EUGenConfig,
    EUGenFeatures,
    LayerConfig,
    LowRankConfig,
    Sine,
    SNNKConfig,
    sine_moments,
    start_sines,
)
from eugen3d.layers.merged import own_maps


def eugen(num_features: int, order: int = 1, phi: str = "sine", **settings) -> LayerConfig:
    return LayerConfig("eugen", EUGenConfig(num_features, order, phi, **settings))  # pyright: ignore[reportArgumentType]


def spreads(layer: LayerConfig, depth: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """The standard deviations of the sines of every layer, and, times the root of their number, of their gradients."""
    generator = torch.Generator().manual_seed(seed)
    return spreads_of(SirenField(SirenFieldConfig(2, 1, depth + 1, width, layer=layer), generator), generator)


def spreads_of(field: SirenField, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    hidden = 2 * torch.rand(1024, 2, generator=generator) - 1
    sines = []
    for map_ in own_maps(field.layers):
        hidden = map_(hidden)
        if isinstance(map_, Sine) or (isinstance(map_, EUGenFeatures) and map_.phi == "sine"):
            hidden.retain_grad()
            sines.append(hidden)
    hidden.backward(torch.randn(hidden.shape, generator=generator))
    gradients = [x.grad.std() * math.sqrt(x.shape[1]) for x in sines if x.grad is not None]
    return torch.stack([x.detach().std() for x in sines])[1:], torch.stack(gradients)[1:]


@pytest.mark.parametrize(
    ("layer", "depth", "width"),
    [
        (LayerConfig("linear"), 20, 256),
        (LayerConfig("linear"), 20, 64),
        (LayerConfig("linear"), 2, 256),
        (eugen(64), 20, 256),
        (eugen(128), 20, 128),
        (eugen(64, use_norm=False), 8, 256),
        (eugen(128, 2), 20, 256),
        (eugen(256, 2, shared=False), 20, 128),
        (eugen(128, 3), 20, 256),
        (eugen(64, 3), 20, 256),
        (eugen(32), 20, 256),
        (eugen(64, projection_rank=64, use_norm=False), 20, 256),
        (eugen(128, 2, "identity"), 20, 256),
        (LayerConfig("low-rank", low_rank=LowRankConfig(64)), 20, 256),
        (LayerConfig("snnk", snnk=SNNKConfig(64, "fourier")), 20, 256),
    ],
    ids=str,
)
def test_activations_and_gradients_are_alike_at_every_depth(layer: LayerConfig, depth: int, width: int) -> None:
    """In the mean of four draws: a single one strays by about the root of depth over m."""
    activations, gradients = zip(*(spreads(layer, depth, width, seed) for seed in range(4)), strict=True)
    for found in (torch.stack(activations), torch.stack(gradients)):
        mean = (found / found[:, :1]).mean(dim=0)
        assert mean.min() > 0.8 and mean.max() < 1.2


@pytest.mark.parametrize("layer", [LayerConfig("linear"), eugen(64)], ids=str)
def test_with_torchs_own_start_activations_vanish(layer: LayerConfig) -> None:
    """So the test above can fail."""
    field = SirenField(SirenFieldConfig(2, 1, 11, 256, layer=layer))
    torch.manual_seed(0)
    for module in field.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    activations, _ = spreads_of(field, torch.Generator().manual_seed(0))
    assert activations[-1] < 0.5 * activations[0]


@pytest.mark.parametrize("variance", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_moments_are_those_of_random_projections(order: int, variance: float) -> None:
    generator = torch.Generator().manual_seed(order)
    t = torch.randn(order, 400_000, dtype=torch.float64, generator=generator) * math.sqrt(variance)
    t.requires_grad_()
    second, slope = 0.0, 0.0
    for degree in range(1, order + 1):
        sine = torch.sin(t[:degree].prod(dim=0))
        (gradient,) = torch.autograd.grad(sine.sum(), t)
        second += float(sine.detach().square().mean()) / order
        slope += float(gradient.square().sum(dim=0).mean()) / order
    moments = sine_moments(order, variance)
    assert moments.second == pytest.approx(second, rel=0.02)
    assert moments.slope == pytest.approx(slope, rel=0.1 if variance > 1 else 0.03)
    assert moments.second <= variance * moments.slope, "the Poincaré inequality: biases have a variance"


def test_moments_of_the_first_order_have_a_closed_form() -> None:
    moments = sine_moments(1, 1.0)
    assert moments.second / moments.slope == pytest.approx(math.tanh(1.0))
    assert 1 / moments.slope == pytest.approx(1 + math.tanh(1.0))


def test_the_dense_network_starts_within_the_published_bounds() -> None:
    field = SirenField(SirenFieldConfig(2, 3, 4, 200, omega_0=30.0, layer=LayerConfig("linear")))
    first, *hidden, head = (module for module in field.modules() if isinstance(module, nn.Linear))
    for weight, bound in (
        (first.weight, 30.0 / 2),
        *((layer.weight, math.sqrt(6 / 200)) for layer in hidden),
        (head.weight, math.sqrt(6 / 200) / 30),
    ):
        assert 0.95 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for layer in (first, *hidden):
        assert 0.9 * math.pi < float(layer.bias.abs().max()) <= math.pi
    assert not head.bias.any()


def test_the_first_layers_frequencies_are_omega_0() -> None:
    for omega_0 in (1.0, 300.0):
        field = SirenField(SirenFieldConfig(1, 1, 2, 64, omega_0))
        weight = next(field.parameters())
        assert 0.9 * omega_0 < float(weight.abs().max()) <= omega_0


def test_what_is_no_network_of_sines_is_refused() -> None:
    with pytest.raises(ValueError, match="phi is 'relu' in a network of sines, expected 'sine' or 'identity'"):
        SirenField(SirenFieldConfig(layer=eugen(8, phi="relu")))
    with pytest.raises(ValueError, match="the projections of sines have no bias, expected one"):
        SirenField(SirenFieldConfig(layer=eugen(8, bias=False)))
    with pytest.raises(ValueError, match="a network of sines holds ReLU, expected layers and sines"):
        start_sines([nn.Sequential(nn.Linear(2, 3), nn.ReLU())], 30.0)


def test_the_same_seed_gives_the_same_start() -> None:
    def start(seed: int) -> Tensor:
        field = SirenField(SirenFieldConfig(layer=eugen(8, 2)), torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in field.parameters()])

    assert torch.equal(start(3), start(3)) and not torch.equal(start(3), start(4))
