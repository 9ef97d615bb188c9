"""How scores of fitted signals are shown: a table for the terminal, and a page to look at and to listen to."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.formats import Cell, si, siren_cells
from eugen3d.cli.page import measured_on, write_page
from eugen3d.cli.plots import Point, scatter
from eugen3d.cli.siren_exhibits import Exhibit

MEASURES = {
    "image": ("psnr", "PSNR in dB"),
    "video": ("psnr", "PSNR in dB"),
    "sound": ("snr", "signal to noise in dB"),
    "shape": ("chamfer_to_diagonal", "chamfer distance, diagonals"),
}
"""What runs of a kind are plotted by, and how that is called."""


def siren_table(result: dict[str, Any]) -> Table:
    """The score for the terminal."""
    title = f"{result['signal']}: {_described(result)}"
    caption = (
        f"{result['device']}, {result['precision']}; decoding: {result['decoded_points']:,} points; "
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


def write_siren_report(path: Path, result: dict[str, Any], exhibits: Sequence[Exhibit]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: what `eugen3d score` writes as JSON.
        exhibits: the file, and what the runs make of it.
    """
    conditions = {
        "signal": result["signal"],
        "kind": _described(result),
        "device": f"{result['device']}, {result['precision']}",
        **measured_on(result),
    }
    write_page(
        path,
        Path(__file__).with_name("siren_report.html"),
        f"{result['signal']}: {', '.join(run['name'] for run in result['runs'])}",
        conditions,
        table=_html_table(result),
        notes="".join(f"<li>{note}</li>" for note in _notes(result)),
        plots=_plots(result),
        exhibits="".join(map(_figure, exhibits)),
    )


def _described(result: dict[str, Any]) -> str:
    size = " x ".join(map(str, result["size"]))
    return f"{result['kind']}{f' of {size}' if size else ''}, {si(result['file_bytes'], 'B')}"


def _cells(result: dict[str, Any]) -> list[dict[str, Cell]]:
    return [siren_cells(run, result["runs"][0], result["file_bytes"]) for run in result["runs"]]


def _notes(result: dict[str, Any]) -> list[str]:
    first = escape(result["runs"][0]["name"])
    return [
        f"Small figures are differences or ratios to {first}; of the weights, to the file.",
        f"Decoding is the folded network at {result['decoded_points']:,} points, in float32, all runs in turn. Weights "
        "are those of the folded network, four bytes each.",
        *([f"LPIPS was not measured: {escape(result['lpips_reason'])}"] if result["lpips_reason"] else []),
    ]


def _html_table(result: dict[str, Any]) -> str:
    rows, cells = [], _cells(result)
    for index, (run, own) in enumerate(zip(result["runs"], cells, strict=True)):
        name = f'<i class="key series-{index % 8}"></i>{escape(run["name"])}'
        figures = "".join(f"<td>{value}<small>{note}</small></td>" for value, note in own.values())
        rows.append(f'<tr><th scope="row">{name}<small>{escape(run["method"])}</small></th>{figures}</tr>')
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in ("run", *cells[0]))
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _plots(result: dict[str, Any]) -> str:
    key, label = MEASURES[result["kind"]]
    runs = [(index, run) for index, run in enumerate(result["runs"]) if run.get(key) is not None]
    figures = []
    for cost, axis in (("seconds_per_decode", "seconds to decode"), ("folded_bytes", "bytes, folded")):
        points = [Point(run["name"], run[cost], run[key], index) for index, run in runs]
        if points:
            figures.append(f"<figure>{scatter(points, axis, label)}</figure>")
    return "\n".join(figures)


def _figure(exhibit: Exhibit) -> str:
    url = f"data:{exhibit.media_type};base64,{base64.b64encode(exhibit.content).decode()}"
    name = escape(exhibit.name)
    is_sound = exhibit.media_type.startswith("audio/")
    shown = f'<audio controls src="{url}"></audio>' if is_sound else f'<img src="{url}" alt="{name}">'
    return f"<figure><figcaption><b>{name}</b></figcaption>{shown}</figure>"
