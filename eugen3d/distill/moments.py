"""Streaming sufficient statistics of a linear regression y ≈ W x + b.

Symbols: n rows, inputs x of length p, targets y of length q. Only sums are kept, in float64, so memory is
O((p + q)²) whatever n is, and statistics of parts add up to the statistics of the whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eugen3d.training.distributed import all_gather_stack, all_reduce_sum


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
        self._num_inputs = 0
        self._shift: Tensor | None = None
        self._sums: Tensor | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows: x (rows, p) and y (rows, q).

        Raises:
            ValueError: when a row is not finite.
        """
        if not len(x):
            return
        rows = torch.cat([x.double(), y.double()], dim=1)
        if self._shift is None:
            self._num_inputs, self._shift = x.shape[1], rows.mean(dim=0)
        z = torch.cat([rows - self._shift, rows.new_ones(len(rows), 1)], dim=1)
        products = z.T @ z
        if not products.isfinite().all():
            raise ValueError("rows hold NaN or infinite values, expected finite ones")
        self._sums = products if self._sums is None else self._sums.add_(products)
        self.num_rows += len(rows)

    def merge(self, other: "Moments") -> None:
        """Add the rows of other moments, of the same p and q.

        Raises:
            ValueError: their p and q differ.
        """
        if other._shift is None or other._sums is None:
            return
        if self._shift is None or self._sums is None:
            self._num_inputs, self._shift, self._sums = other._num_inputs, other._shift, other._sums.clone()
        else:
            if (other._num_inputs, len(other._shift)) != (self._num_inputs, len(self._shift)):
                raise ValueError(f"moments of {other._sizes}, expected inputs and targets of {self._sizes}")
            self._sums += _about(self._shift, other._shift, other._sums)
        self.num_rows += other.num_rows

    def all_reduced(self) -> "Moments":
        """The moments of the rows of all processes together, the same in each; some may have none.

        The sums are taken about one shift, that of the first process which has rows, before they are added.

        Raises:
            ValueError: p and q differ between processes.
        """
        counts = all_gather_stack(torch.tensor([self.num_rows, *self._sizes]))
        if len(counts) == 1:
            return self
        counts = counts[counts[:, 0] > 0]
        if not len(counts):
            return Moments()
        if (counts[:, 1:] != counts[0, 1:]).any():
            raise ValueError(f"moments of {counts[:, 1:].tolist()} in several processes, expected one size")
        num_inputs, size = int(counts[0, 1]), int(counts[0, 1:].sum())
        own = torch.zeros(size, dtype=torch.float64) if self._shift is None else self._shift
        shifts = all_gather_stack(torch.cat([own.new_full((1,), self.num_rows), own]))
        shift = shifts[shifts[:, 0] > 0][0, 1:]
        sums = own.new_zeros(size + 1, size + 1) if self._sums is None else _about(shift, own, self._sums)
        total = Moments()
        total.num_rows, total._num_inputs = int(counts[:, 0].sum()), num_inputs
        total._shift, total._sums = shift, all_reduce_sum(sums)
        return total

    def covariances(self) -> Covariances:
        """The centred second moments of all rows so far."""
        if self._sums is None or self._shift is None:
            raise ValueError("no rows were added, expected at least one")
        size = self._num_inputs
        means = self._sums[-1, :-1] / self.num_rows
        centred = self._sums[:-1, :-1] / self.num_rows - torch.outer(means, means)
        mean = self._shift + means
        return Covariances(
            mean_x=mean[:size],
            mean_y=mean[size:],
            xx=centred[:size, :size],
            xy=centred[:size, size:],
            yy=centred[size:, size:],
        )

    @property
    def _sizes(self) -> tuple[int, int]:
        """p and q."""
        return self._num_inputs, 0 if self._shift is None else len(self._shift) - self._num_inputs


def _about(shift: Tensor, old: Tensor, sums: Tensor) -> Tensor:
    """Sums of [z; 1] [z; 1]ᵀ about another shift: z + old − shift is a linear map of [z; 1]."""
    step = torch.eye(len(sums), dtype=sums.dtype, device=sums.device)
    step[:-1, -1] = old - shift
    return step @ sums @ step.T
