"""Colours of vertices from the frames that see them."""

import numpy as np
import pytest
import torch

from eugen3d.cli.mesh_colors import to_linear, vertex_colors
from eugen3d.datasets.depth_frame import DepthFrame

RED, BLUE = (200, 0, 0), (0, 0, 100)
UP = np.array([[0.0, 0.0, 1.0]])


def frame(color: tuple[int, int, int] | None = RED, height: float = 0.0, depth: float = 2.0, x: float = 0.0):
    """A camera at (x, 0, height) that looks down on a wall `depth` away, of one colour."""
    pose = torch.eye(3, 4)
    pose[0, 3], pose[2, 3] = x, height
    rgb = None if color is None else torch.tensor(color, dtype=torch.uint8).expand(8, 8, 3)
    return DepthFrame("f", torch.full((8, 8), depth), pose, (4.0, 4.0, 4.0, 4.0), rgb)


def color_at(point: tuple[float, float, float], *frames: DepthFrame, normal: np.ndarray = UP) -> list[int]:
    colors, num_seen = vertex_colors(np.array([point]), normal, frames)
    assert colors.dtype == np.uint8 and colors[0, 3] == 255 and num_seen in {0, 1}
    assert num_seen or colors[0, :3].tolist() == [128, 128, 128]
    return colors[0, :3].tolist() if num_seen else []


def test_a_vertex_has_the_colour_of_its_pixel() -> None:
    seen = frame()
    rgb = torch.arange(64 * 3, dtype=torch.uint8).view(8, 8, 3)
    seen = DepthFrame("f", seen.depth, seen.camera_to_world, seen.intrinsics, rgb)
    # x = 0.75 is 1.5 pixels to the right of the middle, so column 5; y = 0.25 half a pixel above it, so row 3
    assert color_at((0.75, 0.25, -2.0), seen) == [87, 88, 89]


@pytest.mark.parametrize(
    ("point", "normal"),
    [
        ((0.0, 0.0, -2.2), UP),
        ((0.0, 0.0, -1.8), UP),
        ((9.0, 0.0, -2.0), UP),
        ((0.0, 0.0, 2.0), UP),
        ((0.0, 0.0, -2.0), -UP),
    ],
)
def test_what_is_hidden_or_outside_or_turned_away_is_grey(point, normal: np.ndarray) -> None:
    assert color_at(point, frame(), normal=normal) == []


def test_depth_that_is_missing_or_no_picture_tells_nothing() -> None:
    assert color_at((0, 0, -2.0), frame(depth=0.0), frame(None)) == []
    assert color_at((0, 0, -2.0)) == []


def test_near_frames_count_more_than_far_ones() -> None:
    """From 1 and from 2 m straight above: weights 1 and 1/4, so 4/5 of red and 1/5 of blue."""
    assert color_at((0, 0, -2.0), frame(RED, -1.0, 1.0), frame(BLUE)) == [160, 0, 20]


def test_far_away_more_difference_in_depth_is_allowed() -> None:
    assert color_at((0, 0, -10.1), frame(depth=10.0)) == list(RED)
    assert color_at((0, 0, -2.1), frame(depth=2.0)) == []


def test_no_vertices_have_no_colours() -> None:
    colors, num_seen = vertex_colors(np.zeros((0, 3)), np.zeros((0, 3)), [frame()])
    assert colors.shape == (0, 4) and num_seen == 0


def test_linear_light_of_srgb() -> None:
    """128 / 255 is ((0.502 + 0.055) / 1.055)^2.4 = 0.2159 = 55 / 255; 10 / 255 is on the line, 10 / 12.92 = 0.77."""
    colors = to_linear(np.array([[0, 255, 128, 7], [10, 188, 64, 255]], np.uint8))
    assert colors.tolist() == [[0, 255, 55, 7], [1, 128, 13, 255]]
