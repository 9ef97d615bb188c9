"""The grid's points against values computed by hand, and slices against the whole."""

import pytest
import torch

from eugen3d.datasets.signals import grid_coordinates


def test_cells_of_two_by_four() -> None:
    expected = [(y, x) for y in (-0.5, 0.5) for x in (-0.75, -0.25, 0.25, 0.75)]
    points = grid_coordinates((2, 4))
    assert points.dtype == torch.float32 and points.tolist() == [list(point) for point in expected]


def test_one_axis_and_one_cell() -> None:
    torch.testing.assert_close(grid_coordinates((3,)), torch.tensor([[-2 / 3], [0.0], [2 / 3]]))
    assert grid_coordinates((1, 1, 1)).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 7), (5, 23), (17, 60), (59, 1000), (60, None), (4, 4)])
def test_a_slice_is_that_of_the_whole(start: int, stop: int | None) -> None:
    whole = grid_coordinates((3, 4, 5))
    assert whole.shape == (60, 3) and len(whole.unique(dim=0)) == 60
    piece = grid_coordinates((3, 4, 5), start, stop)
    assert torch.equal(piece, whole[start:stop]) and piece.shape[1] == 3


def test_long_axes_are_exact() -> None:
    """Every point is the float32 nearest to the middle of its cell; a slice of a huge grid is not slow."""
    count = 12_345_679
    points = grid_coordinates((count,), count - 3).double()
    expected = torch.tensor([[(2 * j + 1) / count - 1] for j in range(count - 3, count)], dtype=torch.float64)
    torch.testing.assert_close(points, expected, atol=2.0**-25, rtol=0)
    assert points[0] < points[1] < points[2] < 1.0
    assert grid_coordinates((100_000, 100_000, 1000), 10**12, 10**12 + 2).shape == (2, 3)
