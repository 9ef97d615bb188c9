"""How a score's numbers are written for people, in the terminal's table and in the report alike."""

from typing import Any

Cell = tuple[str, str]


def relative_cells(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Cell]:
    """A run's numbers by heading, each with its relation to the first run, empty for the first run itself."""
    is_first = run is first

    def difference(key: str, digits: int) -> str:
        if is_first or run[key] is None or first[key] is None:
            return ""
        return f"{run[key] - first[key]:+.{digits}f}".replace("-", "−")

    def ratio(key: str) -> str:
        return "" if is_first else f"× {run[key] / first[key]:.3g}"

    return {
        "PSNR dB": (number(run["psnr"], 2), difference("psnr", 2)),
        "SSIM": (number(run["ssim"], 4), difference("ssim", 4)),
        "LPIPS": (number(run["lpips"], 4), difference("lpips", 4)),
        "params": (f"{run['num_parameters']:,}", ratio("num_parameters")),
        "FLOPs": (si(run["flops_per_sample"]), ratio("flops_per_sample")),
        "file": (si(run["checkpoint_bytes"], "B"), ratio("checkpoint_bytes")),
        "s/frame": (f"{run['seconds_per_frame']:.3g}", ""),
        "speed": (f"{run['speedup']:.3g}×", ""),
    }


def number(value: float | None, digits: int) -> str:
    """A number of so many digits after the point, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def si(value: float, unit: str = "") -> str:
    """A number of three digits with a prefix of thousands: 1.19 M."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()
