"""How a plan and its front are shown: tables in the terminal, a picture, a page, and the two result files."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from eugen3d.cli.bench.report import write_bench_report
from eugen3d.cli.files import naming, whole_folder
from eugen3d.cli.formats import si
from eugen3d.cli.page import style
from eugen3d.cli.plots import Point, scatter

ORIGINS = ("planned", "uniform features", "uniform rank")
NOTES = (
    "Every plan was distilled in closed form, without gradients, and rendered; drops are those of the views' mean PSNR "
    "against the photographs, below the teacher's.",
    "Uniform plans give every hidden layer of all fields the same number of features, or the same rank.",
    "Operations and parameters are those of the folded fields' layers.",
)


def write_result(output_dir: Path, plan: Mapping[str, Any], front: Mapping[str, Any]) -> None:
    """Write plan.json, front.json, front.svg and report.html into a folder that appears whole."""
    files = {
        "plan.json": json.dumps(plan, indent=2) + "\n",
        "front.json": json.dumps(front, indent=2) + "\n",
        "front.svg": _picture(front),
    }
    with whole_folder(output_dir) as folder:
        for name, content in files.items():
            with naming(output_dir / name):
                (folder / name).write_text(content, encoding="utf8")
        _write_report(folder / "report.html", plan, front)


def print_plan(console: Console, plan: Mapping[str, Any], front: Mapping[str, Any], output_dir: Path) -> None:
    """Print the chosen plan layer by layer, the front beside the uniform plans, and where the files are."""
    layers = Table("layer", "kind", "m or r", "alone it loses", title="the plan", box=SIMPLE_HEAD)
    for row in layer_rows(plan, front):
        layers.add_row(*(str(value) for value in row.values()))
    console.print(layers)
    title = f"{front['scene']}: {front['num_views']} {front['split']} views, without gradients"
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("plan", "operations", "parameters", "drop in dB", "to the teacher", "speed", "front"):
        table.add_column(heading, justify="left" if heading == "plan" else "right")
    for row in point_rows(front):
        table.add_row(*row.values())
    console.print(table)
    console.print("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in front["seconds"].items()))
    files = "plan.json, front.json, front.svg and report.html"
    console.print(f"wrote {files} into {output_dir}", highlight=False, soft_wrap=True)


def layer_rows(plan: Mapping[str, Any], front: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of a plan, with what each loses when it alone is replaced, where that was measured."""
    rows = []
    for name, layer in plan["layers"].items():
        known = front["sensitivities"].get(name, [])
        losses = [entry["loss"] for entry in known if {k: v for k, v in entry.items() if k != "loss"} == layer]
        size = layer["rank"] if layer["kind"] == "low-rank" else layer["num_features"]
        rows.append(
            {
                "layer": name,
                "kind": layer["kind"] if layer["kind"] == "low-rank" else f"eugen, {layer['phi']}",
                "size": size,
                "loss": f"{losses[0]:.2e}" if losses else "–",
            }
        )
    return rows


def point_rows(front: Mapping[str, Any]) -> list[dict[str, str]]:
    """The plans that were tried, the cheapest first."""
    teacher = front["teacher"]
    return [
        {
            "plan": point["origin"] + (", chosen" if point["is_chosen"] else ""),
            "operations": f"{si(point['flops_per_sample'])} × {share(point, teacher, 'flops_per_sample')}",
            "parameters": f"{point['num_parameters']:,} × {share(point, teacher, 'num_parameters')}",
            "drop": f"{point['psnr_drop']:.2f}",
            "to the teacher": f"{_psnr(point['difference'])} dB",
            "speed": "–" if point["speedup"] is None else f"{point['speedup']:.2f}×",
            "front": "●" if point["is_on_front"] else "",
        }
        for point in front["points"]
    ]


def share(point: Mapping[str, Any], teacher: Mapping[str, Any], key: str) -> str:
    """A cost over the teacher's."""
    return f"{point[key] / teacher[key]:.3f}"


def _psnr(difference: float) -> str:
    """The PSNR of pictures that differ so, in the mean of squares."""
    return f"{-10 * math.log10(difference):.1f}" if difference > 0 else "∞"


def _points(front: Mapping[str, Any]) -> list[Point]:
    return [
        Point(_label(point), point["flops_per_sample"], point["psnr_drop"], ORIGINS.index(point["origin"]))
        for point in front["points"]
    ]


def _label(point: Mapping[str, Any]) -> str:
    """Planned points are named by their number of layers, uniform ones by their size."""
    if point["origin"] == "planned":
        return f"{len(point['layers'])} layers"
    sizes = [layer.get("num_features", layer.get("rank")) for layer in point["layers"].values()]
    return f"{'m' if point['origin'] == 'uniform features' else 'r'} = {sizes[0]}"


def _picture(front: Mapping[str, Any]) -> str:
    """The front as an SVG file of its own."""
    drawn = scatter(_points(front), "operations per sample", "drop in dB")
    opened, _, rest = drawn.partition(">")
    opened = opened.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="920" ', 1)
    return f"{opened}>\n<style>{style()}</style>{rest}\n"


def _write_report(path: Path, plan: Mapping[str, Any], front: Mapping[str, Any]) -> None:
    budget = plan["budget"]
    conditions = {
        "scene": front["scene"],
        "budget": f"{budget['kind']} {budget['value']:g}",
        "views": f"{front['num_views']} of the {front['split']} split, reduced by {front['downscale_factor']}",
        "device": front["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in front["versions"].items()),
        "date": front["date"],
    }
    chosen = ", ".join(f"{row['layer']}: {row['kind']} {row['size']}" for row in layer_rows(plan, front))
    plots = {
        f"drop against {label}": (
            [
                Point(p.label, point[key], p.y, p.series)
                for p, point in zip(_points(front), front["points"], strict=True)
            ],
            label,
            "drop in dB",
        )
        for key, label in (("flops_per_sample", "operations per sample"), ("num_parameters", "parameters"))
    }
    rows: Sequence[Mapping[str, Any]] = point_rows(front)
    title = f"{front['scene']}: which layers, and how many features"
    write_bench_report(path, title, conditions, [*NOTES, f"The chosen plan: {chosen}."], "The front", plots, rows)
