"""Zip-NeRF's fields: what a cone's width does, and that folding changes nothing."""

import copy

import pytest
import torch
from torch import Tensor

from eugen3d.fields import HashGridConfig, ProposalField, ZipLayer, ZipNerfField, ZipNerfFieldConfig, ZipNerfHead
from eugen3d.fields.zipnerf import GridFeatures
from eugen3d.layers import EUGenConfig, LayerConfig, fold

GRID = HashGridConfig(num_levels=3, base_resolution=4, max_resolution=64, features_per_level=2, log2_hashmap_size=10)
ALL: tuple[ZipLayer, ...] = ("density", "view-0", "view-1")


def head_of(layer: LayerConfig, replaced: tuple[ZipLayer, ...], appearance_dim: int = 0) -> ZipNerfHead:
    config = ZipNerfFieldConfig(GRID, 16, 24, 32, 4, appearance_dim, layer, replaced)
    return ZipNerfHead(config, 9)


def rows(count: int = 50, appearance: int = 0) -> tuple[Tensor, ...]:
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    return (torch.randn(count, 9), directions, *([torch.randn(count, appearance)] if appearance else []))


LAYERS = [LayerConfig("linear"), LayerConfig("eugen", EUGenConfig(6)), LayerConfig("low-rank"), LayerConfig("snnk")]


@pytest.mark.parametrize("appearance", [0, 2])
@pytest.mark.parametrize("replaced", [("view-0",), ALL])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
def test_a_folded_head_is_the_same_function(layer: LayerConfig, replaced: tuple[ZipLayer, ...], appearance: int):
    head, inputs = head_of(layer, replaced, appearance_dim=appearance), rows(appearance=appearance)
    trained = head(*inputs)
    with torch.no_grad():
        plain, folded = head(*inputs), fold(copy.deepcopy(head))(*inputs)
    for value, other, thin in zip(trained, plain, folded, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(thin, value, rtol=1e-4, atol=1e-5)


def test_folding_makes_the_papers_layer_smaller() -> None:
    head = ZipNerfHead(ZipNerfFieldConfig(GRID), 9)
    before = sum(p.numel() for p in head.parameters())
    assert sum(p.numel() for p in fold(copy.deepcopy(head)).parameters()) < 0.4 * before


def test_a_merged_head_has_the_folded_ones_state() -> None:
    layer = LayerConfig("eugen", EUGenConfig(6))
    folded = fold(head_of(layer, ALL))
    config = ZipNerfFieldConfig(GRID, 16, 24, 32, layer=layer, replaced_layers=ALL, merged=True)
    merged, inputs = ZipNerfHead(config, 9), rows()
    merged.load_state_dict(folded.state_dict())
    with torch.no_grad():
        for value, other in zip(merged(*inputs), folded(*inputs), strict=True):
            torch.testing.assert_close(value, other)


def test_density_is_positive_and_colours_are_colours() -> None:
    density, rgb = head_of(LAYERS[1], ALL)(*(10 * x for x in rows()))
    assert (density >= 0).all() and (rgb > -2e-3).all() and (rgb < 1 + 2e-3).all() and rgb.std() > 0.05


def test_features_say_how_wide_a_gaussian_is() -> None:
    features = GridFeatures(GRID)
    torch.nn.init.uniform_(features.grid.table, -1, 1)
    means = torch.rand(5, 6, 3) - 0.5
    narrow, wide = (features(means, torch.full((5, 6), std)) for std in (1e-6, 1e3))
    size = features.grid.mean_squares().sqrt()
    torch.testing.assert_close(narrow[:, -3:], size.expand(5, 3), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(wide[:, -3:], -size.expand(5, 3), rtol=1e-2, atol=1e-2)
    assert wide[:, :-3].abs().max() < 1e-2 < narrow[:, :-3].abs().max()


def test_the_radius_is_the_unit_of_length() -> None:
    one, other = GridFeatures(GRID), GridFeatures(GRID, radius=5.0)
    other.load_state_dict(one.state_dict())
    means, stds = 3 * torch.randn(5, 6, 3), torch.rand(5, 6)
    torch.testing.assert_close(other(5 * means, 5 * stds), one(means, stds), rtol=1e-4, atol=1e-8)
    assert not torch.allclose(other(means, stds), one(means, stds), rtol=1e-2)


@pytest.mark.parametrize("distance", [0.0, 1e-10, 1.0, 1e3, 1e10])
def test_values_and_gradients_are_finite(distance: float) -> None:
    fields = ProposalField(GRID), ZipNerfField(ZipNerfFieldConfig(GRID, 16, 24, 32))
    means = distance * torch.nn.functional.normalize(torch.randn(4, 6, 3), dim=-1)
    stds = torch.full((4, 6), 0.01 * distance)
    density = fields[0](means, stds)
    other, rgb = fields[1](means, stds, torch.eye(3)[[0, 1, 2, 0]])
    (density.sum() + other.sum() + rgb.sum()).backward()
    assert density.isfinite().all() and other.isfinite().all() and rgb.isfinite().all()
    for field in fields:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())
