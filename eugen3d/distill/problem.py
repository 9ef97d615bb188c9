"""The regression of one layer of a field: what goes in, what should come out, and who reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill.moments import Covariances, Moments
from eugen3d.distill.rays import Rows

CHUNK_ROWS = 1 << 14


@runtime_checkable
class LayeredField(Protocol):
    """What a field has to offer: a trunk of hidden layers that can be evaluated one by one."""

    trunk: nn.ModuleList

    @property
    def heads(self) -> dict[str, nn.Sequential]:
        """The linear maps that take the last trunk layer's output."""
        ...

    def readers(self, index: int) -> Tensor:
        """The matrix (outputs, width) that reads trunk layer `index`'s output: the next layer's, or the heads'."""
        ...

    def encode_position(self, x: Tensor, /) -> Tensor:
        """Encoded positions."""
        ...

    def trunk_input(self, index: int, encoded: Tensor, hidden: Tensor) -> Tensor:
        """What trunk layer `index` sees."""
        ...

    @property
    def chains(self) -> dict[str, nn.Sequential]:
        """Every layer with its activation, by name, in the order of evaluation."""
        ...

    def __call__(self, positions: Tensor, directions: Tensor, /) -> tuple[Tensor, Tensor]:
        """Density (n,) and rgb (n, 3)."""
        ...


class LayerProblem:
    """The regression of one layer: the student's inputs, the teacher's pre-activations and outputs, by chunks."""

    def __init__(self, teacher: LayeredField, student: LayeredField, index: int, rows: Rows, dense: nn.Linear) -> None:
        self.teacher, self.student, self.index, self.rows, self.dense = teacher, student, index, rows, dense

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The student's input and the teacher's pre-activation of every chunk of rows."""
        for positions in self.rows.positions.split(CHUNK_ROWS):
            yield self._input(self.student, positions), self.dense(self._input(self.teacher, positions))

    def _input(self, field: LayeredField, positions: Tensor) -> Tensor:
        encoded = field.encode_position(positions)
        hidden = encoded
        for index in range(self.index):
            hidden = field.trunk[index](field.trunk_input(index, encoded, hidden))
        return hidden if self.index == len(field.trunk) else field.trunk_input(self.index, encoded, hidden)

    def moments(self) -> "LayerMoments":
        """Stream the inputs against the pre-activations, and the outputs against themselves."""
        linear, outputs, active = Moments(), Moments(), Moments()
        for x, z in self.chunks():
            linear.update(x, z)
            outputs.update(F.relu(z), z[:, :0])
            active.update((z > 0).float(), z[:, :0])
        chances = active.covariances()
        together = chances.xx + torch.outer(chances.mean_x, chances.mean_x)
        return LayerMoments(linear.covariances(), outputs.covariances(), together)

    def readers(self, moments: "LayerMoments") -> Tensor:
        """What reads this layer's output, in float64, with the density as loud as all features together."""
        weight = self.teacher.readers(self.index).double()
        if self.index < len(self.teacher.trunk) - 1:
            return weight
        spread = (weight @ moments.outputs.xx * weight).sum(dim=1).clamp(min=0)
        loudness = (spread[1:].sum() / spread[0].clamp(min=1e-300)).sqrt()
        return torch.cat([weight[:1] * loudness, weight[1:]])

    def relative_error(self, block: nn.Module) -> float:
        """‖block(x) − y‖ / ‖y‖ over the rows, y being the teacher's output."""
        squares = torch.zeros(2, dtype=torch.float64)
        for x, z in self.chunks():
            target = F.relu(z).double()
            squares += torch.stack([(block(x).double() - target).square().sum(), target.square().sum()]).cpu()
        return float((squares[0] / squares[1]).sqrt())


@dataclass
class LayerMoments:
    """Second moments of one layer's rows."""

    linear: Covariances
    """Of the student's inputs against the teacher's pre-activations."""
    outputs: Covariances
    """Of the teacher's outputs among themselves."""
    active: Tensor
    """How often each pair of neurons is active together, (width, width)."""
