"""What an experiment's runs are compared by: pictures by PSNR, fields of signed distance by their error."""

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
    seconds: str
    """The time that goes with it in what `eugen3d score` writes."""
    axis: str
    """What plots call it."""
    unit: float = 1.0
    """What it is multiplied by where it is plotted."""


PICTURES = Measure("psnr", True, ("ssim", "lpips"), "seconds_per_frame", "PSNR in dB")
DEPTH = Measure("depth_error", False, ("hit_rate",), "seconds_per_query", "depth error in cm", 100.0)
FIELDS = Measure(
    "sdf_error",
    False,
    (
        *("surface_sdf_error", "gradient_cosine_distance", "eikonal_error", "depth_error", "hit_rate"),
        *(f"sdf_error[{name}]" for name in BINS),
        *(f"collision_cost_error[{epsilon:g}]" for epsilon in EPSILONS),
    ),
    "seconds_per_query",
    "SDF error in cm",
    100.0,
)


def measure_of(run: Mapping[str, Any]) -> Measure:
    """What a run is compared by, from its entry in a score or in a result: errors against a mesh where there is one."""
    return next((measure for measure in (PICTURES, FIELDS) if measure.key in run), DEPTH)
