"""How scores of fitted signals are shown: a table for the terminal, and a page to look at and to listen to."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from eugen3d.cli.formats import Cell, si, siren_cells
from eugen3d.cli.page import measured_on, title_of, write_page
from eugen3d.cli.score_table import html_table, quality_plots, terminal_table
from eugen3d.cli.siren_exhibits import Exhibit

MEASURES = {
    "image": ("psnr", "PSNR in dB"),
    "video": ("psnr", "PSNR in dB"),
    "sound": ("snr", "signal to noise in dB"),
    "shape": ("chamfer_to_diagonal", "chamfer distance, diagonals"),
}
"""What runs of a kind are plotted by, and how that is called."""
COSTS = (("seconds_per_decode", "seconds to decode"), ("folded_bytes", "bytes, folded"))


def siren_table(result: dict[str, Any]) -> Table:
    """The score for the terminal."""
    title = f"{result['signal']}: {_described(result)}"
    caption = (
        f"{result['device']}, {result['precision']}; decoding: {result['decoded_points']:,} points; "
        f"compared with {result['runs'][0]['name']}"
    )
    return terminal_table(result["runs"], _cells(result), title, caption)


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
        title_of(result["signal"], result["runs"]),
        conditions,
        table=html_table(result["runs"], _cells(result)),
        notes="".join(f"<li>{note}</li>" for note in _notes(result)),
        plots=quality_plots(result["runs"], MEASURES[result["kind"]], COSTS),
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


def _figure(exhibit: Exhibit) -> str:
    url = f"data:{exhibit.media_type};base64,{base64.b64encode(exhibit.content).decode()}"
    name = escape(exhibit.name)
    is_sound = exhibit.media_type.startswith("audio/")
    shown = f'<audio controls src="{url}"></audio>' if is_sound else f'<img src="{url}" alt="{name}">'
    return f"<figure><figcaption><b>{name}</b></figcaption>{shown}</figure>"
