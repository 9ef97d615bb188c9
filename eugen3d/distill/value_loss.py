"""What a student of a network of values is fitted for: the teacher's values."""

import torch
from torch import Tensor

from eugen3d.distill.fit import RowsLoss
from eugen3d.distill.network import Network
from eugen3d.distill.rays import Rows
from eugen3d.training.distributed import all_reduce_sum, world_size


class ValueLoss(RowsLoss):
    """E ‖y − y_t‖² / E ‖y_t − E y_t‖², t being the teacher's.

    Args:
        teacher: takes coordinates (n, d) to values (n, c); they are kept for all rows.
        rows: those that may be drawn; their only input are the coordinates.
    """

    @torch.no_grad()
    def __init__(self, teacher: Network, rows: Rows) -> None:
        self.rows = rows
        self.values = torch.cat([teacher(batch)[0] for batch in rows.batches()])
        values = self.values.double()
        sums = torch.cat([values.sum(dim=0), values.square().sum()[None], values.new_tensor([len(rows)])])
        *mean, square, count = all_reduce_sum(sums)
        variance = square / count - sum((part / count).square() for part in mean)
        self.scale = float(variance.clamp(min=1e-12))
        self.share = float(len(rows) * world_size() / count)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, network: Network, chosen: Tensor) -> Tensor:
        """The loss at the rows whose numbers (n,) are given."""
        chosen = chosen.to(self.values.device)
        error = network(self.rows[chosen].inputs)[0] - self.values[chosen]
        return self.share * error.square().sum(dim=1).mean() / self.scale
