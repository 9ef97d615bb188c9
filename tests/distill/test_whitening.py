"""Muon in the coordinates of a layer's inputs and outputs."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill.whitening import ROWS_PER_CALL, WhitenedMuon
from eugen3d.training import Muon
from eugen3d.training.muon import orthogonalise


def skewed(rows: int = 400, width: int = 6) -> Tensor:
    """Inputs whose deviations go over four orders of magnitude, with means, mixed."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -4, width)
    mixing = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return (torch.randn(rows, width, generator=generator) * scales + scales.flip(0)) @ mixing


def step(layer: nn.Linear, x: Tensor, gradient_of: Tensor, damping: float = 1e-12, lr: float = 0.01) -> WhitenedMuon:
    """Measure a layer at x and take one step along given outputs' gradients."""
    optimizer = WhitenedMuon(layer, lr=lr, damping=damping)
    with optimizer.measuring():
        layer(x)
    layer(x).backward(gradient_of)
    optimizer.step()
    return optimizer


def test_a_step_changes_the_outputs_by_the_same_share_in_every_direction() -> None:
    """The change of the centred outputs, in their own deviations, is lr · 0.2 · √width times a semi-orthogonal map."""
    x, layer = skewed(), nn.Linear(6, 5)
    before = layer(x).detach().double()
    step(layer, x, torch.randn(400, 5))
    change = (layer(x).detach().double() - before) / before.std(dim=0, correction=0)
    length = 0.01 * 0.2 * 6**0.5
    values = torch.linalg.svdvals(change - change.mean(dim=0)) / 400**0.5
    assert ((values > 0.6 * length) & (values < 1.3 * length)).all(), values / length
    plain, grown = nn.Linear(6, 5), nn.Linear(6, 5)
    grown.load_state_dict(plain.state_dict())
    grown(x).backward(torch.randn(400, 5))
    Muon(grown.parameters(), lr=0.01).step()
    shares = torch.linalg.svdvals((grown(x) - plain(x) - (grown(x) - plain(x)).mean(dim=0)).detach())
    assert shares[0] > 100 * shares[-1], "plain Muon moves them as far as the inputs are wide"


def test_the_step_is_muon_s_by_the_formula() -> None:
    """W += −lr · 0.2 · √6 · diag(s) O C^(-1/2), O from the gradient by V = diag(s) (∂W − ∂b E xᵀ) C^(-1/2)."""
    x, gradient = skewed().double(), torch.randn(400, 5, dtype=torch.float64)
    layer = nn.Linear(6, 5).double()
    weight, bias, z = layer.weight.detach().clone(), layer.bias.detach().clone(), layer(x).detach()
    step(layer, x, gradient, damping=1e-3)
    mean, scale = x.mean(dim=0), z.std(dim=0, correction=0)
    covariance = (x - mean).T @ (x - mean) / 400
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(6)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    whitened = scale[:, None] * (gradient.T @ (x - mean) @ root)
    moved = -0.01 * 0.2 * 6**0.5 * scale[:, None] * (orthogonalise(whitened[None])[0].double() @ root)
    torch.testing.assert_close(layer.weight.detach(), weight + moved, rtol=1e-4, atol=1e-7)
    bias_step = -0.001 * scale * gradient.sum(dim=0).sign()  # Adam's first step, at a tenth of the rate
    torch.testing.assert_close(layer.bias.detach(), bias + bias_step - moved @ mean, rtol=1e-4, atol=1e-7)


def test_it_polishes_a_readout_of_cancelling_weights_where_plain_muon_cannot() -> None:
    """Outputs of unit variance that all directions of the skewed inputs have a part in, a tenth off at the start."""
    x = skewed()
    left, values, right = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    white = left * 400**0.5
    target = white @ torch.randn(6, 5)
    start = nn.Linear(6, 5)
    with torch.no_grad():
        unmix = right.T / values * 400**0.5
        start.weight.copy_((unmix @ torch.linalg.lstsq(white, target).solution * (1 + 0.1 * torch.randn(5))).T)
        start.bias.copy_(-(start.weight @ x.mean(dim=0)))

    def polished(layer: nn.Linear, optimizer: Muon, lr: float) -> float:
        for number in range(100):
            optimizer.param_groups[0]["lr"] = lr * (1 - number / 100)
            loss = F.mse_loss(layer(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return F.mse_loss(layer(x), target).item()

    before = F.mse_loss(start(x), target).item()
    layer = copy.deepcopy(start)
    optimizer = WhitenedMuon(layer, damping=1e-10)
    with optimizer.measuring():
        layer(x)
    whitened = polished(layer, optimizer, 0.02)
    copies = [(copy.deepcopy(start), lr) for lr in (1e2, 10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)]
    plain = min(polished(layer, Muon(layer.parameters()), lr) for layer, lr in copies)
    assert whitened < 0.05 * before and whitened < 0.2 * plain, (before, whitened, plain)


def test_unmeasured_layers_and_other_parameters_are_plain_muon_s() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.free = nn.Linear(6, 5), nn.Linear(6, 5), nn.Parameter(torch.randn(5, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) @ self.free

    module, x = Both(), skewed()
    optimizer = WhitenedMuon(module, lr=0.01)
    with optimizer.measuring():
        module(x)
    ours = {name: nn.Parameter(p.detach().clone()) for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.grad = torch.randn(parameter.shape)
        ours[name].grad = parameter.grad.clone()
    optimizer.step()
    Muon(ours.values(), lr=0.01).step()
    for name in ("unused.weight", "unused.bias", "free"):
        assert torch.equal(module.get_parameter(name), ours[name])
    assert not torch.allclose(module.used.weight, ours["used.weight"])


@pytest.mark.parametrize("trained_bias", [False, None])
def test_a_layer_without_a_trained_bias_steps_about_zero(trained_bias: bool | None) -> None:
    """Its outputs at the mean may move: C is E xxᵀ, in which no direction of x is left out."""
    x = skewed() + 3.0
    layer = nn.Linear(6, 5, bias=trained_bias is not None)
    if trained_bias is False:
        layer.bias.requires_grad_(False)
        bias = layer.bias.clone()
    before = layer(x).detach().double()
    step(layer, x, torch.randn(400, 5))
    change = (layer(x).detach().double() - before) / before.std(dim=0, correction=0)
    values = torch.linalg.svdvals(change) / 400**0.5
    length = 0.01 * 0.2 * 6**0.5
    assert ((values > 0.6 * length) & (values < 1.3 * length)).all(), values / length
    if trained_bias is False:
        assert torch.equal(layer.bias, bias)


def test_a_weight_that_two_layers_share_is_stepped_once_and_plainly() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    module, x = nn.Sequential(first, second), skewed()
    optimizer, weight = WhitenedMuon(module, lr=0.01), nn.Parameter(first.weight.detach().clone())
    with optimizer.measuring():
        module(x)
    first.weight.grad = torch.randn(6, 6)
    weight.grad = first.weight.grad.clone()
    optimizer.step()
    Muon([weight], lr=0.01).step()
    assert torch.equal(first.weight, weight)


def test_constant_and_dead_inputs_stay_finite() -> None:
    """As behind a ReLU that is never active, or of a layer whose outputs never change."""
    x = torch.zeros(50, 6)
    x[:, 0] = 1.0
    layer = nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    step(layer, x, torch.randn(50, 5), damping=1e-4)
    assert layer.weight.isfinite().all() and layer.bias.isfinite().all()
    torch.testing.assert_close(layer.weight.detach(), before, msg="outputs without a spread have none to change")


def test_the_measured_rows_are_spread_over_the_call() -> None:
    """Of many rows some, from the first to the last: inputs that are sorted are measured as they are."""
    rows = 5 * ROWS_PER_CALL
    x = torch.linspace(-1, 1, rows)[:, None].expand(-1, 4) + 0.1 * torch.randn(rows, 4)
    layer = nn.Linear(4, 4)
    optimizer = WhitenedMuon(layer)
    with optimizer.measuring():
        layer(x)
    state = optimizer.state[layer.weight]
    torch.testing.assert_close(state["mean"], x.mean(dim=0), atol=0.02, rtol=0)
    torch.testing.assert_close(state["scale"], layer(x).std(dim=0).detach(), rtol=0.05, atol=0)


def test_forgetting_keeps_the_coordinates_and_drops_the_momentum() -> None:
    x, layer = skewed(), nn.Linear(6, 5)
    optimizer = step(layer, x, torch.randn(400, 5))
    assert "momentum" in optimizer.state[layer.weight]
    optimizer.forget()
    assert set(optimizer.state[layer.weight]) == {"mean", "whitening", "scale"} and not optimizer.state[layer.bias]


def test_the_coordinates_travel_with_the_state() -> None:
    """Through a file: the next step is the same one."""
    x, gradient = skewed(), torch.randn(400, 5)
    layer = nn.Linear(6, 5)
    optimizer = step(layer, x, gradient)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(layer)
    resumed = WhitenedMuon(other, lr=0.01, damping=1e-12)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for one, by in ((layer, optimizer), (other, resumed)):
        one.zero_grad()
        one(x).backward(gradient)
        by.step()
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)
