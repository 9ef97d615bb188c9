"""A score as a table, for the terminal and for a page: a row for each run, a cell for each figure and its note."""

from collections.abc import Sequence
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.formats import Cell
from eugen3d.cli.plots import Point, scatter

Cells = Sequence[dict[str, Cell]]
"""Every run's figures by heading."""


def terminal_table(runs: Sequence[dict[str, Any]], cells: Cells, title: str, caption: str) -> Table:
    """The table for the terminal."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("run")
    for heading in cells[0]:
        table.add_column(heading, justify="right")
    for run, row in zip(runs, cells, strict=True):
        table.add_row(run["name"], *("\n".join(filter(None, cell)) for cell in row.values()))
    return table


def html_table(runs: Sequence[dict[str, Any]], cells: Cells) -> str:
    """The table for a page."""
    rows = []
    for index, (run, own) in enumerate(zip(runs, cells, strict=True)):
        name = f'<i class="key series-{index % 8}"></i>{escape(run["name"])}'
        shown = "".join(f"<td>{value}<small>{note}</small></td>" for value, note in own.values())
        rows.append(f'<tr><th scope="row">{name}<small>{escape(run["method"])}</small></th>{shown}</tr>')
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in ("run", *cells[0]))
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def quality_plots(
    runs: Sequence[dict[str, Any]], quality: tuple[str, str], costs: Sequence[tuple[str, str]], unit: float = 1.0
) -> str:
    """Quality against every cost, of the runs that have it, for a page.

    Args:
        quality: its key, and what plots call it.
        costs: the same of each.
        unit: what the quality is multiplied by.
    """
    key, label = quality
    known = [(index, run) for index, run in enumerate(runs) if run.get(key) is not None]
    figures = [
        scatter([Point(run["name"], run[cost], unit * run[key], index) for index, run in known], axis, label)
        for cost, axis in costs
        if known
    ]
    return "\n".join(f"<figure>{figure}</figure>" for figure in figures)
