"""tiny-cuda-nn's backend: refused in one line where it cannot be had or a chain does not fit, packed for it otherwise.

What the packed networks compute is checked beside eager by a stand-in that has tiny-cuda-nn's layout and precision;
with a GPU and tiny-cuda-nn by the real one.
"""

import copy
import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import EUGenConfig, EUGenFeatures, EUGenLinear, LayerConfig
from eugen3d.runtime import AutoModule, TcnnChain, TcnnUnavailable, build, tcnn_chain
from eugen3d.runtime.machine import why_no_cuda

RELATIVE_ERROR = 1e-2
"""Weights, activations and sums in float16, over a few layers."""
BLOCK = 16


def up(size: int) -> int:
    return size + -size % BLOCK


class Network(nn.Module):
    """`tinycudann.Network` as far as its numbers go, on any device: what tiny-cuda-nn has for a FullyFusedMLP.

    Half precision throughout, sums in blocks of 16 products included; input columns beyond those given are 1; matrices
    (outputs, inputs) one after the other, each row after row, input and output sizes padded to multiples of 16; no
    biases. Parameters begin as no numbers, so that all of them must be set.
    """

    def __init__(self, n_input_dims: int, n_output_dims: int, network_config: dict[str, Any]) -> None:
        super().__init__()
        width, hidden = network_config["n_neurons"], network_config["n_hidden_layers"]
        assert network_config["otype"] == "FullyFusedMLP" and width in (16, 32, 64, 128) and hidden >= 1
        assert network_config["activation"] == "ReLU" and network_config["output_activation"] in ("None", "ReLU")
        self.n_input_dims, self.n_output_dims, self.config = n_input_dims, n_output_dims, network_config
        self.shapes = [(width, up(n_input_dims)), *[(width, width)] * (hidden - 1), (up(n_output_dims), width)]
        self.params = nn.Parameter(torch.full((sum(rows * columns for rows, columns in self.shapes),), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and x.shape[1] == self.n_input_dims and not self.params.requires_grad
        h = nn.functional.pad(x, (0, up(self.n_input_dims) - self.n_input_dims), value=1.0).half()
        sizes = [rows * columns for rows, columns in self.shapes]
        for index, (part, shape) in enumerate(zip(self.params.half().split(sizes), self.shapes, strict=True)):
            h = half_product(h, part.reshape(shape))
            if index < len(sizes) - 1 or self.config["output_activation"] == "ReLU":
                h = h.relu()
        return h[:, : self.n_output_dims]


def half_product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ with the sum rounded to half precision after every 16 products."""
    sums = x.new_zeros(len(x), len(weight))
    for columns, rows in zip(x.float().split(BLOCK, dim=1), weight.float().split(BLOCK, dim=1), strict=True):
        sums = (sums.float() + columns @ rows.T).half()
    return sums


TINYCUDANN = ModuleType("tinycudann")
TINYCUDANN.__dict__["Network"] = Network

needs_no_gpu = pytest.mark.skipif(why_no_cuda() is None, reason="there is a CUDA device")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny-cuda-nn as if it were here, and this CPU as if it were a GPU."""
    monkeypatch.setattr(tcnn_chain, "why_no_cuda", lambda: None)
    monkeypatch.setattr(tcnn_chain, "_require_gpu", lambda device: None)
    monkeypatch.setitem(sys.modules, "tinycudann", TINYCUDANN)


def layers(*widths: int, bias: bool = True, last: nn.Module | None = None) -> nn.Sequential:
    """Dense layers with ReLU between them, biases as large as what they are added to."""
    maps: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.normal_(linear.weight, std=(2 / inputs) ** 0.5)
        if bias:
            nn.init.normal_(linear.bias)
        maps += [linear, nn.ReLU()]
    return nn.Sequential(*maps[:-1], *([last] if last else []))


def with_norm(in_features: int, num_features: int, **kind: Any) -> EUGenFeatures:
    made = EUGenFeatures(in_features, num_features, use_norm=True, **kind)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def assert_agrees(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    error = (ours - theirs).norm() / theirs.norm()
    assert error < RELATIVE_ERROR
    assert error > 1e-6, "it was computed in half precision"


def check(chain: nn.Sequential, device: str = "cpu") -> TcnnChain:
    chain = chain.to(device)
    first = next(iter(chain))
    assert isinstance(first, nn.Linear | EUGenFeatures)
    tcnn, x = TcnnChain(chain), torch.randn(70, first.in_features, device=device)
    with torch.no_grad():
        assert_agrees(tcnn(x), chain(x))
    return tcnn


CHAINS = {
    "a width of its own": (layers(16, 63, 63, 4), 64),
    "narrower, padded": (layers(5, 20, 20, 3), 32),
    "unequal widths": (layers(7, 40, 9, 100, 2), 128),
    "the neuron for the biases makes it wider": (layers(6, 64, 64, 5), 128),
    "no biases, no such neuron": (layers(6, 64, 64, 5, bias=False), 64),
    "only the first bias": (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)), 16),
    "one hidden layer": (layers(3, 8, 1), 16),
    "wide input and output": (layers(100, 31, 31, 90), 32),
    "an input of whole blocks": (layers(32, 15, 48), 16),
    "ReLU at the end": (layers(6, 12, 20, last=nn.ReLU()), 16),
    "features": (nn.Sequential(EUGenFeatures(9, 12), EUGenFeatures(12, 15), nn.Linear(15, 4)), 16),
    "the input's norm": (nn.Sequential(with_norm(9, 12), nn.Linear(12, 4)), 16),
    "the norm of a factor": (nn.Sequential(with_norm(9, 12, norm_rank=4), nn.Linear(12, 4)), 16),
    "the norm without biases": (nn.Sequential(with_norm(9, 16, bias=False), nn.Linear(16, 4, bias=False)), 16),
}


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_agrees_with_eager_to_half_precision(name: str) -> None:
    chain, width = CHAINS[name]
    assert check(copy.deepcopy(chain)).width == width


@pytest.mark.cuda
@pytest.mark.skipif(why_no_cuda() is not None, reason="no CUDA device was found")
@pytest.mark.skipif(not importlib.util.find_spec("tinycudann"), reason="tiny-cuda-nn is not installed")
@pytest.mark.parametrize("name", CHAINS)
def test_tiny_cuda_nn_itself_agrees_with_eager(name: str) -> None:
    check(copy.deepcopy(CHAINS[name][0]), "cuda")


@pytest.mark.usefixtures("stand_in")
def test_the_parameters_lie_as_documented() -> None:
    chain = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    for parameter, values in zip(chain.parameters(), ([[2.0, 3.0]], [5.0], [[7.0]], [11.0]), strict=True):
        parameter.data.copy_(torch.tensor(values))
    params = TcnnChain(chain).network.params
    first, last = params.view(2, 16, 16)
    assert first[0, :4].tolist() == [2, 3, 5, 0] and first[15, :4].tolist() == [0, 0, 1, 0]
    assert last[0, 0] == 7 and last[0, 15] == 11
    assert params.count_nonzero() == 6, "all else is padding"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (4,), (3, 5, 4), (2, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_rows_and_axes_in_the_inputs_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    chain, x = layers(4, 8, 6).to(dtype), torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        ours, theirs = TcnnChain(chain)(x), chain(x)
    assert ours.shape == theirs.shape and ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)


@pytest.mark.usefixtures("stand_in")
def test_a_folded_model_is_handed_over() -> None:
    model = nn.Sequential(EUGenLinear(6, 32, 15), EUGenLinear(32, 32, 10, use_norm=False), nn.Linear(32, 4))
    x = torch.randn(50, 6)
    built = build(model, "tcnn")
    assert isinstance(built.module, TcnnChain) and built.module.width == 16
    assert_agrees(built(x), model(x).detach())


@pytest.mark.usefixtures("stand_in")
def test_a_field_is_handed_over_but_for_its_lone_layers(field_config: NerfFieldConfig) -> None:
    eugen = EUGenConfig(num_features=5, use_norm=False)
    config = copy.copy(field_config)
    object.__setattr__(config, "layer", LayerConfig("eugen", eugen))
    field = NerfField(config)
    inputs = torch.randn(50, 3), nn.functional.normalize(torch.randn(50, 3), dim=1)
    built = build(field, "tcnn")
    names = {name for name, part in built.module.named_modules() if isinstance(part, TcnnChain)}
    assert "trunk.0" in names and any(isinstance(part, nn.Linear) for part in built.modules())
    for ours, theirs in zip(built(*inputs), field(*inputs), strict=True):
        assert_agrees(ours, theirs.detach())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (layers(4, 129, 3, bias=False), "a chain takes 129 hidden neurons, expected at most 128"),
        (layers(4, 128, 3), "takes 129 hidden neurons, one of them for the biases, expected at most 128"),
        (nn.Sequential(EUGenFeatures(4, 8, order=2), nn.Linear(16, 3)), "features of order 2, expected order 1"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), with_norm(4, 8), nn.Linear(8, 3)), "a norm after its first layer"),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)), "Φ = gelu between its layers, expected relu"),
        (nn.Sequential(EUGenFeatures(4, 8, phi="sine"), nn.Linear(8, 3)), "Φ = sine between its layers"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), "Φ = identity between its layers, expected relu"),
        (layers(4, 8, 3, last=nn.Softplus()), "a chain ends in Φ = softplus, expected relu or none"),
        (layers(4, 8, 3, last=nn.Tanh()), r"a chain holds Tanh\(\), for which there is no tcnn step"),
        (nn.Sequential(nn.Linear(4, 3)), "a chain has 1 dense layers, expected at least 2"),
        (nn.Sequential(with_norm(4, 8, projection_rank=2), nn.Linear(8, 3)), "a norm and factored projections"),
    ],
)
def test_what_does_not_fit_is_named(chain: nn.Sequential, message: str) -> None:
    with pytest.raises(TcnnUnavailable, match=message) as raised:
        TcnnChain(chain)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("stand_in")
def test_weights_that_half_precision_cannot_hold_are_refused() -> None:
    chain = layers(4, 8, 3)
    nn.init.constant_(chain.get_submodule("2").get_parameter("weight"), 1e5)
    with pytest.raises(TcnnUnavailable, match=r"a weight of 1e\+05, expected at most 65504"):
        TcnnChain(chain)


@pytest.mark.usefixtures("stand_in")
def test_another_kind_of_network_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BLOCK", 8)
    with pytest.raises(TcnnUnavailable, match="tiny-cuda-nn has 256 parameters for a chain, expected 512"):
        TcnnChain(layers(4, 8, 3))


@pytest.mark.usefixtures("stand_in")
def test_a_chain_with_hooks_is_refused() -> None:
    chain = layers(4, 8, 3)
    chain[0].register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(TcnnUnavailable, match="Linear has hooks"):
        TcnnChain(chain)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), "the input has 5 columns, expected 4"),
        (torch.zeros(2, 4, dtype=torch.int64), "the input is torch.int64 on cpu, expected floating point on cpu"),
    ],
)
def test_a_wrong_input_is_named(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TcnnChain(layers(4, 8, 3))(x)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("module", "dtype", "message"),
    [
        (nn.Linear(4, 3), None, "no chain has two dense layers or more"),
        (nn.LayerNorm(4), None, "LayerNorm has no chain of dense layers"),
        (layers(4, 200, 3), None, "a chain takes 201 hidden neurons"),
        (layers(4, 8, 3), torch.float32, "dtype torch.float32 was asked for, tiny-cuda-nn computes in torch.float16"),
    ],
)
def test_a_module_that_does_not_fit_is_one_clear_line(
    module: nn.Module, dtype: torch.dtype | None, message: str
) -> None:
    with pytest.raises(TcnnUnavailable, match=f"^runtime tcnn: {message}"):
        build(module, "tcnn", dtype=dtype)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("dtype", "is_candidate"), [(None, True), (torch.float32, False)])
def test_auto_considers_it_unless_a_precision_is_asked_for(
    dtype: torch.dtype | None, is_candidate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = build(layers(4, 8, 3), dtype=dtype)
    assert isinstance(module, AutoModule)
    assert module._is_available("tcnn", (torch.zeros(2, 4),)) == is_candidate
    assert ("tcnn" in module.unavailable) != is_candidate


def test_not_installed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcnn_chain, "why_no_cuda", lambda: None)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(TcnnUnavailable, match=r"runtime tcnn: tinycudann cannot be imported .* expected tiny-cuda-nn"):
        build(layers(4, 8, 3), "tcnn")


@needs_no_gpu
@pytest.mark.parametrize("module", [layers(4, 8, 3), nn.LayerNorm(3)])
def test_no_gpu_is_one_clear_line(module: nn.Module) -> None:
    with pytest.raises(TcnnUnavailable, match=r"runtime tcnn: no CUDA device was found \(torch .*\), expected one"):
        build(module, "tcnn")


def test_parameters_on_a_cpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcnn_chain, "why_no_cuda", lambda: None)
    monkeypatch.setitem(sys.modules, "tinycudann", TINYCUDANN)
    with pytest.raises(TcnnUnavailable, match="parameters on cpu, expected a CUDA device"):
        TcnnChain(layers(4, 8, 3))
