"""Jets against reverse mode and finite differences."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from eugen3d.layers import EUGenConfig, LinearConfig, LowRankConfig, Sine, fold, make_layer
from eugen3d.layers.jets import Jet, chain_jet

PHIS = ("identity", "relu", "gelu", "softplus", "softplus-100", "sine")


def reverse_mode(chain: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (n, c), gradients (n, d, c) and Laplacians (n, c) by torch."""
    x = x.detach().requires_grad_()
    values, gradients, laplacians = chain(x), [], []
    for column in values.unbind(dim=1):
        (gradient,) = torch.autograd.grad(column.sum(), x, create_graph=True)
        second = [
            torch.autograd.grad(part.sum(), x, retain_graph=True)[0][:, axis]
            for axis, part in enumerate(gradient.unbind(dim=1))
        ]
        gradients.append(gradient)
        laplacians.append(torch.stack(second).sum(dim=0))
    return values.detach(), torch.stack(gradients, dim=-1).detach(), torch.stack(laplacians, dim=-1)


def random_chain(*layers: nn.Module) -> nn.Sequential:
    chain = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return chain


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        *(EUGenConfig(5, order, phi) for order, phi in product((1, 2, 3), PHIS)),
        EUGenConfig(5, 3, "sine", use_norm=False, shared=False),
        EUGenConfig(5, 2, "sine", use_norm=False, projection_rank=2),
        EUGenConfig(5, 2, "gelu", projection_rank=2, bias=False),
    ],
    ids=str,
)
def test_jets_are_what_reverse_mode_gives(config: EUGenConfig, folded: bool) -> None:
    layers = make_layer(config, 3, 7), make_layer(config, 7, 6), make_layer(LowRankConfig(3), 6, 6, "sine")
    chain = random_chain(*layers, make_layer(LinearConfig(), 6, 6, "softplus"), nn.Linear(6, 2))
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = reverse_mode(chain, x)
    if folded:
        chain = fold(copy.deepcopy(chain))
    found = chain_jet(chain, Jet.of(x, laplacian=True))
    for one, other in zip(found, wanted, strict=True):
        assert one is not None and one.shape == other.shape and other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))
    assert chain_jet(chain, Jet.of(x)).laplacian is None


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Softplus(beta=100), Sine(3.0), nn.Identity()])
def test_jets_agree_with_finite_differences(activation: nn.Module) -> None:
    chain = random_chain(nn.Linear(2, 8), activation, nn.Linear(8, 8), Sine(), nn.Linear(8, 1))
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    value, gradient, laplacian = chain_jet(chain, Jet.of(x, laplacian=True))
    assert laplacian is not None
    step = 1e-4
    offsets = step * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        after, before = (torch.stack([chain(x + sign * offset) for offset in offsets], dim=1) for sign in (1, -1))
    torch.testing.assert_close(gradient, (after - before) / (2 * step), rtol=1e-4, atol=1e-6)
    second = ((after - 2 * value[:, None].detach() + before) / step**2).sum(dim=1)
    torch.testing.assert_close(laplacian, second, rtol=1e-3, atol=1e-4)


def test_a_quadratic_by_hand() -> None:
    """x y of x = (x, y): gradient (y, x), Laplacian 0; and x²: 2 x, Laplacian 2."""
    jet = Jet.of(torch.tensor([[2.0, 5.0]]), laplacian=True)
    x, y = jet.entries(0, 1), jet.entries(1, 2)
    xy, xx = x.times(y), x.times(x)
    assert xy.value.item() == 10 and xy.gradient.flatten().tolist() == [5, 2] and xy.laplacian is not None
    assert xx.laplacian is not None
    assert xy.laplacian.item() == 0 and xx.laplacian.item() == 2 and xx.gradient.flatten().tolist() == [4, 0]
    norm = jet.norm()
    assert norm.laplacian is not None
    assert norm.laplacian.item() == pytest.approx(1 / 29**0.5), "(d - 1)/r"
    zero = Jet.of(torch.zeros(1, 2), laplacian=True).norm()
    assert not any(part.any() for part in zero if part is not None)


def test_parameters_get_gradients_through_a_jet() -> None:
    chain = random_chain(nn.Linear(2, 4), Sine(), nn.Linear(4, 1))
    x = torch.randn(5, 2, dtype=torch.float64)
    laplacian = chain_jet(chain, Jet.of(x, laplacian=True)).laplacian
    assert laplacian is not None
    laplacian.square().sum().backward()
    found = [p.grad for p in chain.parameters() if p.grad is not None]
    expected = copy.deepcopy(chain)
    expected.zero_grad()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(expected(x).sum(), x, create_graph=True)
    second = sum(torch.autograd.grad(gradient[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    assert isinstance(second, Tensor)
    second.square().sum().backward()
    wanted = [p.grad for p in expected.parameters() if p.grad is not None]
    assert len(found) == 3, "the last bias has no part in it"
    for one, other in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, other)


def test_a_module_that_is_not_known_is_refused() -> None:
    with pytest.raises(TypeError, match="a chain holds Tanh"):
        chain_jet(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), Jet.of(torch.zeros(1, 2)))
