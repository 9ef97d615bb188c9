"""What a camera saw, from a wall whose distance is known."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from eugen3d.metrics.visibility import sample_visible_surface, sample_visible_volume, unproject, visible


@dataclass(frozen=True)
class View:
    depth: Tensor
    camera_to_world: Tensor
    intrinsics: tuple[float, float, float, float] = (4.0, 4.0, 4.0, 3.0)


def wall(distance: float = 2.0, depth: Tensor | None = None, camera_to_world: Tensor | None = None) -> View:
    """A camera at the origin that looks along -z at a wall; pictures of 8 x 6 pixels, 90 degrees wide."""
    pose = torch.eye(4)[:3] if camera_to_world is None else camera_to_world
    return View(torch.full((6, 8), distance) if depth is None else depth, pose)


def test_in_front_of_the_wall_and_in_the_frustum() -> None:
    points = torch.tensor(
        [[0, 0, -1.9], [0, 0, -2.1], [0, 0, 1.0], [0.95, 0, -1.0], [1.05, 0, -1.0], [0, 0.7, -1.0], [0, 0.8, -1.0]]
    )
    assert visible(points, [wall()]).tolist() == [True, False, False, True, False, True, False]
    assert visible(points, [wall()], behind=0.2).tolist() == [True, True, False, True, False, True, False]


def test_pixels_without_depth_see_nothing_and_rows_go_down() -> None:
    depth = torch.full((6, 8), 2.0)
    depth[0] = 0.0
    points = torch.tensor([[0.0, 0.7, -1.0], [0.0, -0.7, -1.0]])
    assert visible(points, [wall(depth=depth)]).tolist() == [False, True]


def test_one_view_is_enough_and_poses_are_followed() -> None:
    turned = torch.tensor([[0.0, 0.0, 1.0, 5.0], [0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])  # at x = 5, looks to -x
    points = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, -1.0], [6.0, 0.0, 0.0]])
    views = [wall(), wall(camera_to_world=turned)]
    assert visible(points, views).tolist() == [True, True, False]
    assert visible(points, views[:1]).tolist() == [False, True, False]
    assert visible(points, []).tolist() == [False] * 3 and visible(points[:0], views).shape == (0,)


def test_unprojected_pixels() -> None:
    points = unproject(wall(), torch.tensor([[0, 0], [5, 7], [2, 3]]), torch.tensor([2.0, 4.0, 2.0]))
    expected = torch.tensor([[-1.75, 1.25, -2.0], [3.5, -2.5, -4.0], [-0.25, 0.25, -2.0]])
    torch.testing.assert_close(points, expected)


def test_surface_samples_are_on_the_wall_and_seen() -> None:
    depth = torch.full((6, 8), 2.0)
    depth[:, :4] = 0.0
    points = sample_visible_surface([wall(depth=depth), wall(depth=torch.zeros(6, 8))], 50)
    assert points.shape == (50, 3)
    torch.testing.assert_close(points[:, 2], torch.full((50,), -2.0))
    assert (points[:, 0] > 0).all()
    assert sample_visible_surface([], 50).shape == (0, 3)


@pytest.mark.parametrize("behind", [0.0, 0.1])
def test_volume_samples_are_uniform_in_depth(behind: float) -> None:
    count = 4000
    points = sample_visible_volume([wall()], count, near=0.1, behind=behind)
    depth, far = -points[:, 2], 2.0 + behind
    assert depth.min() >= 0.1 and depth.max() <= far and depth.max() > far - 0.02
    spread = (far - 0.1) / math.sqrt(12)
    assert depth.mean().item() == pytest.approx((far + 0.1) / 2, abs=5 * spread / math.sqrt(count))
    assert visible(points, [wall()], behind=behind + 1e-5).all()
    assert not torch.equal(points, sample_visible_volume([wall()], count, behind=behind, seed=1))


def test_a_surface_nearer_than_the_nearest_sample_is_not_passed() -> None:
    points = sample_visible_volume([wall(0.05)], 10)
    torch.testing.assert_close(points[:, 2], torch.full((10,), -0.05))
