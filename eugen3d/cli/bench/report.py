"""One HTML page that shows a benchmark: its conditions, remarks, plots and rows; it needs no other file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eugen3d.cli.page import write_page
from eugen3d.cli.plots import Point, scatter


def write_bench_report(
    path: Path,
    title: str,
    conditions: Mapping[str, str],
    notes: Sequence[str],
    plots_title: str,
    plots: Mapping[str, tuple[Sequence[Point], str, str]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        plots: captions, each with its points and the names of its axes; one without points is left out.
        rows: the rows of the result file; the first one's keys are the headings.
    """
    figures = [
        f"<figure><figcaption><b>{escape(caption)}</b></figcaption>{scatter(points, x_label, y_label)}</figure>"
        for caption, (points, x_label, y_label) in plots.items()
        if points
    ]
    write_page(
        path,
        Path(__file__).with_name("report.html"),
        title,
        conditions,
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        plots_title=escape(plots_title),
        plots="\n".join(figures),
        table=_table(rows),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = "".join(f'<th scope="col">{escape(key)}</th>' for key in (rows[0] if rows else ()))
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
