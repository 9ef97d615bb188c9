"""What `eugen3d bench approximation` has measured so far, kept in a file beside its output."""

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.distill.approximation import Candidate


class ApproximationProgress:
    """Errors of the candidates that are done, saved after every one; without an output nothing is kept.

    Attributes:
        path: the file, OUTPUT.partial; it is gone once the output is there.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings, default=str))
        self._done: dict[str, list[float]] = {}

    @classmethod
    def open(cls, output: Path | None, settings: dict[str, Any]) -> "ApproximationProgress":
        """The progress of an interrupted call with the same settings, or a new one.

        Raises:
            UsageError: when there is progress of a call with other settings.
        """
        path = None if output is None else output.parent / f"{output.name}.partial"
        progress = cls(path, settings)
        if path is None or not path.exists():
            return progress
        try:
            saved = json.loads(path.read_text(encoding="utf8"))
            same, done = saved["settings"] == progress._settings, dict(saved["errors"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: cannot be read, expected an interrupted call's progress; delete it") from None
        if not same:
            raise UsageError(f"{path}: is of a call with other settings, expected the same; repeat that or delete it")
        progress._done = done
        return progress

    def get(self, target: str, candidate: Candidate) -> list[float] | None:
        """Errors of a candidate, one a seed, or None where it is not done."""
        return self._done.get(_key(target, candidate))

    def add(self, target: str, candidate: Candidate, errors: list[float]) -> None:
        """Keep the errors of a candidate."""
        self._done[_key(target, candidate)] = errors
        if self.path is not None:
            write_whole(self.path, json.dumps({"settings": self._settings, "errors": self._done}))

    def remove(self) -> None:
        """Delete the file: the work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _key(target: str, candidate: Candidate) -> str:
    return json.dumps([target, *astuple(candidate)])
