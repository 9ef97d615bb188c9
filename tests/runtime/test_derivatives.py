"""Gradients and Laplacians through every backend, beside the unfolded network's and beside finite differences."""

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import SirenField, SirenFieldConfig
from eugen3d.layers import EUGenConfig, LayerConfig, fold
from eugen3d.layers.jets import Jet, chain_jet
from eugen3d.runtime import TiledModule, build
from eugen3d.runtime.machine import why_no_cuda

TOLERANCE = 1e-4
"""Of float32, relative to the largest entry."""
STEP = 1e-4
FINITE_TOLERANCE = 1e-5
"""Of central differences in float64 with that step: its square, times what frequencies of ω₀ make of it."""

LAYERS: dict[str, LayerConfig] = {
    "eugen": LayerConfig("eugen", EUGenConfig(8, phi="sine", use_norm=False)),
    "eugen, order 2 with the norm": LayerConfig("eugen", EUGenConfig(8, 2, "sine", use_norm=True)),
    "a sine outside": LayerConfig("eugen", EUGenConfig(6, 2, "identity", use_norm=False)),
    "low-rank": LayerConfig("low-rank"),
    "linear": LayerConfig("linear"),
}

on_cpu = ["eager", "compiled", "native", "auto"]
needs_gpu = pytest.mark.skipif(why_no_cuda() is not None, reason="no CUDA device was found")


def make_field(layer: LayerConfig) -> SirenField:
    return SirenField(SirenFieldConfig(3, 2, num_layers=3, layer_width=24, omega_0=4.0, layer=layer))


def derivatives(function: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (n, c), gradients (n, d, c) and Laplacians (n, c), by differentiating twice."""
    x = x.detach().requires_grad_()
    values = function(x)
    gradients, laplacians = [], []
    for channel in values.unbind(dim=1):
        (gradient,) = torch.autograd.grad(channel.sum(), x, create_graph=True)
        second = [
            torch.autograd.grad(part.sum(), x, retain_graph=True)[0][:, axis]
            for axis, part in enumerate(gradient.unbind(dim=1))
        ]
        gradients.append(gradient.detach())
        laplacians.append(torch.stack(second).sum(dim=0))
    return values.detach(), torch.stack(gradients, dim=2), torch.stack(laplacians, dim=1)


def differences(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (n, d, c) and Laplacians (n, c) by central differences."""
    steps = STEP * torch.eye(x.shape[1], dtype=x.dtype)
    above, below = (torch.stack([function(x + sign * step) for step in steps], dim=1) for sign in (1, -1))
    return (above - below) / (2 * STEP), ((above + below - 2 * function(x)[:, None]) / STEP**2).sum(dim=1)


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", on_cpu)
@pytest.mark.parametrize("name", LAYERS)
def test_every_backend_has_the_unfolded_networks_derivatives(name: str, backend: Any) -> None:
    field = make_field(LAYERS[name])
    x = 2 * torch.rand(50, 3) - 1
    found = derivatives(build(field, backend), x)
    agree(found, derivatives(field, x), TOLERANCE)
    with torch.no_grad():
        jet = chain_jet(fold(copy.deepcopy(field)).layers, Jet.of(x, laplacian=True))  # pyright: ignore
        assert jet.laplacian is not None
    agree(found, (jet.value, jet.gradient, jet.laplacian), TOLERANCE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", on_cpu)
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_those_of_finite_differences(name: str, backend: Any) -> None:
    field = make_field(LAYERS[name])
    x = 2 * torch.rand(20, 3) - 1
    with torch.no_grad():
        gradient, laplacian = differences(copy.deepcopy(field).double(), x.double())
    agree(derivatives(build(field, backend), x)[1:], (gradient, laplacian), TOLERANCE + FINITE_TOLERANCE)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", ["eager", "compiled", "triton"])
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_on_a_gpu(name: str, backend: Any) -> None:
    if backend == "triton" and not importlib.util.find_spec("triton"):
        pytest.skip("Triton is not installed")
    field = make_field(LAYERS[name]).cuda()
    x = 2 * torch.rand(50, 3, device="cuda") - 1
    agree(derivatives(build(field, backend), x), derivatives(field, x), TOLERANCE)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.skipif(not importlib.util.find_spec("tinycudann"), reason="tiny-cuda-nn is not installed")
def test_half_precision_values_have_derivatives_of_full_precision() -> None:
    chain = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2)).cuda()
    x = torch.rand(50, 3, device="cuda")
    values, gradient, _ = derivatives(build(chain, "tcnn"), x)
    expected, expected_gradient, _ = derivatives(chain, x)
    agree((values,), (expected,), 1e-2)
    agree((gradient,), (expected_gradient,), TOLERANCE)


def test_several_inputs_and_outputs_get_theirs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x).sin(), self.layer(x) * y

    pair = Pair()
    x, y = torch.rand(5, 3, requires_grad=True), torch.rand(5, 2)
    built = build(pair, "eager", tile_rows=2)
    first, second = built(x, y)
    assert first.requires_grad and second.requires_grad
    (found,) = torch.autograd.grad(first.sum() + 2 * second.sum(), x)
    expected = pair(x, y)
    torch.testing.assert_close(found, torch.autograd.grad(expected[0].sum() + 2 * expected[1].sum(), x)[0])
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_what_needs_no_gradient_is_evaluated_without(backend: Any) -> None:
    built = build(make_field(LAYERS["eugen"]), backend)
    assert isinstance(built, TiledModule)
    assert not built(torch.rand(5, 3)).requires_grad  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        assert not built(torch.rand(5, 3, requires_grad=True)).requires_grad  # pyright: ignore
