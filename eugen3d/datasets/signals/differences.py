"""What of an image is supervised: its values, or their derivatives by finite differences."""

from typing import Literal

import torch
from torch import Tensor

Supervision = Literal["values", "gradient", "laplacian"]


def targets_of(values: Tensor, supervision: Supervision) -> Tensor:
    """The targets at the points of a grid, row-major: (n, channels), of a gradient (n, d, channels).

    Derivatives are per unit of the coordinates, of which an axis has two: central differences inside, one-sided ones
    at the borders; the Laplacian's second differences repeat the border.

    Args:
        values: (*size, channels).
    """
    size, dims = values.shape[:-1], range(values.ndim - 1)
    if supervision == "values":
        return values.flatten(0, -2)
    if supervision == "gradient":
        slopes = [torch.gradient(values, spacing=2 / size[axis], dim=axis)[0] for axis in dims]
        return torch.stack(slopes, dim=-2).flatten(0, -3)
    total = torch.zeros_like(values)
    for axis in dims:
        padded = torch.cat([values.narrow(axis, 0, 1), values, values.narrow(axis, size[axis] - 1, 1)], dim=axis)
        total += padded.diff(n=2, dim=axis) * (size[axis] / 2) ** 2
    return total.flatten(0, -2)
