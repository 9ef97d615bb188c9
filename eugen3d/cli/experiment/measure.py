"""What an experiment's runs are compared by: pictures by PSNR, sounds by their signal-to-noise ratio, fields of signed
distance by their error, fitted shapes by their chamfer distance."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eugen3d.metrics.sdf import BINS, EPSILONS


@dataclass(frozen=True)
class Measure:
    """A figure of a score's runs."""

    key: str
    """Its name in what `eugen3d score` writes, and in the result."""
    larger_is_better: bool
    others: tuple[str, ...]
    """What is reported beside it."""
    axis: str
    """What plots call it."""
    unit: float = 1.0
    """What it is multiplied by where it is plotted."""


PICTURES = Measure("psnr", True, ("ssim", "lpips"), "PSNR in dB")
SOUNDS = Measure("snr", True, ("log_spectral_distance",), "signal to noise in dB")
SHAPES = Measure(
    "chamfer_to_diagonal",
    False,
    ("normal_consistency", "iou", "sign_accuracy"),
    "chamfer distance, % of the diagonal",
    100.0,
)
DEPTH = Measure("depth_error", False, ("hit_rate",), "depth error in cm", 100.0)
FIELDS = Measure(
    "sdf_error",
    False,
    (
        *("surface_sdf_error", "gradient_cosine_distance", "eikonal_error", "depth_error", "hit_rate"),
        *(f"sdf_error[{name}]" for name in BINS),
        *(f"collision_cost_error[{epsilon:g}]" for epsilon in EPSILONS),
    ),
    "SDF error in cm",
    100.0,
)


TIMES = ("seconds_per_frame", "seconds_per_query", "seconds_per_decode")
"""The times that `eugen3d score` takes, each of another kind of runs."""


def measure_of(run: Mapping[str, Any]) -> Measure:
    """What a run is compared by, from its entry in a score or in a result: errors against a mesh where there is one."""
    return next((measure for measure in (PICTURES, SOUNDS, SHAPES, FIELDS) if measure.key in run), DEPTH)


def scale_keys(row: Mapping[str, Any]) -> dict[str, int]:
    """The keys of a row, or of a line of the summary, that hold PSNR at a further scale, each with that scale."""
    found = {key: re.fullmatch(r"psnr_scale_(\d+)", key) for key in row}
    return {key: int(match[1]) for key, match in found.items() if match}


def seconds_of(run: Mapping[str, Any]) -> float:
    """How long a run took for what is timed of its kind, from its entry in a score."""
    return next(run[name] for name in TIMES if name in run)
