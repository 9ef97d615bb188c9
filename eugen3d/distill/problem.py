"""The regression of one layer of a network: what goes in, what should come out, and who reads it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eugen3d.distill.moments import Covariances, Moments
from eugen3d.distill.network import Batch, Network
from eugen3d.layers.features import ACTIVATIONS
from eugen3d.training.distributed import all_reduce_sum

Pairs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Inputs and targets of a regression, from the student's inputs and the teacher's pre-activations."""


class LayerProblem:
    """The regression of one site: the student's inputs, the teacher's pre-activations and outputs, batch by batch.

    Args:
        teacher: the trained network, dense at that site.
        student: a copy in which earlier layers may be replaced.
        batches: what the networks are run on; gone through more than once.
    """

    def __init__(self, teacher: Network, student: Network, name: str, batches: Iterable[Batch]) -> None:
        self.teacher, self.student, self.name, self.batches = teacher, student, name, batches
        self.dense = teacher.dense(name)
        self.activation = ACTIVATIONS[teacher.sites[name].phi]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's input and the teacher's pre-activation of every batch."""
        for batch in self.batches:
            yield self.student.seen(self.name, batch), self.dense(self.teacher.seen(self.name, batch))

    def moments(self) -> "LayerMoments":
        """Stream the inputs against the pre-activations, the outputs and the slopes against themselves.

        Over several processes these are the moments of all their rows.
        """
        linear, outputs, slopes = Moments(), Moments(), Moments()
        for x, z in self.chunks():
            linear.update(x, z)
            outputs.update(self.activation(z), z[:, :0])
            slopes.update(self._slope(z), z[:, :0])
        linear, slope = linear.all_reduced(), slopes.all_reduced().covariances()
        together = slope.xx + torch.outer(slope.mean_x, slope.mean_x)
        return LayerMoments(linear.num_rows, linear.covariances(), outputs.all_reduced().covariances(), together)

    def regression(self, pairs: Pairs) -> Covariances:
        """Stream another regression on the same rows, of all processes."""
        moments = Moments()
        for x, z in self.chunks():
            moments.update(*pairs(x, z))
        return moments.all_reduced().covariances()

    def readers(self, moments: "LayerMoments") -> Tensor:
        """What reads this layer's output, in float64, every reader as loud as the loudest; all of it if unknown."""
        weights = [weight.double() for weight in self.teacher.read_by(self.name)]
        if not weights:
            return torch.eye(self.dense.out_features, dtype=torch.float64, device=self.dense.weight.device)
        if len(weights) == 1:
            return weights[0]
        loudness = [(weight @ moments.outputs.xx * weight).sum().clamp(min=1e-300).sqrt() for weight in weights]
        return torch.cat([weight * (max(loudness) / own) for weight, own in zip(weights, loudness, strict=True)])

    def relative_error(self, block: torch.nn.Module) -> float:
        """‖block(x) − y‖ / ‖y‖ over the batches of all processes, y being the teacher's output."""
        squares = torch.zeros(2, dtype=torch.float64)
        for x, z in self.chunks():
            target = self.activation(z).double()
            squares += torch.stack([(block(x).double() - target).square().sum(), target.square().sum()]).cpu()
        squares = all_reduce_sum(squares)
        return float((squares[0] / squares[1].clamp(min=1e-300)).sqrt())

    def _slope(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.activation(z).sum(), z)[0]


@dataclass
class LayerMoments:
    """Second moments of one layer's rows."""

    num_rows: int
    linear: Covariances
    """Of the student's inputs against the teacher's pre-activations."""
    outputs: Covariances
    """Of the teacher's outputs among themselves."""
    together: Tensor
    """E[f'(zᵢ) f'(zⱼ)] of each pair of neurons, (width, width); with ReLU how often both are active."""
