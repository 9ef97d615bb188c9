"""What an interrupted command has done, kept in a file beside its output folder."""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole


class PartialFile:
    """Tensors and plain values, with the settings of the call that they are of.

    Args:
        output_dir: the folder that the command makes.
        settings: what has to be the same for another call to go on from here.

    Attributes:
        path: the file; the command removes it once its folder is there.
    """

    def __init__(self, output_dir: Path, settings: Mapping[str, Any]) -> None:
        self.path = output_dir.parent / f"{output_dir.name}.partial"
        self._settings = json.dumps(settings, sort_keys=True)

    def read(self) -> dict[str, Any] | None:
        """What was kept, or None where there is no file.

        Raises:
            UsageError: it cannot be read, or is of a call with other settings.
        """
        if not self.path.exists():
            return None
        try:
            content = dict(torch.load(self.path, map_location="cpu", weights_only=True))
            settings = content.pop("settings")
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, OSError):
            raise UsageError(
                f"{self.path}: cannot be read, expected an interrupted call's progress; delete it"
            ) from None
        if settings != self._settings:
            raise UsageError(
                f"{self.path}: is of a call with other settings, expected the same; repeat that or delete it"
            )
        return content

    def write(self, content: Mapping[str, Any]) -> None:
        """Keep this in the place of what was kept."""
        buffer = io.BytesIO()
        torch.save({"settings": self._settings, **content}, buffer)
        write_whole(self.path, buffer.getvalue())

    def remove(self) -> None:
        """Delete the file: the work is done."""
        self.path.unlink(missing_ok=True)
