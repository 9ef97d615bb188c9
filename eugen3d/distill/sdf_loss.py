"""What a student of a signed distance field is fitted for: the teacher's distances, and their gradients."""

import torch
from torch import Tensor

from eugen3d.distill.fit import RowsLoss
from eugen3d.distill.network import Network
from eugen3d.distill.rays import Rows
from eugen3d.training.distributed import all_reduce_sum, world_size

GRADIENT_SHARE = 0.1
"""Weight of the gradients' error beside that of the distances."""


class SdfLoss(RowsLoss):
    """E (s − s_t)² / var s_t + λ E ‖∇s − ∇s_t‖² / E ‖∇s_t‖², t being the teacher's (Czarnecki et al. 2017).

    A student that is fitted to distances alone gets them right and turns the gradients, by which planners go.

    The teacher's values are kept for all rows. Gradients are taken in full precision, whatever autocast says.

    Args:
        teacher: takes positions (n, 3) to distances (n,).
        rows: those that may be drawn; their only input are the positions.
    """

    def __init__(self, teacher: Network, rows: Rows) -> None:
        self.rows = rows
        with torch.no_grad():
            values = [_distance_and_gradient(teacher, points) for (points,) in rows.batches()]
        self.distance, self.gradient = (torch.cat(parts) for parts in zip(*values, strict=True))
        distance, gradient = self.distance.double(), self.gradient.double()
        sums = torch.stack([distance.sum(), distance.square().sum(), gradient.square().sum()])
        count = all_reduce_sum(sums.new_tensor(float(len(rows))))
        mean, square, squared_gradient = all_reduce_sum(sums) / count
        self.distance_scale = float((square - mean.square()).clamp(min=1e-12))
        self.gradient_scale = float(squared_gradient.clamp(min=1e-12))
        self.share = float(len(rows) * world_size() / count)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, network: Network, chosen: Tensor) -> Tensor:
        """The loss at the rows whose numbers (n,) are given."""
        (points,) = self.rows[chosen.to(self.distance.device)].inputs
        distance, gradient = _distance_and_gradient(network, points)
        in_distance = (distance - self.distance[chosen]).square().mean() / self.distance_scale
        in_gradient = (gradient - self.gradient[chosen]).square().sum(dim=1).mean() / self.gradient_scale
        return self.share * (in_distance + GRADIENT_SHARE * in_gradient)


def _distance_and_gradient(network: Network, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (n,) and gradients (n, 3), with a graph where gradients are being recorded."""
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(points.device.type, enabled=False):
        x = points.detach().requires_grad_()
        distance = network((x,))[0]
        (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=is_recorded)
    return (distance, gradient) if is_recorded else (distance.detach(), gradient)
