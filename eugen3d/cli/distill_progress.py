"""What `eugen3d distill` has done so far, kept in a file beside its output folder."""

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.distill import RefineState
from eugen3d.layers import EUGenConfig, make_layer


class DistillProgress:
    """Solved layers and the state of the refinement, saved after every layer and every few steps.

    Attributes:
        path: the file; it is gone once the output folder is there.
        solved: parameters of every solved layer and head, by name.
        reports: a row of `distill.json` for every solved layer.
        seconds: time spent so far, by phase.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.solved: dict[str, dict[str, Tensor]] = {}
        self.reports: list[dict[str, Any]] = []
        self.seconds = dict.fromkeys(("sample", "solve", "fit", "refine"), 0.0)
        self._settings = settings
        self._refine: dict[str, Any] | None = None

    @classmethod
    def open(cls, output_dir: Path, settings: dict[str, Any]) -> "DistillProgress":
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
        progress.solved, progress.reports = saved["solved"], saved["reports"]
        progress.seconds, progress._refine = saved["seconds"], saved["refine"]
        return progress

    def restore_layers(self, teacher: nn.ModuleDict, indices: tuple[int, ...], config: EUGenConfig) -> nn.ModuleDict:
        """A copy of the teacher's fields in which what was solved is in place."""
        fields = copy.deepcopy(teacher)
        for name, state in self.solved.items():
            field, _, part = name.partition(".")
            module = fields[field].get_submodule(part)
            if part in [f"trunk.{index}" for index in indices]:
                dense, trunk = module.get_submodule("0"), fields[field].get_submodule("trunk")
                assert isinstance(dense, nn.Linear) and isinstance(trunk, nn.ModuleList)
                module = make_layer(config, dense.in_features, dense.out_features).to(dense.weight).eval()
                trunk[int(part.removeprefix("trunk."))] = module
            module.load_state_dict(state)
        return fields

    def add(self, name: str, module: nn.Module, report: dict[str, Any] | None) -> None:
        """Keep a solved layer or head; a replaced layer comes with its row of `distill.json`."""
        self.solved[name] = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
        if report is not None:
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
            "solved": self.solved,
            "reports": self.reports,
            "seconds": self.seconds,
            "refine": self._refine,
        }
        torch.save(content, buffer)
        write_whole(self.path, buffer.getvalue())
