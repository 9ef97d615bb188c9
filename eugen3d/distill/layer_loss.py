"""What one layer's outputs differ from the teacher's: the paper's target of a layer that is trained."""

import torch
import torch.nn.functional as F
from torch import Tensor

from eugen3d.distill.network import Network
from eugen3d.distill.problem import LayerProblem
from eugen3d.distill.rays import CHUNK_ROWS
from eugen3d.training.distributed import all_reduce_sum, world_size

MAX_ROWS = 1 << 16
"""Rows that are kept, inputs and targets, evenly from all batches."""


class LayerLoss:
    """Huber's loss between a layer's outputs and the teacher's, activation included, in units of their deviation.

    As the paper trains the layers that it distils (EUGens, 2025). No other layer is run for it: the rows that the layer
    sees are those that the layers before it give now, of use until one of them moves.

    Args:
        problem: of a site, over the rows that may be drawn.
    """

    @torch.no_grad()
    def __init__(self, problem: LayerProblem) -> None:
        self.name = problem.name
        self.inputs, self.targets = _thinned(problem)
        sums = torch.stack([self.targets.double().sum(dim=0), self.targets.double().square().sum(dim=0)])
        count = all_reduce_sum(sums.new_tensor(float(len(self.targets))))
        mean, square = all_reduce_sum(sums) / count
        self.deviation = float((square - mean.square()).clamp(min=0).mean().sqrt().clamp(min=1e-12))
        self.share = float(len(self.targets) * world_size() / count)

    def __call__(self, network: Network, generator: torch.Generator, num_rows: int) -> Tensor:
        chosen = torch.randint(len(self.targets), (num_rows or CHUNK_ROWS,), generator=generator)
        return self.at(network, chosen.to(self.targets.device))

    def at(self, network: Network, chosen: Tensor) -> Tensor:
        """The loss at the rows whose numbers (n,) are given."""
        outputs = network.block(self.name)(self.inputs[chosen]).float()
        return self.share * F.huber_loss(outputs / self.deviation, self.targets[chosen] / self.deviation)

    @torch.no_grad()
    def of(self, network: Network) -> float:
        """The loss at all rows of all processes."""
        parts = torch.arange(len(self.targets), device=self.targets.device).split(CHUNK_ROWS)
        total = torch.stack([self.at(network, part).double() * len(part) for part in parts]).sum() / len(self.targets)
        return float(all_reduce_sum(total)) / world_size()


def _thinned(problem: LayerProblem) -> tuple[Tensor, Tensor]:
    """What the layer sees and what it should give, at no more than `MAX_ROWS` of the rows."""
    inputs, targets, every, count = [], [], 1, 0
    for x, z in problem.chunks():
        inputs.append(x[::every].float())
        targets.append(problem.activation(z[::every]).float())
        count += len(inputs[-1])
        while count > MAX_ROWS:
            inputs, targets = [part[::2] for part in inputs], [part[::2] for part in targets]
            every, count = 2 * every, sum(map(len, inputs))
    return torch.cat(inputs), torch.cat(targets)
