"""How the rows of `eugen3d bench approximation` are shown: a table for every target, and the fronts of the kinds."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.bench.approximation_statements import COST, comparisons, describe, families
from eugen3d.cli.formats import si
from eugen3d.cli.plots import Point

Row = dict[str, Any]
KINDS = ("eugen", "low-rank", "snnk", "narrow")


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for every target: a line for every layer, its cost alone and in a chain."""
    return [_table(target, list(group)) for target, group in groupby(rows, key=lambda row: row["target"])]


def plots(rows: Sequence[Row]) -> dict[str, tuple[list[Point], str, str]]:
    """The rows that no other one of their kind beats at its cost or below, for every target and setting."""
    found = {}
    for group in comparisons(rows):
        setting, points = group[0]["setting"], []
        for kind in KINDS:
            best = math.inf
            for row in sorted((r for r in group if r["kind"] == kind), key=lambda r: (r[COST[setting]], _error(r))):
                if 0 < row["relative_error"] < best:
                    best = row["relative_error"]
                    label = f"{kind} {row['num_features']}"
                    points.append(Point(label, row[COST[setting]], math.log10(best), KINDS.index(kind)))
        name = "parameters" if setting == "lone" else "FLOPs of one more layer"
        found[f"{group[0]['target']}, {setting}"] = points, name, "log₁₀ of the relative error"
    return found


def _table(target: str, rows: list[Row]) -> Table:
    table = Table(title=target, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("layer")
    for heading in ("m", "params", "FLOPs in a chain", "relative error", "±"):
        table.add_column(heading, justify="right", no_wrap=True)
    chained = {_key(row): row for row in rows if row["setting"] == "chain"}
    for family in families(row for row in rows if row["setting"] == "lone").values():
        for row in sorted(family, key=lambda row: row["num_features"]):
            spread = "–" if row["standard_error"] is None else f"{row['standard_error']:.1g}"
            flops = si(chained[_key(row)]["flops"])
            cells = (str(row["num_features"]), si(row["num_parameters"]), flops, f"{row['relative_error']:.4g}", spread)
            table.add_row(describe(row), *cells)
    return table


def _error(row: Row) -> float:
    return row["relative_error"]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("kind", "num_features", "order", "projection", "trained", "phi", "use_norm"))
