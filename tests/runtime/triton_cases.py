"""What the Triton kernel computes beside eager: run by `test_triton.py`, in a process of its own.

Under the interpreter on the CPU where TRITON_INTERPRET=1 is set before Triton is imported, else on the GPU. Products
are float32's own (no TF32), so float32 agrees to rounding; bfloat16 and float16 round inputs, weights and what passes
between layers to 8 and 11 bits.
"""

import copy
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import EUGenConfig, EUGenFeatures, EUGenLinear, LayerConfig, LowRankConfig, Sine, fold
from eugen3d.runtime import AutoModule, TritonChain, TritonUnavailable, build
from eugen3d.runtime.chains import CastChain

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
FLOAT32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
ROUNDING = 4 if DEVICE == "cpu" else 1.2
"""Errors in bfloat16 beside eager's: the interpreter cuts off what a GPU rounds, twice the error and to one side."""
RELATIVE_ERRORS = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


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
    chain, x = chain.to(DEVICE), x.to(DEVICE)
    ours, theirs = TritonChain(chain)(x), eager64(chain, x)
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
def test_every_phi_agrees_with_eager_and_the_norm_behind_it(phi: Any) -> None:
    """Softplus turns the zeros of a tile that is not full into ln 2, which may not count in the norm."""
    chain = nn.Sequential(features(9, 18, order=2, phi=phi), features(36, 5, use_norm=True))
    assert_agrees(chain, torch.randn(60, 9))


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.Softplus(), nn.Softplus(beta=100), Sine(), nn.Identity()]
)
def test_every_activation_agrees_with_eager(activation: nn.Module) -> None:
    assert_agrees(nn.Sequential(nn.Linear(6, 20), activation), 20 * torch.randn(60, 6))


def test_softplus_is_accurate_far_below_zero() -> None:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    x = torch.linspace(-30, 30, 61, device=DEVICE)[:, None]
    chain = nn.Sequential(linear, nn.Softplus()).to(DEVICE)
    torch.testing.assert_close(TritonChain(chain)(x).double(), eager64(chain, x), rtol=5e-4, atol=0)


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 33, 64, 65, 130, 256])
def test_widths_need_not_be_whole_tiles(width: int) -> None:
    assert_agrees(nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width)), torch.randn(49, 5))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (127, 4), (128, 4), (300, 4), (4,), (3, 5, 4), (2, 0, 4)])
def test_any_number_of_rows_and_axes(shape: tuple[int, ...]) -> None:
    assert_agrees(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(shape))


def test_an_input_need_not_be_contiguous() -> None:
    assert_agrees(nn.Sequential(nn.Linear(4, 8)), torch.randn(4, 30).T)
    assert_agrees(nn.Sequential(nn.Linear(4, 8)), torch.randn(30, 9)[::2, 1::2])


def test_a_dense_layer_needs_no_bias() -> None:
    assert_agrees(nn.Sequential(nn.Linear(4, 8, bias=False), features(8, 3, bias=False)), torch.randn(10, 4))


@pytest.mark.parametrize("in_features", [4, 20, 70])
@pytest.mark.parametrize("kind", ["linear", "norm", "factor"])
def test_a_skip_connection_sees_the_input_again(in_features: int, kind: str) -> None:
    first, width = nn.Linear(in_features, 40), in_features + 40
    norm = {"use_norm": True, "norm_rank": 3 if kind == "factor" else 0}
    second = (nn.Linear(width, 5) if kind == "linear" else features(width, 5, **norm)).to(DEVICE)
    first, x = first.to(DEVICE), torch.randn(50, in_features, device=DEVICE)
    chain = TritonChain(nn.Sequential(first, nn.ReLU(), second), concatenates=(2,))
    expected = eager64(second, torch.cat([x.double(), eager64(first, x).relu()], dim=-1))
    torch.testing.assert_close(chain(x).double(), expected, **FLOAT32)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Softplus(), nn.Softplus(beta=100)])
def test_nan_and_infinity_go_where_torch_sends_them(activation: nn.Module) -> None:
    linear = nn.Linear(1, 1)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    chain = nn.Sequential(linear, activation).to(DEVICE)
    x = torch.tensor([[float("nan")], [float("inf")], [float("-inf")], [2.0]], device=DEVICE)
    expected = eager64(chain, x)
    assert expected[0].isnan() and expected[1].isinf(), "the canary: torch itself lets them through"
    torch.testing.assert_close(TritonChain(chain)(x).double(), expected, equal_nan=True)


def test_a_row_of_nan_stays_among_itself() -> None:
    chain, x = nn.Sequential(features(4, 8, use_norm=True), nn.Linear(8, 3)).to(DEVICE), torch.randn(20, 4)
    x[7, 2] = float("nan")
    y = TritonChain(chain)(x.to(DEVICE)).cpu()
    assert y[7].isnan().all() and y[torch.arange(20) != 7].isfinite().all()


def test_a_norm_that_overflows_times_a_zero_weight_is_nothing() -> None:
    chain, x = nn.Sequential(EUGenFeatures(2, 1, use_norm=True)).to(DEVICE), torch.tensor([[1e30, 0.0]], device=DEVICE)
    expected = chain(x).detach()
    assert expected.isfinite().all()
    torch.testing.assert_close(TritonChain(chain)(x), expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("width", [15, 16, 70])
@pytest.mark.parametrize("dtype", list(RELATIVE_ERRORS))
@pytest.mark.parametrize("is_input_cast", [True, False])
def test_half_precisions_agree_to_their_rounding(
    order: int, width: int, dtype: torch.dtype, is_input_cast: bool
) -> None:
    chain = nn.Sequential(features(9, width, order=order, use_norm=True), nn.Linear(order * width, 7)).to(DEVICE)
    x = torch.randn(50, 9, device=DEVICE).to(dtype if is_input_cast else torch.float32)
    ours, theirs = TritonChain(chain, dtype)(x), eager64(chain, x)
    assert ours.dtype == x.dtype
    error = (ours - theirs).norm() / theirs.norm()
    assert 1e-5 < error < RELATIVE_ERRORS[dtype], "computed in that precision, and no worse"
    torch.testing.assert_close(TritonChain(copy.deepcopy(chain).to(dtype))(x), ours, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("projection_rank", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_eugen_chains_agree_with_eager(order: int, projection_rank: int | None, dtype: torch.dtype) -> None:
    """Of a NeRF's shape: 63 encoded coordinates through thin layers, one of factored projections, to 4 outputs."""
    kind = {"order": order, "use_norm": projection_rank is None, "projection_rank": projection_rank}
    layers = [EUGenLinear(63, 96, 24), EUGenLinear(96, 96, 24, **kind), EUGenLinear(96, 96, 48, order=order)]
    chain = fold(nn.Sequential(*layers, nn.Linear(96, 4))).to(DEVICE)
    assert isinstance(chain, nn.Sequential)
    x = torch.randn(70, 63, device=DEVICE)
    triton, expected = TritonChain(chain, dtype), eager64(chain, x)
    assert len(triton.steps) >= 4
    error = (triton(x) - expected).norm() / expected.norm()
    if dtype == torch.float32:
        assert 0 < error < 1e-5
    else:  # five layers round, squares double the error: no worse than eager in that precision
        eager_error = (CastChain(copy.deepcopy(chain), dtype)(x) - expected).norm() / expected.norm()
        assert 1e-4 < error < ROUNDING * eager_error


@pytest.mark.parametrize("kind", ["linear", "eugen", "low-rank"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_a_field_agrees_with_eager(kind: Any, order: int, count: int) -> None:
    layer = LayerConfig(kind, EUGenConfig(num_features=20, order=order), LowRankConfig(8))
    field = NerfField(NerfFieldConfig(num_layers=5, layer_width=72, view_width=40, layer=layer)).to(DEVICE)
    inputs = torch.randn(count, 3), nn.functional.normalize(torch.randn(count, 3), dim=1)
    inputs = inputs[0].to(DEVICE), inputs[1].to(DEVICE)
    built = build(field, "triton", tile_rows=64)
    assert sum(isinstance(part, TritonChain) for part in built.modules()) == 5  # the trunk is one chain, or two
    for ours, theirs in zip(built(*inputs), field(*inputs), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **FLOAT32)
    assert not any(isinstance(part, TritonChain) for part in field.modules()), "the module itself stays as it is"


def test_bfloat16_fields_keep_the_callers_dtype() -> None:
    field = NerfField(NerfFieldConfig(num_layers=4, skip=2, layer_width=40, view_width=20)).to(DEVICE)
    inputs = torch.randn(50, 3, device=DEVICE), torch.randn(50, 3, device=DEVICE)
    for ours, theirs in zip(build(field, "triton", dtype=torch.bfloat16)(*inputs), field(*inputs), strict=True):
        assert ours.dtype == torch.float32
        assert 1e-6 < (ours - theirs).norm() / theirs.norm() < RELATIVE_ERRORS[torch.bfloat16]


def test_what_has_no_step_is_evaluated_between() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 600), nn.ReLU(), nn.Linear(600, 3)).to(DEVICE)
    built, x = build(module, "triton"), torch.randn(40, 6, device=DEVICE)
    kinds = [type(part) for part in built.module.children()]
    assert kinds == [TritonChain, nn.Tanh, nn.Linear, nn.ReLU, nn.Linear], "600 columns are too many"
    torch.testing.assert_close(built(x), module(x), **FLOAT32)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh()), r"a chain holds Tanh\(\), for which there is no triton step"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), "ReLU does not follow a dense layer"),
        (nn.Sequential(nn.Linear(3, 513)), r"a chain holds a matrix \(513, 3\), expected at most 512"),
        (nn.Sequential(), "a chain has no maps"),
        (nn.Sequential(nn.Linear(3, 3)).double(), "torch.float64 parameters, expected torch.float32"),
        (nn.Sequential(nn.Linear(3, 3, device="meta")), "parameters on meta, expected a CUDA device"),
    ],
)
def test_what_has_no_step_is_named(chain: nn.Sequential, message: str) -> None:
    if not any(parameter.is_meta for parameter in chain.parameters()):
        chain = chain.to(DEVICE)
    with pytest.raises(TritonUnavailable, match=message):
        TritonChain(chain)


def test_a_module_without_a_step_is_an_error() -> None:
    with pytest.raises(TritonUnavailable, match="runtime triton: LayerNorm has no chain of dense layers"):
        build(nn.LayerNorm(3).to(DEVICE), "triton")


def test_widths_that_do_not_fit_together_are_named() -> None:
    chain = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 6)).to(DEVICE)
    with pytest.raises(ValueError, match="map 1 of a chain takes 5 columns, what comes before has 4"):
        TritonChain(chain)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 4, device=DEVICE), "the input has 4 columns, expected 3"),
        (
            torch.zeros(2, 3, dtype=torch.int64, device=DEVICE),
            "the input is torch.int64 on .*, expected floating point",
        ),
        (torch.zeros(2, 3, device="meta"), "on meta, expected"),
    ],
)
def test_a_wrong_input_is_named(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TritonChain(nn.Sequential(nn.Linear(3, 3)).to(DEVICE))(x)


def test_a_copy_computes_the_same() -> None:
    chain, x = TritonChain(nn.Sequential(nn.Linear(3, 3)).to(DEVICE)), torch.randn(5, 3, device=DEVICE)
    assert torch.equal(copy.deepcopy(chain)(x), chain(x))
    assert not chain.state_dict(), "the packed weights are no checkpoint's"


def test_auto_takes_no_interpreter() -> None:
    if DEVICE != "cpu":
        pytest.skip("there is a GPU: auto may choose it")
    module = build(nn.Sequential(nn.Linear(3, 3)))
    assert isinstance(module, AutoModule)
    with pytest.raises(TritonUnavailable, match="interpreter is on, expected a CUDA device"):
        module._makers["triton"]()
