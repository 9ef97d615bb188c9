"""A field distilled layer by layer: what is done to which layer, in which order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from eugen3d.distill.fit import FieldLoss, FitConfig, fit_layer
from eugen3d.distill.layerwise import (
    LayerReport,
    LayerwiseConfig,
    refit_dense,
    replace_layer,
    report_layer,
    training_rows,
)
from eugen3d.distill.problem import LayeredField
from eugen3d.distill.rays import Rows


@dataclass(frozen=True)
class LayerTask:
    """One thing that is done to one layer."""

    action: Literal["replace", "refit", "fit"]
    """A closed form in the dense layer's place, a correction of a dense layer, or gradient steps."""
    layer: str
    """Name of the layer, such as "trunk.3"."""
    sweep: int = 0
    """For gradient steps: how many times the layers were gone through before."""

    def __str__(self) -> str:
        return f"{self.layer} {self.action}" + (f" {self.sweep}" if self.action == "fit" else "")


class FieldDistiller:
    """Makes a student of a field: layers replaced, the others corrected, all of them fitted one at a time.

    Args:
        teacher: the trained field, dense; it stays as it is.
        student: a copy of it, changed in place, in which some tasks may be done already.
        indices: trunk layers to replace.
        rows: where the fields are compared. One in eight is kept for the errors that are reported.
    """

    def __init__(
        self,
        teacher: LayeredField,
        student: LayeredField,
        indices: Sequence[int],
        rows: Rows,
        layerwise: LayerwiseConfig,
        fit: FitConfig,
    ) -> None:
        self.teacher, self.student, self.indices, self.rows = teacher, student, indices, rows
        self.layerwise, self.fit = layerwise, fit

    @property
    def tasks(self) -> list[LayerTask]:
        """What is to be done, in order; every layer and head after the first replaced one has its turn."""
        if not self.indices:
            return []
        tasks: list[LayerTask] = []
        after = [f"trunk.{index}" for index in range(min(self.indices), len(self.teacher.trunk))]
        for name in (*after, *self.teacher.heads):
            if name not in [f"trunk.{index}" for index in self.indices]:
                tasks.append(LayerTask("refit", name))
                continue
            tasks.append(LayerTask("replace", name))
            if self.fit.steps:
                tasks.append(LayerTask("fit", name))
        if self.fit.steps:
            sweeps = range(1, self.fit.sweeps + 1)
            tasks += [LayerTask("fit", name, sweep) for sweep in sweeps for name in self.teacher.chains]
        return tasks

    def run(self, task: LayerTask, generator: torch.Generator, on_step: Callable[[], None] = lambda: None) -> None:
        """Do one task, in place.

        Args:
            on_step: called after every gradient step.

        Raises:
            ValueError: the rows are too few, or hold values that are not finite.
        """
        if task.action == "replace":
            index = int(task.layer.removeprefix("trunk."))
            replace_layer(self.teacher, self.student, index, self.rows, self.layerwise, generator)
        elif task.action == "refit":
            refit_dense(self.teacher, self.student, task.layer, training_rows(self.rows))
        else:
            layer = self.student.chains[task.layer]
            fit_layer(self.student, layer, self._loss, self.fit, generator, task.sweep, on_step)

    def reports(self) -> list[LayerReport]:
        """How every replaced layer stands for the teacher's."""
        return [report_layer(self.teacher, self.student, index, self.rows) for index in self.indices]

    @cached_property
    def _loss(self) -> FieldLoss:
        return FieldLoss(self.teacher, training_rows(self.rows))
