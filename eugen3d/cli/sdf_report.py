"""How scores of signed distance fields are shown: a table for the terminal, and a page with what cameras see."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.formats import Cell, number, sdf_cells
from eugen3d.cli.page import measured_on, write_page
from eugen3d.cli.plots import Point, scatter
from eugen3d.cli.report import data_url


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
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("run")
    cells = _cells(result)
    for heading in cells[0]:
        table.add_column(heading, justify="right")
    for run, row in zip(result["runs"], cells, strict=True):
        table.add_row(run["name"], *("\n".join(filter(None, cell)) for cell in row.values()))
    return table


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
        f"{result['scene']}: {', '.join(run['name'] for run in result['runs'])}",
        conditions,
        table=_html_table(result),
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


def _html_table(result: dict[str, Any]) -> str:
    rows, cells = [], _cells(result)
    for index, (run, own) in enumerate(zip(result["runs"], cells, strict=True)):
        name = f'<i class="key series-{index % 8}"></i>{escape(run["name"])}'
        shown = "".join(f"<td>{value}<small>{note}</small></td>" for value, note in own.values())
        rows.append(f'<tr><th scope="row">{name}<small>{escape(run["method"])}</small></th>{shown}</tr>')
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in ("run", *cells[0]))
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _plots(result: dict[str, Any]) -> str:
    key, label = (
        ("sdf_error", "SDF error in cm") if "sdf_error" in result["runs"][0] else ("depth_error", "depth in cm")
    )
    runs = [(index, run) for index, run in enumerate(result["runs"]) if run[key] is not None]
    figures = []
    for cost, axis in (("seconds_per_query", "seconds per query"), ("num_parameters", "parameters, folded")):
        points = [Point(run["name"], run[cost], 100 * run[key], index) for index, run in runs]
        if points:
            figures.append(f"<figure>{scatter(points, axis, label)}</figure>")
    return "\n".join(figures)


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
