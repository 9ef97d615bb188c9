"""Chains evaluated through merged matrices: the same values and gradients, fewer products, and nothing kept wide."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eugen3d import (
    EUGenConfig,
    EUGenLinear,
    LowRankConfig,
    SineConfig,
    SineLinear,
    SNNKConfig,
    fold,
    forward_merged,
)
from eugen3d.layers import Deferred, KindConfig, make_layer
from eugen3d.layers.eugen_features import EUGenFeatures

WIDTH = 40
CONFIGS: dict[str, KindConfig] = {
    "order 1": EUGenConfig(8),
    "without norm": EUGenConfig(8, use_norm=False),
    "without bias": EUGenConfig(8, bias=False),
    "order 2": EUGenConfig(6, order=2, phi="gelu"),
    "independent": EUGenConfig(4, order=3, shared=False, phi="softplus"),
    "sine": EUGenConfig(8, order=2, phi="sine"),
    "identity": EUGenConfig(8, phi="identity", use_norm=False),
    "factored": EUGenConfig(8, order=2, projection_rank=4, use_norm=False),
    "factored with norm": EUGenConfig(8, projection_rank=4),
    "low rank": LowRankConfig(5),
    "high rank": LowRankConfig(30),
    "snnk": SNNKConfig(8),
    "snnk fourier": SNNKConfig(8, "fourier", train_projections=True),
    "siren": SineConfig(1.5),
}


def randomise(chain: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.normal_(std=0.3)
    return chain


def chain_of(config: KindConfig, num_layers: int = 3) -> nn.Sequential:
    """Into the width, layers of a kind, and out again, in float64; every parameter drawn anew."""
    hidden = [layer for _ in range(num_layers) for layer in make_layer(config, WIDTH, WIDTH)]
    chain = nn.Sequential(nn.Linear(5, WIDTH), nn.ReLU(), *hidden, nn.Linear(WIDTH, 3)).double()
    randomise(chain)
    return chain


def inputs(*batch: int) -> Tensor:
    return torch.randn(*batch, 5, dtype=torch.float64)


def flops(call: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        call().sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_values_and_gradients_are_those_of_the_chain(config: KindConfig) -> None:
    chain = chain_of(config)
    leaves = [inputs(200).requires_grad_(), *(p for p in chain.parameters() if p.requires_grad)]
    found = [
        (y, torch.autograd.grad(y.square().mean(), leaves))
        for y in (forward_merged(chain, leaves[0]), chain(leaves[0]))
    ]
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.any() for gradient in found[0][1])


@pytest.mark.parametrize("name", ["order 1", "without norm", "order 2", "factored with norm", "high rank", "snnk"])
def test_a_batch_takes_fewer_products_and_few_rows_take_no_more(name: str) -> None:
    chain = chain_of(CONFIGS[name])
    for rows, least_saved in ((2000, 0.3), (2, 0.0)):
        x = inputs(rows)
        merged, plain = flops(lambda x=x: forward_merged(chain, x)), flops(lambda x=x: chain(x))
        assert merged <= (1 - least_saved) * plain


def test_the_products_are_those_of_the_folded_chain() -> None:
    """Beyond the rows, only the forming of the three products in the middle and of the last one is left."""
    chain, rows = chain_of(EUGenConfig(8, use_norm=False)), 10_000
    folded = fold(copy.deepcopy(chain))
    forming = 3 * 2 * (2 * 8 * WIDTH * 8 + 3 * WIDTH * 8)  # G W₁ and its two derivatives; biases are no matrices
    x = inputs(rows)
    assert flops(lambda: forward_merged(chain, x)) == flops(lambda: folded(x)) + forming


def test_nothing_as_wide_as_the_layers_is_kept_between_them() -> None:
    layers = nn.Sequential(*(EUGenLinear(WIDTH, WIDTH, 4, use_norm=norm) for norm in (False, True, False)))
    x = torch.randn(1000, WIDTH)
    kept: dict[str, list[int]] = {}
    for name, call in (("merged", lambda: forward_merged(layers, x)), ("plain", lambda: layers(x))):
        widths = kept.setdefault(name, [])

        def pack(saved: Tensor, widths: list[int] = widths) -> Tensor:
            widths.extend([saved.shape[1]] if saved.shape[:1] == (1000,) and saved.data_ptr() != x.data_ptr() else [])
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            call()
    assert max(kept["merged"]) <= 5 and max(kept["plain"]) == WIDTH


@pytest.mark.parametrize("name", ["order 1", "order 2", "factored with norm", "sine"])
def test_derivatives_of_first_and_second_order_in_the_input(name: str) -> None:
    chain = nn.Sequential(*list(chain_of(CONFIGS[name], 2))[2:])
    for part in chain.modules():
        if isinstance(part, EUGenFeatures):
            part.phi = "softplus"  # ReLU has no second derivative
    x, weights = torch.randn(40, WIDTH, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    assert flops(lambda: forward_merged(chain, x)) < flops(lambda: chain(x))

    def evaluate(scale: Tensor) -> Tensor:
        """All rows scaled alike, column by column: enough rows to merge, and few variables."""
        return weights @ forward_merged(chain, x * scale)

    scale = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(evaluate, (scale,))
    assert torch.autograd.gradgradcheck(evaluate, (scale,))


def test_a_loss_on_the_inputs_gradient_reaches_the_parameters() -> None:
    """As the eikonal one does: the mixed second derivatives, through the norm of what is not formed."""
    chain = chain_of(EUGenConfig(8, phi="softplus"))
    x = inputs(300).requires_grad_()
    constants = ("4.readout.bias", "5.bias")
    parameters = [p for name, p in chain.named_parameters() if name not in constants]
    found = []
    for y in (forward_merged(chain, x), chain(x)):
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad((slope.norm(dim=1) - 1).square().mean(), parameters))
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.any() for gradient in found[0])


@pytest.mark.parametrize("spoil", ["bias", "weight", "both"])
def test_the_norm_of_a_readout_short_of_rank_has_finite_gradients(spoil: str) -> None:
    """Readouts start without a bias; where all is zero, the norm's derivative is, as in `input_norm`."""
    first = EUGenLinear(WIDTH, WIDTH, 4)
    layers = nn.Sequential(first, EUGenLinear(WIDTH, 3, 4)).double()
    randomise(layers)
    with torch.no_grad():
        first.readout.bias.zero_()
        if spoil == "weight":
            first.readout.weight[:, 1] = first.readout.weight[:, 0]
        if spoil == "both":
            first.readout.weight.zero_()
    x = torch.randn(100, WIDTH, dtype=torch.float64)
    found = [
        (y, torch.autograd.grad(y.square().sum(), list(layers.parameters())))
        for y in (forward_merged(layers, x), layers(x))
    ]
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1][0].isfinite().all()


def test_the_norm_is_as_precise_as_the_readouts_columns_allow() -> None:
    """Of large columns a thousandth is left: the quadratic form in their products would lose it in float32."""
    first, second = EUGenLinear(200, 200, 8), EUGenLinear(200, 1, 1, phi="identity")
    layers, readout = nn.Sequential(first, second), first.readout
    assert second.features.norm_weight is not None
    with torch.no_grad():
        readout.weight[:, 0] = 1e4 * torch.randn(200)
        readout.bias.copy_(-readout.weight[:, 0])
        first.features.projection.weight[0] = 0
        first.features.projection.bias[0] = 1.001  # the first feature, so that 0.001 of its column is left
        second.features.projection.weight.zero_()
        second.features.norm_weight.fill_(1.0)
        second.readout.weight.fill_(1.0)
    x = torch.randn(400, 200)
    assert flops(lambda: forward_merged(layers, x)) < flops(lambda: layers(x)), "the output is not formed"
    with torch.no_grad():
        exact = copy.deepcopy(layers).double()(x.double())
        found = forward_merged(layers, x).double()
        matrix = torch.cat([readout.weight, readout.bias[:, None]], dim=1)
        z = torch.cat([first.features(x), torch.ones(400, 1)], dim=1)
        quadratic = ((z @ (matrix.T @ matrix)) * z).sum(dim=1, keepdim=True).clamp(min=0).sqrt().double()
        error, quadratic_error = (((y - exact).abs().max() / exact.max()).item() for y in (found, quadratic))
    assert error < 1e-3 and quadratic_error > 20 * error


def test_training_takes_the_same_course() -> None:
    chains = [chain_of(EUGenConfig(8)), chain_of(EUGenConfig(8))]
    chains[1].load_state_dict(chains[0].state_dict())
    start, x = copy.deepcopy(chains[0].state_dict()), inputs(100)
    for chain, evaluate in zip(chains, (lambda c: forward_merged(c, x), lambda c: c(x)), strict=True):
        optimizer = torch.optim.SGD(chain.parameters(), lr=1e-4)
        for _ in range(20):
            optimizer.zero_grad()
            evaluate(chain).square().mean().backward()
            optimizer.step()
    trained = [chain.state_dict() for chain in chains]
    torch.testing.assert_close(trained[0], trained[1])
    assert not torch.allclose(trained[0]["2.readout.weight"], start["2.readout.weight"])


@pytest.mark.parametrize("batch", [(), (0,), (3, 50)])
def test_leading_axes_are_kept(batch: tuple[int, ...]) -> None:
    chain = chain_of(EUGenConfig(4))
    x = inputs(*batch)
    torch.testing.assert_close(forward_merged(chain, x), chain(x))


def test_parts_side_by_side_are_merged_one_by_one() -> None:
    """A readout beside the encoding, as after a skip connection, and a tensor that is formed."""
    before, after = EUGenLinear(5, WIDTH, 4).double(), EUGenLinear(5 + WIDTH + 2, 3, 4).double()
    randomise(before)
    randomise(after)
    x, raw = inputs(300), torch.randn(300, 2, dtype=torch.float64)
    value = Deferred.cat([Deferred.of(x), Deferred.of(x).through(before), Deferred.of(raw)])
    expected = torch.cat([x, before(x), raw], dim=1)
    torch.testing.assert_close(value.form(), expected)
    torch.testing.assert_close(value.through(after).form(), after(expected))
    assert [part.z.shape[1] for part in value.parts] == [5, 4, 2], "the readout is not formed"


def test_hooks_are_called_and_unknown_modules_are_too() -> None:
    called: list[str] = []
    chain = chain_of(EUGenConfig(8))
    chain.insert(3, nn.LayerNorm(WIDTH, dtype=torch.float64))
    for name in ("2.readout", "4.features.projection", "5"):
        chain.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    x = inputs(200)
    torch.testing.assert_close(forward_merged(chain, x), chain(x))
    assert called == 2 * ["2.readout", "4.features.projection", "5"]
    called.clear()
    chain.register_forward_hook(lambda *_: called.append("whole"))
    forward_merged(chain, x)
    assert called[-1] == "whole"


def test_a_subclass_with_a_forward_of_its_own_is_called() -> None:
    class Doubled(SineLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    chain = nn.Sequential(EUGenLinear(WIDTH, WIDTH, 4), Doubled(WIDTH, WIDTH)).double()
    x = torch.randn(200, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(forward_merged(chain, x), chain(x))


def test_a_readout_is_merged_into_a_sine_layer_whose_own_parameters_learn() -> None:
    sine = SineLinear(WIDTH, 16, 3.0)
    chain = nn.Sequential(EUGenLinear(WIDTH, WIDTH, 4), sine)
    x = torch.randn(500, WIDTH)
    assert flops(lambda: forward_merged(chain, x)) < flops(lambda: chain(x))
    chain.zero_grad()
    forward_merged(chain, x).sum().backward()
    assert sine.linear.weight.grad is not None and sine.linear.weight.grad.any()


@pytest.mark.parametrize("use_norm", [False, True])
def test_autocast_multiplies_the_matrices_in_full_precision(use_norm: bool) -> None:
    chain = chain_of(EUGenConfig(8, use_norm=use_norm)).float()
    x = inputs(400).float()
    exact = chain(x)
    with torch.autocast("cpu", torch.bfloat16):
        merged, plain = forward_merged(chain, x), chain(x)
    assert merged.dtype == plain.dtype == torch.bfloat16
    errors = [((y.float() - exact).norm() / exact.norm()).item() for y in (merged, plain)]
    assert 0 < errors[0] < 0.03 and errors[0] < 2 * errors[1]
    merged.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in chain.parameters())


@pytest.mark.parametrize("use_norm", [False, True])
def test_bfloat16_parameters(use_norm: bool) -> None:
    chain = chain_of(EUGenConfig(8, use_norm=use_norm))
    exact, x = copy.deepcopy(chain), inputs(400)
    found = forward_merged(chain.bfloat16(), x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert 0 < (found.double() - exact(x)).norm() / exact(x).norm() < 0.05


def test_it_compiles_to_one_graph() -> None:
    """In a process of its own: the tests' run-time checks wrap functions into what cannot be compiled."""
    program = """
import torch
from torch import nn
from eugen3d import EUGenConfig, SineConfig, forward_merged
from eugen3d.layers import make_layer

for config in (EUGenConfig(8), EUGenConfig(8, order=2, projection_rank=4), SineConfig(1.5)):
    torch._dynamo.reset()
    chain = nn.Sequential(nn.Linear(5, 40), *make_layer(config, 40, 40), *make_layer(config, 40, 40)).double()
    x = torch.randn(300, 5, dtype=torch.float64)
    found = []
    for run in (torch.compile(lambda x: forward_merged(chain, x), fullgraph=True, backend="aot_eager"), chain):
        y = run(x)
        found.append((y, torch.autograd.grad(y.square().sum(), list(chain.parameters()))))
    torch.testing.assert_close(found[0], found[1])
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
