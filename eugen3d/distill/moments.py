"""Streaming sufficient statistics of a linear regression y ≈ W x + b.

Symbols: n rows, inputs x of length p, targets y of length q. Only sums are kept, in float64, so memory is
O((p + q)²) whatever n is, and statistics of parts add up to the statistics of the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Covariances:
    """Centred second moments, divided by the number of rows: (p,), (q,), (p, p), (p, q), (q, q)."""

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


class Moments:
    """Sums over rows of z zᵀ with z = [x; y; 1], to which chunks of rows are added one after the other.

    The rows are shifted by the mean of the first chunk before they are multiplied: centring sums of squares
    afterwards would lose digits where the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x (rows, p) and y (rows, q).

        Raises:
            ValueError: when a row is not finite.
        """
        x, y = x.double(), y.double()
        if self._shift is None:
            self._shift = x.mean(dim=0), y.mean(dim=0)
        z = torch.cat([x - self._shift[0], y - self._shift[1], x.new_ones(len(x), 1)], dim=1)
        products = z.T @ z
        if not products.isfinite().all():
            raise ValueError("rows hold NaN or infinite values, expected finite ones")
        self._sums = products if self._sums is None else self._sums + products
        self.num_rows += len(x)

    def covariances(self) -> Covariances:
        """The centred second moments of all rows so far."""
        if self._sums is None or self._shift is None:
            raise ValueError("no rows were added, expected at least one")
        shift_x, shift_y = self._shift
        size = len(shift_x)
        means = self._sums[-1, :-1] / self.num_rows
        centred = self._sums[:-1, :-1] / self.num_rows - torch.outer(means, means)
        return Covariances(
            mean_x=shift_x + means[:size],
            mean_y=shift_y + means[size:],
            xx=centred[:size, :size],
            xy=centred[:size, size:],
            yy=centred[size:, size:],
        )
