"""How the result of `eugen3d bench fusion` is shown: a line for every measure, a column for every contestant."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

CENTIMETRES = ("depth_error", "sdf_error", "surface_sdf_error", "accuracy", "completion", "chamfer")
SHARES = ("hit_rate", "precision", "recall", "f_score")


def table(result: dict[str, Any]) -> Table:
    """Errors in centimetres, shares in per cent, the rest as it is; a dash where nothing was measured."""
    rows, volume = result["rows"], result["volume"]
    first = rows[0]["metrics"]
    shape = " x ".join(map(str, volume["shape"]))
    settings = result["settings"]
    fused = f"{volume['num_frames']} frames fused into {shape} voxels of {settings['voxel']} m"
    table = Table(
        title=f"{settings['data']}: held-out frames ({first['num_frames']:.0f})",
        caption=f"{fused}, distances kept up to {volume['truncation']:g} m; {result['hardware']}",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
    )
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right", no_wrap=True)
    for key in first:
        if key != "num_frames":
            table.add_row(_label(key), *(_cell(key, row["metrics"][key]) for row in rows))
    table.add_row("fusing, ms/frame", *(_cell("ms", _times(1e3, row["seconds_per_frame"])) for row in rows))
    table.add_row("mesh, faces", *(f"{row['num_faces']:,}" for row in rows))
    return table


def _label(key: str) -> str:
    name = key.replace("_", " ")
    unit = ", cm" if _kind(key) in CENTIMETRES else ", %" if key in SHARES else ""
    return f"{name}{unit}".replace("[", " at ").replace("]", "")


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if _kind(key) in CENTIMETRES:
        return f"{100 * value:.2f}"
    return f"{100 * value:.1f}" if key in SHARES else f"{value:.3g}"


def _kind(key: str) -> str:
    """A measure's name without the range of distances it is of."""
    return key.partition("[")[0]


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
