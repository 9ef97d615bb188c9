"""The native runtime computes what eager does, or says why it cannot."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen3d.layers import EUGenFeatures, EUGenLinear, Sine
from eugen3d.runtime import NativeChain, NativeUnavailable
from eugen3d.runtime import library as library_module
from eugen3d.runtime.library import load_library

FLOAT32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
BFLOAT16_RELATIVE_ERROR = 2e-2
"""Two maps that round inputs and weights to 8 bits; sums are float32."""


@pytest.fixture
def fresh_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder and nothing loaded; what other tests have loaded stays for them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_library.cache_clear()
    yield tmp_path / "eugen3d"
    load_library.cache_clear()


@pytest.fixture
def has_bfloat16() -> None:
    if not load_library().chain_has_bfloat16():
        pytest.skip("this processor has no bfloat16 products")


def eager64(chain: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(chain).double()(x.double())


def features(in_features: int, num_features: int, **kind: Any) -> EUGenFeatures:
    """Features whose every parameter takes part, the norm's column included."""
    made = EUGenFeatures(in_features, num_features, **kind)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def assert_agrees(chain: nn.Sequential, x: Tensor) -> None:
    ours, theirs = NativeChain(chain)(x), eager64(chain, x)
    assert ours.shape == theirs.shape and ours.dtype == x.dtype
    torch.testing.assert_close(ours.double(), theirs, **FLOAT32)
    assert ours.numel() < 2 or ours.std() > 1e-3, "something has to be computed"


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("norm", ["none", "input", "factor"])
def test_features_agree_with_eager(order: int, shared: bool, norm: str) -> None:
    kind = {"order": order, "shared": shared, "use_norm": norm != "none", "norm_rank": 7 if norm == "factor" else 0}
    assert_agrees(nn.Sequential(features(13, 21, **kind), nn.Linear(order * 21, 5)), torch.randn(50, 13))


@pytest.mark.parametrize("phi", ["identity", "relu", "gelu", "softplus", "softplus-100", "sine"])
def test_every_phi_agrees_with_eager(phi: Any) -> None:
    assert_agrees(nn.Sequential(features(9, 18, order=2, phi=phi)), 3 * torch.randn(60, 9))


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.Softplus(), nn.Softplus(beta=100), Sine(), nn.Identity()]
)
def test_every_activation_agrees_with_eager(activation: nn.Module) -> None:
    linear = nn.Linear(6, 20)
    assert_agrees(nn.Sequential(linear, activation), 20 * torch.randn(60, 6))


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 33, 64, 65, 130])
def test_widths_need_not_be_whole_vectors(width: int) -> None:
    assert_agrees(nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width)), torch.randn(49, 5))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (47, 4), (48, 4), (97, 4), (4,), (3, 5, 4), (2, 0, 4)])
def test_any_number_of_rows_and_axes(shape: tuple[int, ...]) -> None:
    assert_agrees(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(shape))


def test_an_input_need_not_be_contiguous() -> None:
    chain = nn.Sequential(nn.Linear(4, 8))
    assert_agrees(chain, torch.randn(4, 30).T)
    assert_agrees(chain, torch.randn(30, 9)[::2, 1::2])


def test_a_dense_layer_needs_no_bias() -> None:
    assert_agrees(nn.Sequential(nn.Linear(4, 8, bias=False), features(8, 3, bias=False)), torch.randn(10, 4))


@pytest.mark.parametrize("second", [nn.Linear(4 + 8, 5), features(4 + 8, 5, use_norm=True)])
def test_a_skip_connection_sees_the_input_again(second: nn.Module) -> None:
    first, x = nn.Linear(4, 8), torch.randn(50, 4)
    chain = NativeChain(nn.Sequential(first, nn.ReLU(), second), concatenates=(2,))
    expected = eager64(second, torch.cat([x.double(), eager64(first, x).relu()], dim=-1))
    torch.testing.assert_close(chain(x).double(), expected, **FLOAT32)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Softplus(), nn.Softplus(beta=100)])
def test_nan_and_infinity_go_where_torch_sends_them(activation: nn.Module) -> None:
    linear = nn.Linear(1, 1)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    chain = nn.Sequential(linear, activation)
    x = torch.tensor([[float("nan")], [float("inf")], [float("-inf")], [2.0]])
    expected = eager64(chain, x)  # in float32 torch's own vectors make NaN of GELU(inf)
    assert expected[0].isnan() and expected[1].isinf(), "the canary: torch itself lets them through"
    torch.testing.assert_close(NativeChain(chain)(x).double(), expected, equal_nan=True)


def test_a_row_of_nan_stays_among_itself() -> None:
    chain, x = nn.Sequential(features(4, 8, use_norm=True), nn.Linear(8, 3)), torch.randn(20, 4)
    x[7, 2] = float("nan")
    y = NativeChain(chain)(x)
    assert y[7].isnan().all() and y[torch.arange(20) != 7].isfinite().all()


def test_a_norm_that_overflows_times_a_zero_weight_is_nothing() -> None:
    chain = nn.Sequential(EUGenFeatures(2, 1, use_norm=True))
    x = torch.tensor([[1e30, 0.0]])
    expected = chain(x).detach()
    assert expected.isfinite().all()
    torch.testing.assert_close(NativeChain(chain)(x), expected)


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("width", [15, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_agrees_to_its_rounding(order: int, width: int, dtype: torch.dtype) -> None:
    chain = nn.Sequential(features(9, width, order=order, use_norm=True), nn.Linear(order * width, 7))
    x = torch.randn(50, 9).to(dtype)
    ours, theirs = NativeChain(chain, torch.bfloat16)(x), eager64(chain, x)
    assert ours.dtype == dtype
    error = (ours - theirs).norm() / theirs.norm()
    assert error < BFLOAT16_RELATIVE_ERROR
    assert error > 1e-5, "it was computed in bfloat16"


def test_threads_do_not_change_the_numbers() -> None:
    chain, x = NativeChain(nn.Sequential(features(9, 20, order=2), nn.Linear(40, 7))), torch.randn(1000, 9)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(chain(x))
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh()), r"a chain holds Tanh\(\), for which there is no native step"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU("tanh")), "a chain holds GELU"),
        (nn.Sequential(nn.Linear(3, 3), nn.Softplus(2.0)), "a chain holds Softplus"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), "ReLU does not follow a dense layer"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.GELU()), "GELU does not follow a dense layer"),
        (nn.Sequential(nn.ReLU()), "ReLU does not follow a dense layer"),
        (nn.Sequential(), "a chain has no maps"),
        (nn.Sequential(nn.Linear(3, 3), Sine(30.0)), "a chain holds Sine"),
        (nn.Sequential(features(3, 4), nn.ReLU()), "ReLU does not follow"),
        (nn.Sequential(features(3, 4, use_norm=True, projection_rank=2)), "a norm and factored projections"),
        (nn.Sequential(nn.Linear(3, 3)).double(), "torch.float64 parameters, expected torch.float32 or"),
        (nn.Sequential(nn.Linear(3, 3, device="meta")), "parameters on meta, expected a CPU"),
    ],
)
def test_what_has_no_step_is_named(chain: nn.Sequential, message: str) -> None:
    with pytest.raises(NativeUnavailable, match=message):
        NativeChain(chain)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0", "Linear has hooks, which would not be called"),
        ("1", "EUGenLinear has hooks, which would be lost"),
        ("1.features.projection", "EUGenFeatures has hooks, which would not be called"),
        ("", "Sequential has hooks, which would be lost"),
    ],
)
def test_hooks_are_refused(name: str, message: str) -> None:
    chain = nn.Sequential(nn.Linear(3, 3), EUGenLinear(3, 3))
    chain.get_submodule(name).register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(NativeUnavailable, match=message):
        NativeChain(chain)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4), "the input has 4 columns, expected 3"),
        (torch.zeros(2, 3, dtype=torch.int64), "the input is torch.int64 on cpu, expected floating point on a CPU"),
        (torch.zeros(2, 3, device="meta"), "on meta, expected"),
    ],
)
def test_a_wrong_input_is_named(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NativeChain(nn.Sequential(nn.Linear(3, 3)))(x)


def test_it_cannot_be_copied() -> None:
    with pytest.raises(TypeError, match="build it anew"):
        copy.deepcopy(NativeChain(nn.Sequential(nn.Linear(3, 3))))


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("no-such-compiler", "the compiler no-such-compiler does not run"), ("false", "failed with exit code 1: nothing")],
)
def test_a_compiler_that_fails_is_one_clear_line(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, message: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NativeUnavailable, match=message) as raised:
        load_library()
    assert "\n" not in str(raised.value)
    assert not list(fresh_library.iterdir()), "nothing is left behind"


def test_a_compiled_library_is_kept(fresh_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(command: list[str], **arguments: Any) -> Any:
        calls.append(command)
        return run(command, **arguments)

    run = subprocess.run
    monkeypatch.setattr(library_module.subprocess, "run", counted)
    load_library()
    load_library.cache_clear()
    load_library()
    assert len(calls) == 1 and len(list(fresh_library.glob("*.so"))) == 1


def test_a_damaged_library_is_named(fresh_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "_fingerprint", lambda source, command: "damaged")
    fresh_library.mkdir()
    (fresh_library / "chain-damaged.so").write_bytes(b"nothing")
    with pytest.raises(NativeUnavailable, match=r"chain-damaged\.so cannot be loaded .* remove it"):
        load_library()
