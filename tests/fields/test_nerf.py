"""The NeRF field: shapes, encoding, skip, and its folded form."""

import copy
import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear, LayerConfig, LowRankConfig, SineConfig, SNNKConfig, fold
from eugen3d.fields import FrequencyEncoding, NerfField, NerfFieldConfig


def rays(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3), nn.functional.normalize(torch.randn(count, 3), dim=1)


def test_shape_checks_are_on() -> None:
    """The canary: without jaxtyping's hook, or without its checker, the annotations would check nothing."""
    with pytest.raises(jaxtyping.TypeCheckError, match=r"FrequencyEncoding\.forward"):
        FrequencyEncoding(2)(torch.zeros(5, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"FrequencyEncoding\.forward"):
        FrequencyEncoding(2)(torch.zeros(5, 3, dtype=torch.int64))


def test_positions_without_their_directions_are_caught(field_config: NerfFieldConfig) -> None:
    positions, directions = rays(5)
    with pytest.raises(jaxtyping.TypeCheckError, match="directions"):
        NerfField(field_config)(positions, directions[:4])


def test_encoding_computed_by_hand() -> None:
    encoded = FrequencyEncoding(2)(torch.tensor([[0.0, math.pi / 2, math.pi / 4]]))
    half = math.sqrt(0.5)
    raw, sines, cosines = [0, math.pi / 2, math.pi / 4], [0, 1, half, 0, 0, 1], [1, 0, half, 1, -1, 0]
    torch.testing.assert_close(encoded, torch.tensor([[*raw, *sines, *cosines]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch", [(), (0,), (2, 5)])
@pytest.mark.parametrize("num_frequencies", [0, 10])
def test_encoding_keeps_the_leading_axes(batch: tuple[int, ...], num_frequencies: int) -> None:
    encoding = FrequencyEncoding(num_frequencies)
    assert encoding(torch.zeros(*batch, 3)).shape == (*batch, encoding.out_dim)
    assert encoding.out_dim == 3 + 6 * num_frequencies
    assert not encoding.state_dict(), "the frequencies follow from the configuration"


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("kind", ["linear", "eugen"])
@pytest.mark.parametrize("merged", [False, True])
def test_density_and_colour_have_their_shapes_and_ranges(
    field_config: NerfFieldConfig, count: int, kind, merged: bool
) -> None:
    config = replace(field_config, layer=replace(field_config.layer, kind=kind), merged=merged)
    density, rgb = NerfField(config)(*rays(count))
    assert density.shape == (count,) and (density > 0).all()
    assert rgb.shape == (count, 3) and ((rgb > 0) & (rgb < 1)).all()


def test_the_paper_field_has_the_sizes_of_the_paper() -> None:
    field = NerfField(NerfFieldConfig(layer=LayerConfig("linear")))
    assert (field.encode_position.out_dim, field.encode_direction.out_dim) == (63, 27)
    widths = [chain[0].in_features for chain in field.trunk]  # pyright: ignore[reportIndexIssue]
    assert widths == [63, 256, 256, 256, 256 + 63, 256, 256, 256]
    dense = 63 * 256 + 6 * 256 * 256 + 319 * 256 + 8 * 256
    heads = (256 + 1) + (256 * 256 + 256) + (283 * 128 + 128) + (128 * 3 + 3)
    assert sum(p.numel() for p in field.parameters()) == dense + heads


def test_only_the_replaced_layers_are_of_the_chosen_kind(field_config: NerfFieldConfig) -> None:
    kinds = [type(chain[0]) for chain in NerfField(field_config).trunk]  # pyright: ignore[reportIndexIssue]
    assert kinds == [nn.Linear, EUGenLinear, EUGenLinear]
    dense = NerfField(replace(field_config, layer=LayerConfig("linear")))
    assert not any(isinstance(m, EUGenLinear) for m in dense.modules())


def test_density_is_free_of_the_direction_and_colour_is_not(field_config: NerfFieldConfig) -> None:
    field = NerfField(field_config)
    positions, directions = rays(20)
    density, rgb = field(positions, directions)
    turned_density, turned_rgb = field(positions, -directions)
    assert torch.equal(density, turned_density)
    assert not torch.allclose(rgb, turned_rgb)


def test_every_parameter_gets_a_gradient(field_config: NerfFieldConfig) -> None:
    field = NerfField(field_config)
    density, rgb = field(*rays(50))
    (density.sum() + rgb.sum()).backward()
    assert [name for name, p in field.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replaced_layers": (1, 3)}, r"replaced_layers has \[3\], expected indices of 0 to 2"),
        ({"replaced_layers": (-1,)}, r"replaced_layers has \[-1\], expected indices of 0 to 2"),
        ({"skip": 3}, "skip is 3, expected 0 to 2"),
        ({"skip": -1}, "skip is -1, expected 0 to 2"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(field_config: NerfFieldConfig, changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(field_config, **changes)


@pytest.mark.parametrize(
    "layer",
    [
        *(LayerConfig("eugen", EUGenConfig(5, k, use_norm=norm)) for k in (1, 2) for norm in (True, False)),
        LayerConfig("eugen", EUGenConfig(5, phi="identity", use_norm=False)),
        *(LayerConfig("eugen", EUGenConfig(5, use_norm=norm, projection_rank=4)) for norm in (True, False)),
        LayerConfig("low-rank", low_rank=LowRankConfig(4)),
        LayerConfig("snnk", snnk=SNNKConfig(4)),
        LayerConfig("sine", sine=SineConfig(2.0)),
    ],
)
def test_a_merged_field_loads_what_folding_leaves(field_config: NerfFieldConfig, layer: LayerConfig) -> None:
    config = replace(field_config, layer=layer)
    field = NerfField(config)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_(std=0.3)
    merged = NerfField(replace(config, merged=True))
    inputs = rays(30)
    expected = field(*inputs)
    assert not torch.allclose(merged(*inputs)[1], expected[1])
    folded = fold(copy.deepcopy(field))
    merged.load_state_dict(folded.state_dict(), strict=True)
    assert fold(nn.ModuleList([folded])).state_dict().keys() == nn.ModuleList([merged]).state_dict().keys()
    for ours, theirs in zip(merged(*inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in field.parameters())


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("merged", [False, True])
def test_a_joined_field_is_the_same_function_of_fewer_chains(
    field_config: NerfFieldConfig, skip: int, merged: bool
) -> None:
    field, seen = NerfField(replace(field_config, skip=skip, merged=merged)), rays(50)
    expected = field(*seen)
    field.trunk.join_()
    assert len(field.trunk) == (2 if skip else 1)
    for ours, theirs in zip(field(*seen), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_merged_field_trains(field_config: NerfFieldConfig) -> None:
    field = NerfField(replace(field_config, merged=True))
    field(*rays(50))[1].sum().backward()
    assert all(p.requires_grad for p in field.parameters())
    assert any(p.grad is not None and p.grad.any() for p in field.parameters())


@pytest.mark.parametrize("kind", ["linear", "eugen", "low-rank", "snnk", "sine"])
def test_the_field_is_its_layers_one_after_the_other(field_config: NerfFieldConfig, kind) -> None:
    """Readouts are merged with what reads them; values and gradients are those of the layers as they are."""
    field = NerfField(replace(field_config, layer=replace(field_config.layer, kind=kind))).double()
    positions, directions = (t.double() for t in rays(200))

    hidden = encoded = field.encode_position(positions)
    for index, layer in enumerate(field.trunk):
        hidden = layer(torch.cat([encoded, hidden], dim=-1) if index in field.trunk.skips else hidden)
    density = nn.functional.softplus(field.density_head(hidden).squeeze(-1))
    view = field.view(torch.cat([field.feature(hidden), field.encode_direction(directions)], dim=-1))
    expected = density, field.rgb_head(view).sigmoid()

    found = field(positions, directions)
    torch.testing.assert_close(found, expected)
    gradients = []
    for outputs in (found, expected):
        field.zero_grad()
        (outputs[0].square().sum() + outputs[1].square().sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in field.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0]["trunk.0.0.weight"].any()


def test_nothing_as_wide_as_the_replaced_layers_is_kept(field_config: NerfFieldConfig) -> None:
    """Across the skip and into the heads, too: layer_width is 24, m is 4, and the first trunk layer is dense."""
    layer = LayerConfig("eugen", EUGenConfig(4, use_norm=False))
    field = NerfField(replace(field_config, layer=layer))
    widths: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        widths.extend([saved.shape[-1]] if saved.shape[:1] == (500,) and saved.dim() == 2 else [])
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        field(*rays(500))
    encoded = field.encode_position.out_dim
    assert widths.count(24) == 2, "the dense layer's output, for its ReLU and for what reads it"
    assert encoded + 4 in widths and encoded + 24 not in widths
