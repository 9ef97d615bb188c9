"""What `eugen3d plan` has measured so far, kept in a file beside its output folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole


class PlanProgress:
    """Sensitivities and trials, saved after every layer and every trial.

    Attributes:
        path: the file; it is gone once the output folder is there.
        losses: of every layer that was measured, by its name, in the order of its options.
        trials: what was measured on plans, by the plan's own JSON, and whether it was timed.
        seconds: time spent so far, by phase.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path, self._settings = path, settings
        self.losses: dict[str, list[float]] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        self.seconds = dict.fromkeys(("sample", "sensitivity", "trials"), 0.0)

    @classmethod
    def open(cls, output_dir: Path, settings: Mapping[str, Any]) -> "PlanProgress":
        """The progress of an interrupted call with the same settings, or a new one.

        Raises:
            UsageError: when there is progress of a call with other settings.
        """
        path = output_dir.parent / f"{output_dir.name}.partial"
        progress = cls(path, json.dumps(settings, sort_keys=True))
        if not path.exists():
            return progress
        try:
            saved = json.loads(path.read_text(encoding="utf8"))
            same = saved["settings"] == progress._settings
            progress.losses, progress.trials, progress.seconds = saved["losses"], saved["trials"], saved["seconds"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: cannot be read, expected an interrupted call's progress; delete it") from None
        if not same:
            raise UsageError(f"{path}: is of a call with other settings, expected the same; repeat that or delete it")
        return progress

    def save(self) -> None:
        """Write the file."""
        kept = {"losses": self.losses, "trials": self.trials, "seconds": self.seconds}
        write_whole(self.path, json.dumps({"settings": self._settings, **kept}))

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self.path.unlink(missing_ok=True)
