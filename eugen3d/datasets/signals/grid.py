"""Where the samples of a grid are: at the middles of its cells, which divide [-1, 1] evenly along every axis."""

import math

import torch
from torch import Tensor


def grid_coordinates(
    size: tuple[int, ...], start: int = 0, stop: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Coordinates (stop - start, len(size)) float32 of a slice of a grid's points in row-major order.

    Cell j of the n along an axis is at (2j + 1) / n - 1. Only the slice is formed.

    Args:
        size: the number of cells along each axis, such as height and width.
        start: the first point.
        stop: one after the last point; None, or beyond the last: all that are left.
        device: where the coordinates are to be.
    """
    total = math.prod(size)
    return grid_points(size, torch.arange(start, total if stop is None else min(stop, total), device=device))


def grid_points(size: tuple[int, ...], index: Tensor) -> Tensor:
    """Coordinates (n, len(size)) float32 of some of a grid's points, by their numbers (n,) in row-major order."""
    columns, rest = [], index
    for count in reversed(size):
        numerator = 2 * (rest % count) + (1 - count)
        columns.append((numerator.double() / count).float())
        rest = rest // count
    return torch.stack(columns[::-1], dim=-1)
