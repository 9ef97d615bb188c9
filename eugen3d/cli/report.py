"""One HTML page that shows a score: its table, plots and pictures; it needs no other file and no network."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eugen3d.cli.formats import number, relative_cells, scale_cells, scale_label
from eugen3d.cli.page import measured_on, title_of, write_page
from eugen3d.cli.renders import encode_png
from eugen3d.cli.score_table import html_table, quality_plots

COSTS = (("seconds_per_frame", "seconds per frame"), ("num_parameters", "parameters, folded"))
ERROR_SCALE = 0.25  # the mean absolute error over the channels that the colour map ends at


@dataclass(frozen=True)
class ReportView:
    """One view's pictures at one scale as PNG files."""

    file: str
    scale: int
    reference: bytes
    renders: list[bytes]
    """One of each run, in order."""


def write_report(path: Path, result: dict[str, Any], views: Sequence[ReportView]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: what `eugen3d score` writes as JSON.
        views: the pictures to show, those of one file at the result's scales one after the other.
    """
    scales = result["runs"][0]["scales"]
    names = ["reference", *(run["name"] for run in result["runs"])]
    shown = len(views) // len(scales), len(result["runs"][0]["images"])
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        title_of(result["scene"], result["runs"]),
        _conditions(result),
        table=html_table(result["runs"], [relative_cells(run, result["runs"][0]) for run in result["runs"]]),
        notes=_notes(result),
        scales=_scales(result) if len(scales) > 1 else "",
        plots=quality_plots(result["runs"], ("psnr", "PSNR in dB"), COSTS),
        file_options=_options([_title(view) for view in views], 0),
        left_options=_options(names, 0),
        right_options=_options(names, 1),
        shown=f"{shown[0]} of {shown[1]} views" if shown[0] < shown[1] else f"all {shown[1]} views",
        views="\n".join(_view(index, view, result) for index, view in enumerate(views)),
        scale=data_url(encode_png(_colours(np.linspace(0, 1, 256)[None]))),
        scale_end=f"{ERROR_SCALE:g}",
        names=json.dumps(names).replace("<", "\\u003c"),
    )


def error_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The absolute error of an 8-bit image, mean over the channels, as colours on the fixed scale."""
    error = np.abs(image.astype(np.float32) - reference.astype(np.float32)).mean(axis=-1) / 255
    return _colours(error / ERROR_SCALE)


def _colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], (height, width), as RGB of a perceptually uniform colour map."""
    levels = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _conditions(result: dict[str, Any]) -> dict[str, str]:
    width, height = result["resolution"]
    crop = result["crop"]
    return {
        "scene": result["scene"],
        "views": f"{len(result['runs'][0]['images'])} of the {result['split']} split",
        "resolution": f"{width} × {height} pixels",
        "crop": f"{crop[2]} × {crop[3]} at ({crop[0]}, {crop[1]})" if crop else "none",
        "background": result["background_color"],
        "device": f"{result['device']}, {result['precision']}",
        **measured_on(result),
    }


def _notes(result: dict[str, Any]) -> str:
    first = escape(result["runs"][0]["name"])
    notes = [
        f"Small figures compare with {first}: differences in quality, ratios in cost.",
        "Parameters and FLOPs are those of the folded fields that render. FLOPs are per sample, two for every product "
        "in their matrices, averaged over the fields; a checkpoint may hold more than renders.",
        "Seconds per frame are medians over the views, rendered in turn by all runs; the speed is the median of the "
        "views' ratios.",
    ]
    notes += sorted(
        {f"LPIPS was not measured: {escape(r['lpips_reason'])}." for r in result["runs"] if r["lpips_reason"]}
    )
    return "".join(f"<li>{note}</li>" for note in notes)


def _scales(result: dict[str, Any]) -> str:
    """PSNR at every scale, as a part of the page."""
    runs = result["runs"]
    table = html_table(runs, [scale_cells(run, runs[0]) for run in runs])
    note = (
        "At 1/k both sides of a view are divided by k: the reference's pixels are means of k × k, and runs render for "
        "a camera of as few pixels. A run that samples only their centres misses what lies between, and aliases."
    )
    shown = f'<div class="scroll" tabindex="0" role="region" aria-label="PSNR at every scale">{table}</div>'
    return f'\n\n<h2>PSNR in dB at every scale</h2>\n{shown}\n<ul class="notes"><li>{note}</li></ul>'


def _title(view: ReportView) -> str:
    """A view's file, and its scale where it is reduced."""
    return view.file if view.scale == 1 else f"{view.file}, {scale_label(view.scale)}"


def _view(index: int, view: ReportView, result: dict[str, Any]) -> str:
    """A row of pictures: the reference, and every run over its error."""
    reference, title = _decode(view.reference), _title(view)
    cells = [_figure(f"v{index}-0", view.reference, f"{title}, reference", "reference", "")]
    for number_, (run, png) in enumerate(zip(result["runs"], view.renders, strict=True), start=1):
        images = next(entry["images"] for entry in run["scales"] if entry["scale"] == view.scale)
        scores = next(image for image in images if image["file"] == view.file)
        psnr = f"{number(scores['psnr'], 2)} dB"
        errors = _picture("", encode_png(error_map(_decode(png), reference)), f"{title}, error of {run['name']}")
        alt = f"{title}, rendered by {run['name']}, PSNR {psnr}"
        cells.append(_figure(f"v{index}-{number_}", png, alt, run["name"], psnr, errors))
    heading = f"<h3>{escape(title)}</h3>"
    return f'<section class="view">{heading}<div class="strip">{"".join(cells)}</div></section>'


def _figure(key: str, png: bytes, alt: str, name: str, note: str, below: str = "") -> str:
    caption = f"<figcaption><b>{escape(name)}</b> <span>{note}</span></figcaption>"
    return f"<figure>{caption}{_picture(key, png, alt)}{below}</figure>"


def _picture(key: str, png: bytes, alt: str) -> str:
    name = f'id="{key}" ' if key else ""
    return f'<img {name}src="{data_url(png)}" alt="{escape(alt)}">'


def _options(names: Sequence[str], chosen: int) -> str:
    return "".join(
        f'<option value="{index}"{" selected" if index == chosen else ""}>{escape(name)}</option>'
        for index, name in enumerate(names)
    )


def _decode(png: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
