"""How an experiment is shown: its progress, its table in the terminal, and its page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.experiment.measure import FIELDS, PICTURES, SHAPES, SOUNDS, measure_of, scale_keys
from eugen3d.cli.formats import number, scale_label, si
from eugen3d.cli.page import measured_on, write_page
from eugen3d.cli.plots import Point, scatter

Row = dict[str, Any]


def lines(summary: Sequence[Row]) -> list[dict[str, str]]:
    """The summary as text by heading; what is the same trifle in all lines is left out."""
    found = [_cells(row) for row in summary]
    trifles = {"scene": {row["scene"] for row in summary[:1]}, "seeds": {"1"}, "LPIPS": {"–"}}
    left_out = {heading for heading, trifle in trifles.items() if {line.get(heading) for line in found} <= trifle}
    return [{heading: cell for heading, cell in line.items() if heading not in left_out} for line in found]


def remarks(result: Row) -> list[str]:
    """What the table's figures mean."""
    if not result["summary"]:
        return []
    reference = result["settings"]["compare_with"]
    measure = measure_of(result["summary"][0])
    delta = f"the dB less those of {reference}" if measure.larger_is_better else f"the error beside that of {reference}"
    notes = [f"Δ: {delta}; speed: {reference}'s time by its own; FLOPs per sample, folded"]
    if measure is FIELDS:
        notes.append(
            "SDF: mean |s - d| in the volume that held-out frames saw, surface: at the points that they measured, "
            "1 - cos: of the gradients; depth: of traced rays; a query is of distances and gradients"
        )
    scales = [scale_label(scale) for scale in scale_keys(result["summary"][0]).values()]
    if scales:
        notes.append(f"{', '.join(scales)}: PSNR dB of the views at this part of their sides, means over the seeds")
    verdicts = {row["verdict"] for row in result["summary"] if row[f"delta_{measure.key}"] is not None}
    if None in verdicts:
        notes.append("*: one seed, so that nothing says how much of it is noise")
    if verdicts - {None}:
        notes.append("no difference: not more than twice the standard error of the difference over the seeds")
    return notes


def table(result: Row) -> Table:
    """The summary for the terminal."""
    shown = Table(
        title=result["settings"]["name"],
        caption=result["device"],
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        pad_edge=False,
    )
    found = lines(result["summary"])
    for heading in found[0]:
        shown.add_column(heading, justify="left" if heading in ("scene", "run") else "right")
    for line in found:
        shown.add_row(*line.values())
    return shown


def describe_failure(failure: Row) -> list[str]:
    """A failure on one line, then the last lines of its log."""
    where = f"; see {failure['log']}" if failure["log"] else ""
    attempts = f"{failure['attempts']} attempt{'s' if failure['attempts'] > 1 else ''}"
    state = f"failed after {attempts}" if failure["state"] == "failed" else failure["state"]
    return [
        f"{failure['scene']}/{failure['name']}: {state} ({failure['reason']}){where}",
        *(f"    {line}" for line in failure["log_tail"]),
    ]


def write_experiment_page(path: Path, result: Row, score_pages: dict[str, Path]) -> None:
    """Write the experiment's HTML page.

    Args:
        score_pages: the page with the pictures of every scene that was scored.
    """
    links = {scene: page.relative_to(path.parent).as_posix() for scene, page in score_pages.items()}
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        result["settings"]["name"],
        {"device": result["device"], **measured_on(result), "engine": result["settings"]["engine"]},
        table=_html_table(result["summary"]),
        notes="".join(f"<li>{escape(note)}</li>" for note in remarks(result)),
        failures="".join(f"<pre>{escape(chr(10).join(describe_failure(f)))}</pre>" for f in result["failures"])
        or "<p>none</p>",
        plots="\n".join(f"<figure>{plot}</figure>" for plot in _plots(result["summary"])),
        scenes="".join(f'<li><a href="{escape(link)}">{escape(scene)}</a></li>' for scene, link in links.items()),
    )


def _html_table(summary: Sequence[Row]) -> str:
    found = lines(summary)
    head = "".join(f'<th scope="col">{heading}</th>' for heading in (found[0] if found else ()))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line.values())}</tr>" for line in found)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plots(summary: Sequence[Row]) -> list[str]:
    """Quality against parameters and against time, for every scene."""
    plots = []
    for scene in dict.fromkeys(row["scene"] for row in summary):
        own = [row for row in summary if row["scene"] == scene]
        measure = measure_of(own[0])
        rows = [row for row in own if row[measure.key] is not None]
        for key, label in (("num_parameters", "parameters, folded"), ("seconds", "seconds")):
            points = [
                Point(row["name"], row[key], measure.unit * row[measure.key], index) for index, row in enumerate(rows)
            ]
            if points:
                plots.append(f"<figcaption><b>{escape(scene)}</b></figcaption>{scatter(points, label, measure.axis)}")
    return plots


def _cells(row: Row) -> dict[str, str]:
    return {
        "scene": row["scene"],
        "run": row["name"],
        "seeds": str(row["seeds"]),
        **_quality_cells(row),
        "speed": f"{row['speedup']:.3g}×",
    }


def _quality_cells(row: Row) -> dict[str, str]:
    measure = measure_of(row)
    if measure is PICTURES:
        return _picture_cells(row)
    if measure is SOUNDS:
        return _sound_cells(row)
    return _shape_cells(row) if measure is SHAPES else _error_cells(row)


def _sound_cells(row: Row) -> dict[str, str]:
    difference = None if row["delta_snr"] is None else f"{row['delta_snr']:+.2f}"
    return {
        "SNR dB": number(row["snr"], 2) + _spread(row["snr_std"]),
        "Δ dB": _difference(row, difference),
        "LSD dB": number(row["log_spectral_distance"], 2),
        **_cost_cells(row),
        "ms/decode": f"{1000 * row['seconds']:.3g}",
    }


def _shape_cells(row: Row) -> dict[str, str]:
    key = SHAPES.key
    value, delta, deviation = row[key], row[f"delta_{key}"], row[f"{key}_std"]
    difference = None if delta is None else f"{100 * delta / (value - delta):+.1f}"
    return {
        "chamfer %": number(None if value is None else 100 * value, 3)
        + _spread(None if deviation is None else 100 * deviation, 3),
        "Δ %": _difference(row, difference),
        "normals": number(row["normal_consistency"], 3),
        "IoU": number(row["iou"], 3),
        "signs": number(row["sign_accuracy"], 4),
        **_cost_cells(row),
        "ms/decode": f"{1000 * row['seconds']:.3g}",
    }


def _picture_cells(row: Row) -> dict[str, str]:
    difference = None if row["delta_psnr"] is None else f"{row['delta_psnr']:+.2f}"
    return {
        "PSNR dB": number(row["psnr"], 2) + _spread(row["psnr_std"]),
        "Δ dB": _difference(row, difference),
        **{scale_label(scale): number(row[key], 2) for key, scale in scale_keys(row).items()},
        "SSIM": number(row["ssim"], 4),
        "LPIPS": number(row["lpips"], 4),
        **_cost_cells(row),
        "s/frame": f"{row['seconds']:.3g}",
    }


def _error_cells(row: Row) -> dict[str, str]:
    key = measure_of(row).key
    value, delta, deviation = row[key], row[f"delta_{key}"], row[f"{key}_std"]
    difference = None if delta is None else f"{100 * delta / (value - delta):+.1f}"
    cells = {
        "SDF cm" if key == "sdf_error" else "depth cm": _centimetres(value)
        + _spread(None if deviation is None else 100 * deviation),
        "Δ %": _difference(row, difference),
    }
    if key == "sdf_error":
        cells["surface cm"] = _centimetres(row["surface_sdf_error"])
        cells["1 - cos"] = number(row["gradient_cosine_distance"], 3)
        cells["depth cm"] = _centimetres(row["depth_error"])
    return cells | _cost_cells(row) | {"ms/query": f"{1000 * row['seconds']:.3g}"}


def _cost_cells(row: Row) -> dict[str, str]:
    return {"params": f"{row['num_parameters']:,}", "FLOPs": si(row["flops_per_sample"])}


def _centimetres(metres: float | None) -> str:
    return number(None if metres is None else 100 * metres, 2)


def _spread(deviation: float | None, digits: int = 2) -> str:
    return "" if deviation is None else f" ± {deviation:.{digits}f}"


def _difference(row: Row, shown: str | None) -> str:
    """A difference, unless it is lost in the noise."""
    if shown is None:
        return ""
    if row["verdict"] == "no difference":
        return row["verdict"]
    return shown.replace("-", "−") + ("*" if row["verdict"] is None else "")
