"""Tile by tile equals all at once."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import EUGenLinear
from eugen3d.runtime import TiledModule, build


def rows(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3), nn.functional.normalize(torch.randn(count, 3), dim=1)


class Counted(nn.Module):
    """The identity, which notes how many rows every call sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x


@pytest.mark.parametrize(("count", "seen"), [(8, [4, 4]), (10, [4, 4, 2]), (3, [3]), (0, [0]), (1, [1])])
def test_the_rows_are_cut_into_tiles_in_order(count: int, seen: list[int]) -> None:
    module = Counted()
    x = torch.randn(count, 2)
    assert torch.equal(TiledModule(module, tile_rows=4)(x), x)
    assert module.seen == seen


@pytest.mark.parametrize("count", [0, 1, 64, 100])
def test_tiles_equal_the_whole(field_config: NerfFieldConfig, count: int) -> None:
    field = NerfField(field_config)
    inputs = rows(count)
    tiled = TiledModule(field, tile_rows=16)(*inputs)
    for ours, theirs in zip(tiled, field(*inputs), strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


def test_a_single_output_stays_a_tensor() -> None:
    layer = EUGenLinear(3, 5, 4)
    x = torch.randn(10, 3)
    y = TiledModule(layer, tile_rows=4)(x)
    assert isinstance(y, Tensor)
    torch.testing.assert_close(y, layer(x))


def test_a_built_module_is_folded_and_leaves_the_original_as_it_was(field_config: NerfFieldConfig) -> None:
    field = NerfField(field_config)
    state = copy.deepcopy(field.state_dict())
    tiled = build(field, "eager", tile_rows=16)
    inputs = rows(50)
    density, rgb = tiled(*inputs)
    expected_density, expected_rgb = field(*inputs)
    torch.testing.assert_close(density, expected_density, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rgb, expected_rgb, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in tiled.parameters()) < sum(p.numel() for p in field.parameters())
    assert field.training and all(p.requires_grad for p in field.parameters())
    assert state.keys() == field.state_dict().keys()
    assert all(torch.equal(value, field.state_dict()[name]) for name, value in state.items())


def test_nothing_is_recorded_for_gradients() -> None:
    tiled = build(EUGenLinear(3, 5, 4), "eager")
    assert not tiled(torch.randn(10, 3)).requires_grad
    assert not tiled.module.training and not any(p.requires_grad for p in tiled.parameters())


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="runtime backend 'fpga' is unknown, expected one of eager, compiled"):
        TiledModule(nn.Identity(), "fpga")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_tiles_equal_the_whole_and_are_compiled_once(field_config: NerfFieldConfig) -> None:
    field = NerfField(field_config)
    tiled = build(field, "compiled", tile_rows=16)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()  # of what other tests have compiled
    for count in (0, 1, 16, 40):
        inputs = rows(count)
        for ours, theirs in zip(tiled(*inputs), field(*inputs), strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] == 1, "a partial tile is padded, so that one shape is compiled"


@pytest.mark.parametrize(("tile_rows", "calls"), [(None, [5000]), (2000, [2000, 2000, 1000])])
def test_a_module_that_tiles_itself_sees_all_rows_unless_told(tile_rows: int | None, calls: list[int]) -> None:
    class Tiling(nn.Module):
        tiles_itself = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return 2 * x

    seen: list[int] = []
    x = torch.rand(5000, 3)
    assert torch.equal(TiledModule(Tiling(), tile_rows=tile_rows)(x), 2 * x) and seen == calls
