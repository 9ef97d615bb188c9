"""What the rows of `eugen3d bench approximation` say, in words; every statement is computed from them.

Layers of different kinds rarely cost the same. A family (all rows alike but for m) is a curve of error over cost, and
is compared at another's cost where that lies within the curve, by linear interpolation of the logarithms.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

Row = dict[str, Any]
Family = tuple[Any, ...]
FAMILY = ("kind", "order", "projection", "trained", "phi", "use_norm")
COST = {"lone": "num_parameters", "chain": "flops"}
"""What is equal in a comparison: what is stored, or what one more layer costs a folded chain."""


def statements(rows: Sequence[Row]) -> list[str]:
    """Who wins at equal cost, and what orthogonality, training, the norm, Φ and higher orders bring."""
    found = [line for group in comparisons(rows) for line in _winners(group)]
    found += _orthogonality(rows)
    found += _changes(rows, "trained", False, True, "training the projections")
    found += _changes(rows, "use_norm", False, True, "the norm")
    found += _changes(rows, "phi", "relu", "identity", "identity for ReLU")
    for order in sorted({row["order"] for row in rows if row["order"] > 1}):
        found += _changes(rows, "order", 1, order, f"order {order} for order 1")
    return found


def comparisons(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by target and setting."""
    ordered = sorted(rows, key=_comparison)
    return [list(group) for _, group in groupby(ordered, key=_comparison)]


def error_at(cost: float, family: Iterable[Row]) -> float | None:
    """The error of a family at a cost between those of its rows; None outside."""
    points = sorted((row[COST[row["setting"]]], row["relative_error"]) for row in family)
    for here, there in zip(points, [*points[1:], points[-1]], strict=True):
        if here[0] == cost:
            return here[1]
        if here[0] < cost < there[0] and min(here[1], there[1]) > 0:
            share = math.log(cost / here[0]) / math.log(there[0] / here[0])
            return math.exp((1 - share) * math.log(here[1]) + share * math.log(there[1]))
    return None


def error_within(budget: float, family: Sequence[Row]) -> float | None:
    """The error of a family at a cost; where its largest row costs less, of that one; None where its smallest is over
    the budget."""
    largest = max(family, key=lambda row: row[COST[row["setting"]]])
    return largest["relative_error"] if largest[COST[largest["setting"]]] <= budget else error_at(budget, family)


def families(rows: Iterable[Row]) -> dict[Family, list[Row]]:
    """Rows by all that they are but m."""
    found: dict[Family, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in FAMILY), []).append(row)
    return found


def describe(row: Row) -> str:
    """A row's family in words."""
    if row["kind"] in ("low-rank", "narrow"):
        return row["kind"]
    words = [row["kind"], f"{'trained' if row['trained'] else 'fixed'} {row['projection']}", row["phi"]]
    words += [f"order {row['order']}"] if row["order"] > 1 else []
    return " ".join(words + (["norm"] if row["use_norm"] else []))


def _winners(group: list[Row]) -> list[str]:
    """The best family of every kind at the cost of each row of the first EUGen family, or of whatever is first."""
    target, setting = group[0]["target"], group[0]["setting"]
    by_family = families(group)
    first = next((rows for rows in by_family.values() if rows[0]["kind"] == "eugen"), next(iter(by_family.values())))
    lines = []
    for cost in sorted({row[COST[setting]] for row in first}):
        best: dict[str, tuple[float, str]] = {}
        for rows in by_family.values():
            error = error_within(cost, rows)
            if error is not None and error < best.get(rows[0]["kind"], (math.inf, ""))[0]:
                best[rows[0]["kind"]] = error, describe(rows[0])
        ranked = sorted(best.values())
        if len(ranked) > 1:
            others = ", ".join(f"{name} {error:.3g}" for error, name in ranked[1:])
            unit = "parameters" if setting == "lone" else "FLOPs"
            lines.append(f"{target}, {setting}, {cost} {unit}: {ranked[0][1]} wins with {ranked[0][0]:.3g}; {others}")
    return lines


def _orthogonality(rows: Sequence[Row]) -> list[str]:
    """Whether orthogonal projections are ever behind iid ones, by more than two standard errors of the difference."""
    pairs = [(b, a) for a, b in _pairs(rows, "projection", "gaussian", "orthogonal") if a["setting"] == "lone"]
    known = [(a, b) for a, b in pairs if None not in (a["standard_error"], b["standard_error"])]
    if not known:
        return []

    def distance(pair: tuple[Row, Row]) -> float:
        spread = math.hypot(pair[0]["standard_error"], pair[1]["standard_error"])
        return (pair[0]["relative_error"] - pair[1]["relative_error"]) / max(spread, 1e-300)

    behind = [pair for pair in known if distance(pair) > 2]
    ahead = sum(distance(pair) < -2 for pair in known)
    line = (
        f"orthogonal against iid projections, {len(known)} pairs: ahead by more than two standard errors in {ahead}, "
        f"behind in {len(behind)}"
    )
    worst = [
        f"{one['target']} {describe(one)} m={one['num_features']}: {one['relative_error']:.3g} against "
        f"{other['relative_error']:.3g}"
        for one, other in sorted(behind, key=distance, reverse=True)[:3]
    ]
    return [line + (f"; most of all {'; '.join(worst)}" if worst else "")]


def _changes(rows: Sequence[Row], key: str, before: Any, after: Any, name: str) -> list[str]:
    """What a change of one setting does to the error: at equal m, and at equal cost in either setting."""
    parts = []
    lone = [row for row in rows if row["setting"] == "lone"]
    if ratios := [b["relative_error"] / a["relative_error"] for a, b in _pairs(lone, key, before, after)]:
        parts.append(f"{_summary(ratios)} at equal m")
    for setting, cost in COST.items():
        ratios = []
        for group in comparisons([row for row in rows if row["setting"] == setting and row["kind"] == "eugen"]):
            plain = families(row for row in group if row[key] == before)
            for row in (row for row in group if row[key] == after):
                partner = plain.get(tuple(before if k == key else row[k] for k in FAMILY), [])
                if partner and (error := error_at(row[cost], partner)):
                    ratios.append(row["relative_error"] / error)
        if ratios:
            parts.append(f"{_summary(ratios)} at equal {'parameters' if setting == 'lone' else 'FLOPs in a chain'}")
    return [f"{name}: error {'; '.join(parts)}"] if parts else []


def _pairs(rows: Sequence[Row], key: str, before: Any, after: Any) -> list[tuple[Row, Row]]:
    """EUGen rows that differ in one setting alone."""
    same = [k for k in ("target", "setting", "num_features", *FAMILY) if k != key]
    index = {tuple(row[k] for k in same): row for row in rows if row["kind"] == "eugen" and row[key] == before}
    changed = [row for row in rows if row["kind"] == "eugen" and row[key] == after]
    return [(index[k], row) for row in changed if (k := tuple(row[name] for name in same)) in index]


def _summary(ratios: Sequence[float]) -> str:
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"× {mean:.3g} (geometric mean of {len(ratios)}, lower in {sum(ratio < 1 for ratio in ratios)})"


def _comparison(row: Row) -> tuple[str, str]:
    return row["target"], row["setting"]
