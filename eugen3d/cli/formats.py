"""How a score's numbers are written for people, in the terminal's table and in the report alike."""

from typing import Any

Cell = tuple[str, str]


def relative_cells(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Cell]:
    """A run's numbers by heading, each with its relation to the first run, empty for the first run itself."""
    return {
        "PSNR dB": _measured(run, first, "psnr", 2),
        "SSIM": _measured(run, first, "ssim", 4),
        "LPIPS": _measured(run, first, "lpips", 4),
        **_cost_cells(run, first),
        "s/frame": (f"{run['seconds_per_frame']:.3g}", ""),
        "speed": (f"{run['speedup']:.3g}×", ""),
    }


def scale_cells(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Cell]:
    """A run's PSNR at every scale that it was measured at, each beside the first run's at that scale."""
    pairs = zip(run["scales"], first["scales"], strict=True)
    return {scale_label(own["scale"]): _measured(own, other, "psnr", 2) for own, other in pairs}


def scale_label(scale: int) -> str:
    """What is left of a side: 1, 1/2, 1/4."""
    return "1" if scale == 1 else f"1/{scale}"


def sdf_cells(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Cell]:
    """The same of a run of a field of signed distance; what was not measured in any run is left out by the caller."""

    def centimetres(key: str) -> Cell:
        value = run.get(key)
        return number(None if value is None else 100 * value, 2), _ratio(run, first, key)

    return {
        "SDF cm": centimetres("sdf_error"),
        "surface cm": centimetres("surface_sdf_error"),
        "1 - cos": (number(run.get("gradient_cosine_distance"), 3), _ratio(run, first, "gradient_cosine_distance")),
        "depth cm": centimetres("depth_error"),
        **_cost_cells(run, first),
        "ms/query": (f"{1000 * run['seconds_per_query']:.3g}", ""),
        "speed": (f"{run['speedup']:.3g}×", ""),
    }


def siren_cells(run: dict[str, Any], first: dict[str, Any], file_bytes: int) -> dict[str, Cell]:
    """The same of a run that stands for a file of so many bytes."""
    digits = {"psnr": 2, "snr": 2, "ssim": 4, "lpips": 4, "log_spectral_distance": 2, "sign_accuracy": 4}
    digits |= {"chamfer_to_diagonal": 5, "normal_consistency": 4, "iou": 4, "surface_error": 5}
    headings = {"psnr": "PSNR dB", "snr": "SNR dB", "ssim": "SSIM", "lpips": "LPIPS", "iou": "IoU"}
    headings |= {"log_spectral_distance": "LSD dB", "chamfer_to_diagonal": "chamfer/diagonal", "sign_accuracy": "signs"}
    headings |= {"normal_consistency": "normals", "surface_error": "surface"}
    return {
        **{heading: _measured(run, first, key, digits[key]) for key, heading in headings.items() if key in run},
        "params": (f"{run['num_parameters']:,}", _ratio(run, first, "num_parameters")),
        "weights": (si(run["folded_bytes"], "B"), f"file × {run['folded_bytes'] / file_bytes:.3g}"),
        "FLOPs": (si(run["flops_per_sample"]), _ratio(run, first, "flops_per_sample")),
        "ms/decode": (f"{1000 * run['seconds_per_decode']:.3g}", ""),
        "speed": (f"{run['speedup']:.3g}×", ""),
    }


def _measured(run: dict[str, Any], first: dict[str, Any], key: str, digits: int) -> Cell:
    """A figure, and how much it is above the first run's."""
    value, other = run[key], first[key]
    if run is first or value is None or other is None:
        return number(value, digits), ""
    return number(value, digits), f"{value - other:+.{digits}f}".replace("-", "−")


def _cost_cells(run: dict[str, Any], first: dict[str, Any]) -> dict[str, Cell]:
    return {
        "params": (f"{run['num_parameters']:,}", _ratio(run, first, "num_parameters")),
        "FLOPs": (si(run["flops_per_sample"]), _ratio(run, first, "flops_per_sample")),
        "file": (si(run["checkpoint_bytes"], "B"), _ratio(run, first, "checkpoint_bytes")),
    }


def _ratio(run: dict[str, Any], first: dict[str, Any], key: str) -> str:
    return "" if run is first or not run.get(key) or not first.get(key) else f"× {run[key] / first[key]:.3g}"


def number(value: float | None, digits: int) -> str:
    """A number of so many digits after the point, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def si(value: float, unit: str = "") -> str:
    """A number of three digits with a prefix of thousands: 1.19 M."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()
