"""What `eugen3d distill` has done so far, kept in a file beside its output folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from eugen3d.cli.partial import PartialFile
from eugen3d.distill import Conditioning, Network, RefineState
from eugen3d.layers import KindConfig
from eugen3d.training.distributed import from_main, is_main


class DistillProgress:
    """Layers as far as they are and the state of the refinement, saved after every layer and every few steps.

    Of several processes the first one writes and reads, and all go on from what it finds.

    Attributes:
        file: it is gone once the output folder is there.
        done: what was done to which layers, in order.
        layers: parameters of every layer that something was done to, by name.
        conditioning: how well the closed form of every replaced layer was determined, by name.
        reports: rows of `distill.json`, when all layers are done.
        seconds: time spent so far, by phase.
    """

    def __init__(self, file: PartialFile) -> None:
        self.file = file
        self.done: list[str] = []
        self.layers: dict[str, dict[str, Tensor]] = {}
        self.conditioning: dict[str, dict[str, float]] = {}
        self.reports: list[dict[str, Any]] = []
        self.seconds = dict.fromkeys(("sample", "solve", "fit", "refine"), 0.0)
        self._refine: dict[str, Any] | None = None

    @classmethod
    def open(cls, output_dir: Path, settings: dict[str, Any]) -> "DistillProgress":
        """The progress of an interrupted call with the same settings, or a new one.

        Raises:
            UsageError: when there is progress of a call with other settings.
        """
        file = PartialFile(output_dir, settings)
        return from_main(lambda: cls._read(file))

    @classmethod
    def _read(cls, file: PartialFile) -> "DistillProgress":
        progress, saved = cls(file), file.read()
        if saved is None:
            return progress
        progress.done, progress.layers, progress.reports = saved["done"], saved["layers"], saved["reports"]
        progress.seconds, progress._refine = saved["seconds"], saved["refine"]
        progress.conditioning = saved["conditioning"]
        return progress

    def restore_layers(
        self, teachers: Mapping[str, Network], chosen: Mapping[str, Mapping[str, KindConfig]]
    ) -> dict[str, Network]:
        """Copies of the teacher's networks in which what was done is in place.

        Args:
            chosen: what is put in the place of which layers, by network and site.
        """
        students = {name: network.copy() for name, network in teachers.items()}
        for name, state in self.layers.items():
            part, _, site = name.partition(".")
            if site in chosen[part]:
                students[part].place_drawn(site, chosen[part][site])
            students[part].layer(site).load_state_dict(state)
        return students

    def add(self, task: str, name: str, module: nn.Module, conditioning: Conditioning | None = None) -> None:
        """Keep a layer to which something was done."""
        self.done.append(task)
        if conditioning is not None:
            self.conditioning[name] = dataclasses.asdict(conditioning)
        self.layers[name] = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
        self._save()

    def restore_refine(self, student: nn.Module) -> RefineState:
        """The state of an interrupted refinement, with the student set to it, or a new one."""
        if self._refine is None:
            return RefineState()
        saved = self._refine
        student.load_state_dict(saved["student"])
        names = (field.name for field in dataclasses.fields(RefineState))
        return RefineState(**{name: saved[name] for name in names})

    def save_refine(self, student: nn.Module, state: RefineState) -> None:
        """Keep where the refinement stands."""
        self._refine = {**vars(state), "student": student.state_dict()}
        self._save()

    def remove(self) -> None:
        """Delete the file: the work is done."""
        if is_main():
            self.file.remove()

    def _save(self) -> None:
        if not is_main():
            return
        self.file.write(
            {
                "done": self.done,
                "layers": self.layers,
                "conditioning": self.conditioning,
                "reports": self.reports,
                "seconds": self.seconds,
                "refine": self._refine,
            }
        )
