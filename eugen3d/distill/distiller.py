"""A network distilled layer by layer: what is done to which layer, in which order."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, Protocol, Self, TypeVar

import torch

from eugen3d.distill.fit import FitConfig, Loss, fit_layer
from eugen3d.distill.layer_loss import LayerLoss
from eugen3d.distill.layerwise import LayerReport, LayerwiseConfig, refit_dense, replace_layer, report_layer
from eugen3d.distill.network import Batch, Network
from eugen3d.distill.problem import LayerProblem
from eugen3d.distill.solve import Conditioning
from eugen3d.training.distributed import all_reduce_sum


class TrainingData(Protocol):
    """What networks are compared on: rows of a field's rays, or batches of any module's inputs."""

    def __len__(self) -> int: ...

    def batches(self) -> Iterable[Batch]:
        """All of it, in batches; the same ones every time."""
        ...

    def split(self) -> tuple[Self, Self]:
        """What solves and fits may see, and what is held out."""
        ...


Data = TypeVar("Data", bound=TrainingData)


@dataclass(frozen=True)
class LayerTask:
    """One thing that is done to one layer."""

    action: Literal["replace", "refit", "fit"]
    """A closed form in the dense layer's place, a correction of a dense layer, or gradient steps."""
    layer: str
    """Its site, such as "trunk.3"."""
    sweep: int = 0
    """For gradient steps: how many times the layers were gone through before."""

    def __str__(self) -> str:
        return f"{self.layer} {self.action}" + (f" {self.sweep}" if self.action == "fit" else "")


class Distiller(Generic[Data]):
    """Makes a student of a network: layers replaced, the others corrected, all of them fitted one at a time.

    Args:
        teacher: the trained network, dense; it stays as it is.
        student: a copy of it, changed in place, in which some tasks may be done already.
        layers: how each layer that is replaced is found, by its site.
        rows: where the networks are compared. A part is kept for the choice of ridges and the errors that are
            reported. Over several processes each has rows of its own, and all come to the same student.
        fit: how long layers are fitted.
        loss: for what they are fitted, from the teacher and rows.
    """

    def __init__(
        self,
        teacher: Network,
        student: Network,
        layers: Mapping[str, LayerwiseConfig],
        rows: Data,
        fit: FitConfig,
        loss: Callable[[Network, Data], Loss],
    ) -> None:
        self.teacher, self.student, self.layers, self.fit = teacher, student, dict(layers), fit
        self.num_rows, self._make_loss = int(all_reduce_sum(torch.tensor(len(rows)))), loss
        self.training_rows, self.held_out_rows = rows.split()

    @property
    def tasks(self) -> list[LayerTask]:
        """What is to be done, in order; every layer after the first replaced one has its turn."""
        order = list(self.teacher.sites)
        first = min((order.index(name) for name in self.layers), default=len(order))
        tasks: list[LayerTask] = []
        for name in order[first:]:
            if name not in self.layers:
                tasks.append(LayerTask("refit", name))
                continue
            tasks.append(LayerTask("replace", name))
            if self.fit.steps:
                tasks.append(LayerTask("fit", name))
        if self.fit.steps and tasks:
            sweeps = range(1, self.fit.sweeps + 1)
            tasks += [LayerTask("fit", name, sweep) for sweep in sweeps for name in order]
        return tasks

    def run(
        self, task: LayerTask, generator: torch.Generator, on_step: Callable[[], None] = lambda: None
    ) -> Conditioning | None:
        """Do one task, in place.

        Args:
            on_step: called after every gradient step.

        Returns:
            How well the closed form was determined that replaced a layer.

        Raises:
            ValueError: the rows are too few, or hold values that are not finite.
        """
        training, held_out = self.training_rows.batches(), self.held_out_rows.batches()
        if task.action == "replace":
            config = self.layers[task.layer]
            return replace_layer(self.teacher, self.student, task.layer, training, config, generator, held_out)
        if task.action == "refit":
            refit_dense(self.teacher, self.student, task.layer, training, held_out)
        else:
            losses = self.losses if self.fit.target == "output" else self._layer_losses(task.layer)
            fit_layer(self.student, task.layer, losses, self.fit, generator, task.sweep, on_step)
        return None

    def reports(self) -> list[LayerReport]:
        """How every replaced layer stands for the teacher's."""
        batches = self.held_out_rows.batches()
        return [report_layer(self.teacher, self.student, name, batches) for name in self.layers]

    @cached_property
    def losses(self) -> tuple[Loss, Loss]:
        """The loss at the rows that may be seen, and at those that are held out."""
        training, held_out = (self._make_loss(self.teacher, rows) for rows in (self.training_rows, self.held_out_rows))
        return training, held_out

    def _layer_losses(self, name: str) -> tuple[Loss, Loss]:
        """The same for the outputs of one layer, at what it sees now."""
        training, held_out = (
            LayerLoss(LayerProblem(self.teacher, self.student, name, rows.batches()))
            for rows in (self.training_rows, self.held_out_rows)
        )
        return training, held_out
