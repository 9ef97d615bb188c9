"""What an interrupted `eugen3d bench` has measured so far, kept in a file beside its output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole

Value = TypeVar("Value")


class MeasuredSoFar:
    """Measurements by name, each saved as soon as it is there, and taken from the file instead of being repeated.

    Attributes:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None, conditions: dict[str, Any]) -> None:
        self.path = path
        self._conditions = json.loads(json.dumps(conditions))  # tuples and lists are the same in the file
        self._values: dict[str, Any] = {}

    @classmethod
    def open(cls, output: Path | None, conditions: dict[str, Any]) -> "MeasuredSoFar":
        """What an interrupted call under the same conditions left beside its output file, or nothing yet.

        Args:
            output: the result file; None where there is none, and nothing is kept.
            conditions: settings and machine: what the measurements depend on.

        Raises:
            UsageError: when there are measurements under other conditions, or a file that cannot be read.
        """
        path = output and output.with_name(f"{output.name}.partial")
        measured = cls(path, conditions)
        if path is None or not path.exists():
            return measured
        try:
            saved = json.loads(path.read_text())
            found, measured._values = dict(saved["conditions"]), dict(saved["measured"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: cannot be read, expected an interrupted call's progress; delete it") from None
        differing = [key for key in conditions if found.get(key) != measured._conditions[key]]
        if differing:
            raise UsageError(
                f"{path}: is of a call with other {', '.join(differing)}, expected the same; repeat that or delete it"
            )
        return measured

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def take(self, name: str, measure: Callable[[], Value]) -> Value:
        """What was measured under this name, measured and kept first where it is not there: plain JSON values."""
        if name not in self._values:
            self._values[name] = measure()
            if self.path is not None:
                content = {"conditions": self._conditions, "measured": self._values}
                write_whole(self.path, json.dumps(content) + "\n")
        return self._values[name]

    def remove(self) -> None:
        """Delete the file: the result is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
