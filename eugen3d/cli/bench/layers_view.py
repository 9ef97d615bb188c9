"""How the result of `eugen3d bench layers` is shown: tables, plots, and what follows from its rows in words."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eugen3d.cli.formats import si
from eugen3d.cli.plots import Point

Row = dict[str, Any]
BUSY = 0.5
"""Load average of other processes above which times are not those of a quiet machine."""
KINDS = ("linear", "eugen", "eugen-merged", "low-rank", "snnk", "narrow")


def tables(rows: Sequence[Row]) -> list[Table]:
    """One table for every comparison, a line for every chain, a column for every backend."""
    return [_table(list(group)) for _, group in groupby(rows, key=_comparison)]


def plots(rows: Sequence[Row]) -> dict[str, tuple[list[Point], str, str]]:
    """The speedup of every chain's best backend against its cost, for every comparison with a dense chain in it."""
    return {
        _title(group[0]): (
            [
                Point(_chain_name(best), best["flops"], best["speedup"], KINDS.index(best["kind"]))
                for best in map(_best, _chains(group))
                if best["speedup"] is not None
            ],
            "FLOPs of one row",
            "speedup over dense",
        )
        for group in (list(group) for _, group in groupby(rows, key=_comparison))
    }


def remarks(result: dict[str, Any]) -> list[str]:
    """What was measured against what, and per comparison the fastest chain and its narrow equal."""
    notes = [
        f"the peak is {si(peak, 'FLOP/s')} in {dtype}: "
        f"the best of square and batch-sized products by torch's libraries, "
        f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        for dtype, peak in result["peak_flops_per_second"].items()
    ]
    notes.append(
        f"the bound is the longer of the products at that peak and the rows and parameters once through memory, at "
        f"{si(result['bandwidth_bytes_per_second'], 'B/s')} as a large copy has it"
    )
    if over := [row for row in result["rows"] if row["peak_fraction"] > 1]:
        most = max(over, key=lambda row: row["peak_fraction"])
        notes.append(
            f"{len(over)} of {len(result['rows'])} rows exceed that peak, "
            f"{_chain_name(most)} {most['backend']} by most, "
            f"{most['peak_fraction']:.0%}: it is no bound there"
        )
    if (load := result["load_average"]) is not None and load > BUSY:
        notes.append(f"the machine was busy as this began (load {load:.2g}): times are upper bounds, ratios rough")
    notes.append("memory is parameters, input and the most that a call holds at once of what torch allocates for it")
    notes += [f"{backend} was not measured: {reason}" for backend, reason in result["unavailable"].items()]
    for _, group in groupby(result["rows"], key=_comparison):
        notes += _verdict(list(group))
    return notes


def _verdict(group: list[Row]) -> list[str]:
    best = [_best(chain) for chain in _chains(group)]
    title, fastest = _title(group[0]), min(best, key=lambda row: row["seconds"])
    lines = []
    if fastest["speedup"] is not None:
        lines.append(f"{title}: the fastest is {_chain_name(fastest)}, {fastest['speedup']:.3g} times dense")
    narrow = {row["flops"]: row for row in best if row["kind"] == "narrow"}
    equals = [(row, narrow[row["flops"]]) for row in best if row["kind"] == "eugen" and row["flops"] in narrow]
    if equals:
        ratios = [row["seconds"] / equal["seconds"] for row, equal in equals]
        lines.append(
            f"{title}: EUGen chains take {min(ratios):.2f} to {max(ratios):.2f} times the narrow network of equal FLOPs"
        )
    return lines + _training_verdict(title, best)


def _training_verdict(title: str, best: list[Row]) -> list[str]:
    """How EUGen chains stand to the dense one, layers and products trained, narrow ones apart from wide."""
    dense = next((row for row in best if row["kind"] == "linear"), None)
    if dense is None or dense["direction"] == "forward":
        return []
    lines = []
    for what, is_wide in (("m up to width/4", False), ("larger m, two products for one where not merged", True)):
        for kind, form in (("eugen", "merged"), ("eugen", "factored"), ("eugen-merged", None)):
            rows = [row for row in best if (row["kind"], row["form"]) == (kind, form)]
            rows = [row for row in rows if (4 * row["num_features"] > row["width"]) == is_wide]
            if rows:
                time, memory = (
                    _range([row[key] / dense[key] for row in rows]) for key in ("seconds", "peak_memory_bytes")
                )
                trained = f"{kind} {form}" if form else kind
                lines.append(f"{title}, {what}: {trained} takes {time} of the dense time, {memory} of its memory")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _table(group: list[Row]) -> Table:
    backends = list(dict.fromkeys(row["backend"] for row in group))
    table = Table(title=_title(group[0]), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("chain")
    for heading in ("params", *(f"{backend} ms" for backend in backends), "speedup", "peak", "bound", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for chain in _chains(group):
        best, seconds = _best(chain), {row["backend"]: row["seconds"] for row in chain}
        times = [f"{1000 * seconds[backend]:.3g}" if backend in seconds else "–" for backend in backends]
        speedup = "–" if best["speedup"] is None else f"{best['speedup']:.3g}×"
        memory = si(best["peak_memory_bytes"], "B")
        table.add_row(
            *(_chain_name(best), si(best["num_parameters"]), *times, speedup),
            *(f"{best['peak_fraction']:.0%}", f"{best['roofline_fraction']:.0%}", memory),
        )
    return table


def _chains(group: Sequence[Row]) -> list[list[Row]]:
    """The rows of a comparison by chain."""
    return [list(rows) for _, rows in groupby(group, key=_chain)]


def _chain(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("kind", "num_features", "order", "form"))


def _best(chain: Sequence[Row]) -> Row:
    return min(chain, key=lambda row: row["seconds"])


def _comparison(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("width", "depth", "dtype", "direction", "batch"))


def _title(row: Row) -> str:
    return f"{row['depth']}×{row['width']}, {row['dtype']}, {row['direction']}, {row['batch']} rows"


def _chain_name(row: Row) -> str:
    settings = [f"{key}={row[name]}" for key, name in (("m", "num_features"), ("k", "order")) if row[name] is not None]
    return " ".join([row["kind"], *settings, *([row["form"]] if row["form"] else [])])
