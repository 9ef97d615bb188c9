"""What `eugen3d plan` has measured so far, kept in a file beside its output folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eugen3d.cli.partial import PartialFile


class PlanProgress:
    """Sensitivities and trials, saved after every layer and every trial.

    Attributes:
        file: it is gone once the output folder is there.
        losses: of every layer that was measured, by its name, in the order of its options.
        trials: what was measured on plans, by the plan's own JSON, and whether it was timed.
        seconds: time spent so far, by phase.
    """

    def __init__(self, file: PartialFile) -> None:
        self.file = file
        self.losses: dict[str, list[float]] = {}
        self.trials: dict[str, dict[str, Any]] = {}
        self.seconds = dict.fromkeys(("sample", "sensitivity", "trials"), 0.0)

    @classmethod
    def open(cls, output_dir: Path, settings: Mapping[str, Any]) -> "PlanProgress":
        """The progress of an interrupted call with the same settings, or a new one.

        Raises:
            UsageError: when there is progress of a call with other settings.
        """
        progress = cls(PartialFile(output_dir, settings))
        if (saved := progress.file.read()) is not None:
            progress.losses, progress.trials, progress.seconds = saved["losses"], saved["trials"], saved["seconds"]
        return progress

    def save(self) -> None:
        """Write the file."""
        self.file.write({"losses": self.losses, "trials": self.trials, "seconds": self.seconds})

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self.file.remove()
