"""What `eugen3d distill` has done so far, kept in a file beside its output folder."""

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.distill import RefineState


class DistillProgress:
    """Solved layers and the state of the refinement, saved after every layer and every few steps.

    Attributes:
        path: the file; it is gone once the output folder is there.
        layers: parameters of every solved layer, by name.
        reports: a row of `distill.json` for every solved layer.
        seconds: time spent so far, by phase.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.layers: dict[str, dict[str, Tensor]] = {}
        self.reports: list[dict[str, Any]] = []
        self.seconds = dict.fromkeys(("sample", "solve", "fit", "refine"), 0.0)
        self._settings = settings
        self._refine: dict[str, Any] | None = None

    @classmethod
    def open(cls, output_dir: Path, settings: dict[str, Any]) -> Self:
        """The progress of an interrupted call with the same settings, or a new one.

        Raises:
            UsageError: when there is progress of a call with other settings.
        """
        path = output_dir.parent / f"{output_dir.name}.partial"
        progress = cls(path, json.dumps(settings, sort_keys=True))
        if not path.exists():
            return progress
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            same = saved["settings"] == progress._settings
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, OSError):
            raise UsageError(f"{path}: cannot be read, expected an interrupted call's progress; delete it") from None
        if not same:
            raise UsageError(f"{path}: is of a call with other settings, expected the same; repeat that or delete it")
        progress.layers, progress.reports = saved["layers"], saved["reports"]
        progress.seconds, progress._refine = saved["seconds"], saved["refine"]
        return progress

    def restore_layers(self, teacher: nn.ModuleDict, make: Callable[[nn.ModuleList, int], nn.Module]) -> nn.ModuleDict:
        """A copy of the teacher's fields in which the solved layers are in place."""
        fields = copy.deepcopy(teacher)
        for name, state in self.layers.items():
            field, _, index = name.split(".")
            trunk = fields[field].trunk
            block = make(trunk, int(index)).to(next(trunk.parameters()))
            block.load_state_dict(state)
            trunk[int(index)] = block.eval()
        return fields

    def add_layer(self, report: dict[str, Any], block: nn.Module) -> None:
        """Keep a solved layer."""
        self.layers[report["name"]] = {key: value.detach().cpu().clone() for key, value in block.state_dict().items()}
        self.reports.append(report)
        self._save()

    def restore_refine(self, student: nn.Module) -> RefineState:
        """The state of an interrupted refinement, with the student set to it, or a new one."""
        if self._refine is None:
            return RefineState()
        saved = self._refine
        student.load_state_dict(saved["student"])
        return RefineState(saved["step"], saved["optimizer"], saved["best_loss"], saved["best"])

    def save_refine(self, student: nn.Module, state: RefineState) -> None:
        """Keep where the refinement stands."""
        self._refine = {
            "step": state.step,
            "optimizer": state.optimizer,
            "best_loss": state.best_loss,
            "best": state.best,
            "student": student.state_dict(),
        }
        self._save()

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        buffer = io.BytesIO()
        content = {
            "settings": self._settings,
            "layers": self.layers,
            "reports": self.reports,
            "seconds": self.seconds,
            "refine": self._refine,
        }
        torch.save(content, buffer)
        write_whole(self.path, buffer.getvalue())
