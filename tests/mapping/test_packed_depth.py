"""Depth images in few bytes: they come back bit by bit."""

import pytest
import torch
from torch import Tensor

from eugen3d.mapping.packed_depth import pack_depth, unpack_depth


def sensor_depth(height: int = 60, width: int = 80, unit: float = 0.001) -> Tensor:
    """A slanted surface with noise of some steps and gaps, as 16-bit depth of a unit gives it."""
    steps = 1000 + 20 * torch.arange(width) + torch.randint(-3, 4, (height, width))
    steps[torch.rand(height, width) < 0.1] = 0
    return (unit * steps.double()).float()


@pytest.mark.parametrize("unit", [0.001, 0.0002, 1 / 6553.5])
def test_depth_of_a_sensor_comes_back_from_less_than_half(unit: float) -> None:
    depth = sensor_depth(unit=unit)
    packed = pack_depth(depth)
    assert torch.equal(unpack_depth(packed), depth) and unpack_depth(packed).dtype == torch.float32
    size = sum(tensor.numel() * tensor.element_size() for tensor in (packed["values"], packed["packed"]))
    assert size < depth.numel() * 4 / 2, "noise is most of it"


@pytest.mark.parametrize(
    "depth",
    [
        torch.rand(300, 300),  # more values than 16 bits can count
        torch.zeros(5, 7),
        torch.full((1, 1), 2.5),
        torch.tensor([[0.0, 65.535, 0.001], [12.0, 0.0, 1e-30]]),
        torch.arange(65536.0).view(256, 256),
        torch.rand(30, 20).T,
    ],
)
def test_any_depth_comes_back(depth: Tensor) -> None:
    back = unpack_depth(pack_depth(depth))
    assert torch.equal(back, depth) and back.is_contiguous()


def test_a_packed_image_that_is_damaged_is_refused() -> None:
    packed = pack_depth(sensor_depth())
    packed["packed"] = packed["packed"][:-20]
    with pytest.raises(ValueError, match="80x60 is damaged"):
        unpack_depth(packed)
    with pytest.raises(ValueError, match="81x60 is damaged"):
        unpack_depth({**pack_depth(sensor_depth()), "width": 81})
