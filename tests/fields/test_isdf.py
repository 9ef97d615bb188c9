"""The iSDF field: its encoding, its shape, folding, and derivatives of first and second order."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from eugen3d.fields import IsdfField, IsdfFieldConfig, distance_and_gradient
from eugen3d.fields.isdf import IcosahedralEncoding, icosahedron_directions
from eugen3d.layers import EUGenConfig, LayerConfig, LowRankConfig, SNNKConfig, fold, num_products

SMALL = IsdfFieldConfig(
    num_layers=4,
    layer_width=24,
    skip=2,
    num_frequencies=2,
    input_scale=0.5,
    layer=LayerConfig("eugen", EUGenConfig(5, phi="softplus-100"), LowRankConfig(4), SNNKConfig(4)),
    replaced_layers=(1, 2),
)
KINDS = ["linear", "eugen", "low-rank", "snnk", "sine"]


def small(kind: str = "eugen", **changes) -> IsdfField:
    """A field with every parameter drawn, so that biases and norm columns count, too."""
    field = IsdfField(replace(SMALL, layer=replace(SMALL.layer, kind=kind), **changes))
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.normal_(std=0.3)
    return field


def test_the_directions_are_those_of_an_icosahedron() -> None:
    directions = icosahedron_directions()
    assert directions.shape == (21, 3)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(21, dtype=torch.float64))
    cosines = (directions @ directions.T).abs()
    assert cosines.fill_diagonal_(0).max() < math.cos(math.radians(31)), "no two are parallel or opposite"
    torch.testing.assert_close(directions.T @ directions, 7 * torch.eye(3, dtype=torch.float64))
    for expected in ((0.8506508, 0.0, 0.5257311), (0.809017, 0.5, -0.309017), (0.0, 1.0, 0.0)):
        found = (directions @ torch.tensor(expected, dtype=torch.float64)).abs().max()
        assert float(found) == pytest.approx(1.0, abs=1e-6)


def test_the_encoding_at_a_hand_computed_point() -> None:
    encode = IcosahedralEncoding(2)
    encoded = encode(torch.tensor([[0.0, 0.0, math.pi / 2]]))[0]
    assert encoded.shape == (3 + 2 * 21 * 2,)
    torch.testing.assert_close(encoded[:3], torch.tensor([0.0, 0.0, math.pi / 2]))
    (axis,) = (encode.directions[:, 2] > 0.999).nonzero()[0].tolist()
    values = [encoded[3 + axis], encoded[3 + 21 + axis], encoded[3 + 42 + axis], encoded[3 + 63 + axis]]
    assert [float(value) for value in values] == pytest.approx([1.0, 0.0, 0.0, -1.0], abs=1e-6)


def test_the_default_is_the_papers_network() -> None:
    field = IsdfField(IsdfFieldConfig(layer=LayerConfig("linear")))
    weights = [field.trunk.get_parameter(f"{index}.0.weight").detach() for index in range(6)]
    shapes = [tuple(weight.shape) for weight in weights]
    assert field.encode.out_dim == 255
    assert shapes == [(256, 255), (256, 256), (256, 256), (256, 511), (256, 256), (256, 256)]
    assert tuple(field.head.get_parameter("0.weight").shape) == (1, 256)
    activations = [field.trunk.get_submodule(f"{index}.1") for index in range(6)]
    assert all(isinstance(activation, nn.Softplus) and activation.beta == 100 for activation in activations)
    assert float(weights[4].std()) == pytest.approx(math.sqrt(2 / 512), rel=0.02)
    assert 0 < field.trunk.get_parameter("4.0.bias").abs().max() <= 1 / 16


def test_the_default_eugen_field_folds_to_fewer_products() -> None:
    dense, field = IsdfField(IsdfFieldConfig(layer=LayerConfig("linear"))), IsdfField(IsdfFieldConfig())
    folded = fold(copy.deepcopy(field))
    assert num_products(dense) == 458_496
    assert num_products(folded) < 0.75 * num_products(dense)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("skip", [0, 2])
def test_a_folded_field_is_the_same_function(kind: str, skip: int) -> None:
    field, positions = small(kind, skip=skip), torch.randn(200, 3)
    expected, slope = distance_and_gradient(field, positions)
    assert not torch.allclose(expected, expected.mean().expand_as(expected), atol=1e-3)
    folded = fold(copy.deepcopy(field))
    distance, gradient = distance_and_gradient(folded, positions)
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(folded(positions), expected, rtol=1e-4, atol=1e-5)
    if kind in ("eugen", "snnk"):
        assert num_products(folded) < num_products(field)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_field_loads_what_folding_leaves(kind: str) -> None:
    field, positions = small(kind), torch.randn(30, 3)
    merged = IsdfField(replace(field.config, merged=True))
    assert not torch.allclose(merged(positions), field(positions))
    merged.load_state_dict(fold(copy.deepcopy(field)).state_dict(), strict=True)
    torch.testing.assert_close(merged(positions), field(positions), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_field_is_its_layers_one_after_the_other(kind: str) -> None:
    field, positions = small(kind).double(), torch.randn(100, 3, dtype=torch.float64)
    hidden = encoded = field.encode(0.5 * positions)
    for index, layer in enumerate(field.trunk):
        hidden = layer(torch.cat([encoded, hidden], dim=-1) if index == 2 else hidden)
    expected = 0.14 * field.head(hidden).squeeze(-1)
    torch.testing.assert_close(field(positions), expected)
    with torch.no_grad():
        torch.testing.assert_close(field(positions), expected)


@pytest.mark.parametrize("kind", ["linear", "eugen", "low-rank"])
def test_the_gradient_is_the_slope(kind: str) -> None:
    field, positions = small(kind).double(), torch.randn(20, 3, dtype=torch.float64)
    _, gradient = distance_and_gradient(field, positions)
    step = 1e-6
    for axis in range(3):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[axis] = step
        slope = (field(positions + moved) - field(positions - moved)) / (2 * step)
        torch.testing.assert_close(gradient[:, axis], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "eugen", "low-rank"])
def test_an_eikonal_loss_has_the_derivatives_that_it_has_by_differences(kind: str) -> None:
    """A loss on the gradient is differentiated in the parameters: the second order that training takes."""
    field, positions = small(kind).double(), torch.randn(12, 3, dtype=torch.float64)

    def loss() -> torch.Tensor:
        _, gradient = distance_and_gradient(field, positions, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().sum()

    loss().backward()
    checked = 0
    for parameter in field.parameters():
        if parameter.grad is None:  # the head's bias moves no gradient
            continue
        index = int(parameter.grad.abs().argmax())
        flat, found = parameter.data.view(-1), float(parameter.grad.reshape(-1)[index])
        before, step = float(flat[index]), 1e-6
        values = []
        for value in (before + step, before - step):
            flat[index] = value
            values.append(float(loss()))
        flat[index] = before
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-5)
        checked += found != 0
    assert checked >= 8


def test_create_graph_is_what_lets_gradients_flow() -> None:
    field, positions = small(), torch.randn(5, 3)
    assert not distance_and_gradient(field, positions)[1].requires_grad
    assert distance_and_gradient(field, positions, create_graph=True)[1].requires_grad


def test_no_points_have_no_distances() -> None:
    distance, gradient = distance_and_gradient(small(), torch.zeros(0, 3))
    assert distance.shape == (0,) and gradient.shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replaced_layers": (6,)}, r"replaced_layers has \[6\], expected indices of 0 to 5"),
        ({"skip": 6}, "skip is 6, expected 0 to 5"),
        ({"input_scale": 0.0}, "input_scale is 0.0, expected a positive number"),
        ({"output_scale": math.nan}, "output_scale is nan"),
    ],
)
def test_what_no_field_has_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IsdfFieldConfig(**changes)
