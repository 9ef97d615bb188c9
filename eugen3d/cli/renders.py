"""Rendered views and what was measured on them, kept beside a result so that an interrupted comparison continues."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from eugen3d.cli.files import write_whole


@dataclass(frozen=True)
class Record:
    """What was measured on one view of one run."""

    key: str
    """Fingerprint of everything the numbers depend on."""
    turn: str
    """Which turn of timing it belongs to; times of one turn were taken one right after the other."""
    seconds: float
    psnr: float
    ssim: float
    lpips: float | None


class RenderStore:
    """A folder with one picture and one small JSON file for each run and view, and for each scale of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def picture_path(self, name: str, file: str, scale: int) -> Path:
        """Where the picture of a view is, 8 bits a channel; those of a scale above 1 have a folder of their own."""
        folder = self.folder / name if scale == 1 else self.folder / name / f"scale_{scale}"
        return folder / Path(file).with_suffix(".png")

    def read(self, name: str, file: str, scale: int, key: str) -> Record | None:
        """The record of a view, or None where there is none of that key."""
        picture = self.picture_path(name, file, scale)
        try:
            record = Record(**json.loads(picture.with_suffix(".json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return record if record.key == key and picture.exists() else None

    def write(self, name: str, file: str, scale: int, record: Record, rgb: Tensor) -> None:
        """Keep a record and its picture (height, width, 3); the record comes last, so it vouches for the picture."""
        picture = self.picture_path(name, file, scale)
        record_path = picture.with_suffix(".json")
        record_path.unlink(missing_ok=True)
        write_whole(picture, encode_png(to_bytes(rgb)))
        write_whole(record_path, json.dumps(dataclasses.asdict(record)))


def fingerprint(parts: Any) -> str:
    """A hash of anything that JSON writes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_bytes(rgb: Tensor) -> np.ndarray:
    """An image in [0, 1] as 8-bit values, rounded."""
    return (rgb.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()


def encode_png(rgb: np.ndarray) -> bytes:
    """An 8-bit image (height, width, 3) as PNG."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"an image of shape {rgb.shape} cannot be encoded as PNG")
    return encoded.tobytes()
