"""How scores of signed distance fields are shown: a table for the terminal, and a page with what cameras see."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from eugen3d.cli.formats import Cell, number, sdf_cells
from eugen3d.cli.page import measured_on, title_of, write_page
from eugen3d.cli.report import data_url
from eugen3d.cli.score_table import html_table, quality_plots, terminal_table


@dataclass(frozen=True)
class SdfView:
    """What a held-out frame's camera saw, and sees of every run's field, as PNG files."""

    frame: str
    measured: bytes
    renders: list[bytes]
    depth_errors: list[float | None]
    """Of each run, metres."""


def sdf_table(result: dict[str, Any]) -> Table:
    """The score for the terminal."""
    title = f"{result['scene']}: {result['num_frames']} held-out frames"
    caption = (
        f"{result['device']}, {result['precision']}; a query: {result['query_points']:,} distances and gradients; "
        f"compared with {result['runs'][0]['name']}"
    )
    return terminal_table(result["runs"], _cells(result), title, caption)


def write_sdf_report(path: Path, result: dict[str, Any], views: Sequence[SdfView]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: what `eugen3d score` writes as JSON.
        views: the frames to show.
    """
    conditions = {
        "scene": result["scene"],
        "frames": f"{result['num_frames']}, held out",
        "device": f"{result['device']}, {result['precision']}",
        **measured_on(result),
    }
    write_page(
        path,
        Path(__file__).with_name("sdf_report.html"),
        title_of(result["scene"], result["runs"]),
        conditions,
        table=html_table(result["runs"], _cells(result)),
        notes="".join(f"<li>{note}</li>" for note in _notes(result)),
        plots=_plots(result),
        views="\n".join(_view(view, result) for view in views),
    )


def _cells(result: dict[str, Any]) -> list[dict[str, Cell]]:
    """Every run's numbers by heading, less what no run has: errors against a mesh where there is none."""
    first = result["runs"][0]
    rows = [sdf_cells(run, first) for run in result["runs"]]
    measured = [heading for heading in rows[0] if any(row[heading][0] != number(None, 0) for row in rows)]
    return [{heading: row[heading] for heading in measured} for row in rows]


def _notes(result: dict[str, Any]) -> list[str]:
    return [
        f"Small figures are ratios to {escape(result['runs'][0]['name'])}.",
        "SDF is the mean |s − d| in the volume that the held-out frames saw, d being the distance to the data's mesh; "
        "surface the same at the points that they measured; 1 − cos the gradients' cosine distance in that volume. "
        "Depth is the mean error of traced rays, at the pixels with a measurement.",
        f"A query is {result['query_points']:,} distances and gradients by the folded field, in float32, all runs in "
        "turn. Parameters and FLOPs are those of the folded fields.",
    ]


def _plots(result: dict[str, Any]) -> str:
    is_known = "sdf_error" in result["runs"][0]
    quality = ("sdf_error", "SDF error in cm") if is_known else ("depth_error", "depth in cm")
    costs = (("seconds_per_query", "seconds per query"), ("num_parameters", "parameters, folded"))
    return quality_plots(result["runs"], quality, costs, unit=100)


def _view(view: SdfView, result: dict[str, Any]) -> str:
    pictures = [("measured", "", view.measured)]
    for run, error, png in zip(result["runs"], view.depth_errors, view.renders, strict=True):
        pictures.append((run["name"], "" if error is None else f"{100 * error:.1f} cm", png))
    figures = "".join(
        f"<figure><figcaption><b>{escape(name)}</b> <span>{note}</span></figcaption>"
        f'<img src="{data_url(png)}" alt="{escape(f"{view.frame}, {name}")}"></figure>'
        for name, note, png in pictures
    )
    return f'<section class="view"><h3>{escape(view.frame)}</h3><div class="strip">{figures}</div></section>'
