"""Teachers of a few dozen neurons, and points to look at them."""

import pytest
import torch

from eugen3d.distill import Network, Rows
from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import LayerConfig


@pytest.fixture
def teacher() -> Network:
    """A dense field of four layers of 32 neurons, whose layer 2 sees the encoded position again."""
    config = NerfFieldConfig(
        num_layers=4,
        layer_width=32,
        view_width=8,
        skip=2,
        num_position_frequencies=3,
        num_direction_frequencies=1,
        layer=LayerConfig("linear"),
        replaced_layers=(),
    )
    return Network.trace(NerfField(config).eval(), (torch.zeros(1, 3), torch.ones(1, 3)))


@pytest.fixture
def rows() -> Rows:
    """2,000 points in a cube, and unit directions."""
    directions = torch.nn.functional.normalize(torch.randn(2000, 3), dim=-1)
    return Rows((torch.rand(2000, 3) * 2 - 1, directions), torch.full((2000,), 0.1), torch.ones(2000))
