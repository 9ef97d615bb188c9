"""Every backend evaluates what eager does; what stands in for it is said."""

import copy
import warnings
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import (
    EUGenConfig,
    EUGenFeatures,
    EUGenLinear,
    LayerConfig,
    LowRankConfig,
    SineConfig,
    SNNKConfig,
    fold,
)
from eugen3d.runtime import (
    Backend,
    NativeChain,
    RuntimeFallbackWarning,
    TcnnUnavailable,
    TiledModule,
    TritonUnavailable,
    build,
)
from eugen3d.runtime.chains import CastChain, replace_chains
from eugen3d.runtime.library import load_library

FLOAT32: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
BFLOAT16_RELATIVE_ERROR = 2e-2


class Residual(nn.Module):
    """x + chain(x), the same chain twice, and a lone dense layer: a data flow of its own around plain chains."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Sequential(nn.Linear(6, 20), nn.ReLU()), EUGenLinear(20, 6, 5, order=2))
        self.again = self.chain
        self.lone = nn.Linear(6, 6)
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        return self.lone(x + self.again(x + self.chain(x)))


def rays(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3), nn.functional.normalize(torch.randn(count, 3), dim=1)


def natives(module: nn.Module) -> list[NativeChain]:
    return [part for part in module.modules() if isinstance(part, NativeChain)]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.fixture
def small_norm_field(field_config: NerfFieldConfig) -> NerfField:
    """A field whose norm columns take part."""
    field = NerfField(field_config)
    for name, parameter in field.named_parameters():
        if name.endswith("norm_weight"):
            nn.init.normal_(parameter, std=0.3)
    return field


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", get_args(Backend))
def test_every_backend_agrees_with_eager(small_norm_field: NerfField, backend: Any) -> None:
    device = "cuda" if backend in ("triton", "tcnn") and torch.cuda.is_available() else "cpu"
    field, inputs = small_norm_field.to(device), [x.to(device) for x in rays(50)]
    with warnings.catch_warnings(action="error", category=RuntimeFallbackWarning):
        try:
            built = build(field, backend)
        except (TritonUnavailable, TcnnUnavailable, RuntimeFallbackWarning) as reason:
            pytest.skip(f"{backend}: {reason}")
    for ours, theirs in zip(built(*inputs), field(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, **FLOAT32)


@pytest.mark.parametrize("count", [0, 1, 50])
@pytest.mark.parametrize("tile_rows", [None, 16])
def test_a_native_field_agrees_with_eager(small_norm_field: NerfField, count: int, tile_rows: int | None) -> None:
    native = build(small_norm_field, "native", tile_rows=tile_rows)
    # the trunk before the skip and after it, the density's head, the view layer that took in the feature, the colour
    assert len(natives(native)) == 5
    inputs = rays(count)
    for ours, theirs in zip(native(*inputs), small_norm_field(*inputs), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, **FLOAT32)
    assert not natives(small_norm_field), "the module itself stays as it is"


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("kind", ["linear", "eugen", "low-rank", "snnk", "sine"])
def test_a_native_field_of_every_kind_agrees_with_eager(kind: Any, rank: int | None) -> None:
    eugen = EUGenConfig(num_features=8, order=2, projection_rank=rank)
    layer = LayerConfig(kind, eugen, LowRankConfig(8), SNNKConfig(8), SineConfig(2.0))
    field = NerfField(NerfFieldConfig(layer_width=32, view_width=16, layer=layer))
    inputs = rays(40)
    for ours, theirs in zip(build(field, "native")(*inputs), field(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, **FLOAT32)


def test_chains_are_replaced_wherever_they_stand() -> None:
    module, x = Residual(), torch.randn(30, 6)
    native = build(module, "native")
    assert len(natives(native)) == 1, "a shared chain stays shared, a lone dense layer stays as it is"
    assert isinstance(native.module.get_submodule("lone"), nn.Linear)
    torch.testing.assert_close(native(x), module(x), **FLOAT32)
    assert not torch.allclose(native(x), x)


@pytest.mark.parametrize(
    "root", [nn.Linear(6, 4), EUGenLinear(6, 4, 3), nn.Sequential(nn.Sequential(nn.Linear(6, 4)), nn.GELU())]
)
def test_a_root_may_be_a_chain(root: nn.Module) -> None:
    native, x = build(root, "native"), torch.randn(30, 6)
    assert isinstance(native.module, NativeChain)
    torch.testing.assert_close(native(x), root(x), **FLOAT32)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 3, dtype=torch.float64), nn.Tanh()), "torch.float64 parameters"),
        (EUGenFeatures(3, 4, use_norm=True, projection_rank=2), "a chain holds features with a norm and factored"),
        (nn.LayerNorm(3), "LayerNorm has no chain of dense layers"),
        (nn.Linear(3, 3, dtype=torch.float64), "torch.float64 parameters"),
    ],
)
def test_native_gives_way_to_compiled_and_says_so(module: nn.Module, reason: str) -> None:
    with pytest.warns(RuntimeFallbackWarning, match=f"runtime native: .*{reason}.*; compiled instead") as said:
        built = build(module, "native")
    assert len(said) == 1
    assert isinstance(built, TiledModule) and built.is_compiled and not natives(built)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_what_has_no_native_step_is_evaluated_between(dtype: torch.dtype | None) -> None:
    if dtype == torch.bfloat16 and not load_library().chain_has_bfloat16():
        pytest.skip("this processor has no bfloat16 products")
    factored = EUGenLinear(8, 8, 6, projection_rank=2)
    module = nn.Sequential(nn.ReLU(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), factored, nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    native, x = build(module, "native", dtype=dtype), torch.randn(40, 6)
    kinds = [type(part.chain[0] if isinstance(part, CastChain) else part) for part in native.module.children()]
    assert kinds == [nn.ReLU, NativeChain, nn.Tanh, NativeChain, EUGenFeatures, NativeChain]
    assert native(x).dtype == torch.float32
    error = relative_error(native(x), module(x))
    assert 1e-4 < error < BFLOAT16_RELATIVE_ERROR if dtype == torch.bfloat16 else error < 1e-5


def test_hooks_between_native_steps_are_called() -> None:
    module, x, calls = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(10, 6), []
    module[1].register_forward_hook(lambda module, inputs, output: calls.append(1) or -output)
    native = build(module, "native")
    torch.testing.assert_close(native(x), module(x), **FLOAT32)
    assert len(natives(native)) == 2 and len(calls) == 2


def test_hooks_of_a_layer_that_would_be_taken_apart_are_said() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), EUGenLinear(4, 3, 2))
    module[2].register_forward_hook(lambda module, inputs, output: -output)
    with pytest.warns(RuntimeFallbackWarning, match="EUGenLinear has hooks, which would be lost; compiled instead"):
        build(module, "native")


def test_chains_inside_a_map_of_a_chain_are_replaced() -> None:
    module, x = nn.Sequential(nn.Linear(4, 6), Residual(), nn.Linear(6, 2)), torch.randn(10, 4)
    native = build(module, "native")
    assert len(natives(native)) == 3
    torch.testing.assert_close(native(x), module(x), **FLOAT32)


def test_a_missing_compiler_gives_way_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    load_library.cache_clear()
    with pytest.warns(RuntimeFallbackWarning, match="the compiler no-such-compiler does not run"):
        assert build(nn.Linear(3, 3), "native").is_compiled  # pyright: ignore[reportAttributeAccessIssue]
    load_library.cache_clear()


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_bfloat16_chains_keep_the_callers_dtype(small_norm_field: NerfField, backend: Any) -> None:
    if backend == "native" and not load_library().chain_has_bfloat16():
        pytest.skip("this processor has no bfloat16 products")
    with warnings.catch_warnings(action="error", category=RuntimeFallbackWarning):
        built = build(small_norm_field, backend, dtype=torch.bfloat16)
    inputs = rays(50)
    for ours, theirs in zip(built(*inputs), small_norm_field(*inputs), strict=True):
        assert ours.dtype == torch.float32
        assert 1e-6 < relative_error(ours, theirs) < BFLOAT16_RELATIVE_ERROR
    assert {p.dtype for p in small_norm_field.parameters()} == {torch.float32}


def test_a_precision_is_for_layers_alone() -> None:
    class Encoding(nn.Module):
        pass

    with pytest.raises(ValueError, match=r"dtype torch\.bfloat16: a chain holds Encoding, expected layers"):
        CastChain(nn.Sequential(Encoding(), nn.Linear(3, 3)), torch.bfloat16)
    with pytest.raises(ValueError, match="LayerNorm has no chain"):
        build(nn.LayerNorm(3), "eager", dtype=torch.bfloat16)


def test_a_chain_with_hooks_is_not_replaced() -> None:
    chain = nn.Sequential(nn.Linear(3, 3))
    chain.register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(ValueError, match="has hooks, which would be lost"):
        replace_chains(chain, lambda inner: inner)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("arguments", [{"backend": "fpga"}, {"dtype": torch.float16}])
def test_what_is_unknown_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is unknown, expected"):
        build(nn.Linear(3, 3), **arguments)


def test_a_folded_module_may_be_built() -> None:
    module, x = nn.Sequential(EUGenLinear(6, 8, 3), EUGenLinear(8, 4, 3)), torch.randn(30, 6)
    folded = fold(copy.deepcopy(module))
    torch.testing.assert_close(build(folded, "native")(x), module(x), **FLOAT32)
