"""What the rows of `eugen3d bench approximation` say, in words; every statement is computed from them.

Errors differ where they do so by more than twice the combined standard error and by more than a thousandth; otherwise
there is no difference. A row of one draw, which has no standard error, differs from nothing. Costs are equal to within
a hundredth: the constants of an EUGen layer's projections are that much of it.

A family is all rows alike but for the number of features, which is a curve of error over cost. A setting's effect is
measured against the curve without it, by linear interpolation of the logarithms.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any

Row = dict[str, Any]
Family = tuple[Any, ...]
Estimate = tuple[float, float]
"""An error and its standard error, infinite where there is none."""
FAMILY = ("kind", "order", "projection", "trained", "phi", "use_norm")
COST = {"lone": "num_parameters", "chain": "flops"}
"""What is equal in a comparison: what is stored, or what one more layer costs a folded chain."""
UNITS = {"lone": "parameters", "chain": "FLOPs"}
OPPONENTS = ("low-rank", "snnk", "narrow")
SAME_COST, SAME_ERROR, STANDARD_ERRORS = 1.01, 1e-3, 2
BY_CHANCE = 0.03
"""Share of equal pairs, of ten draws each, whose means differ by more than two standard errors in one direction."""


def statements(rows: Sequence[Row]) -> list[str]:
    """Who wins at equal cost, and what orthogonality, training, the norm and higher orders bring."""
    found = [line for group in comparisons(rows) for line in _winners(group)]
    found += [line for setting in COST for line in _opponents([row for row in rows if row["setting"] == setting])]
    found += _orthogonality([row for row in rows if row["setting"] == "lone"])
    for target, group in groupby(sorted(rows, key=_target), key=_target):
        ofs = list(group)
        found += _effect(target, ofs, "trained", False, True, "training the projections")
        found += _effect(target, ofs, "use_norm", False, True, "the norm")
        for order in sorted({row["order"] for row in ofs if row["order"] > 1}):
            found += _effect(target, ofs, "order", 1, order, f"order {order} for order 1")
    return found


def comparisons(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by target and setting."""
    ordered = sorted(rows, key=_comparison)
    return [list(group) for _, group in groupby(ordered, key=_comparison)]


def budgets(group: Sequence[Row]) -> list[int]:
    """Costs at which the kinds of one target and setting are compared: those of the first EUGen family, or of any."""
    by_family = families(group)
    first = next((rows for rows in by_family.values() if rows[0]["kind"] == "eugen"), next(iter(by_family.values())))
    return sorted({row[COST[row["setting"]]] for row in first})


def best_within(budget: float, group: Iterable[Row]) -> dict[str, Row]:
    """The row of least error of every kind, of those that cost no more."""
    best: dict[str, Row] = {}
    for row in group:
        kind, cost = row["kind"], row[COST[row["setting"]]]
        if cost <= SAME_COST * budget and (kind not in best or row["relative_error"] < best[kind]["relative_error"]):
            best[kind] = row
    return best


def error_at(cost: float, family: Iterable[Row]) -> Estimate | None:
    """The error of a family at a cost between those of its rows; None outside."""
    points = sorted((row[COST[row["setting"]]], *_estimate(row)) for row in family)
    for cost_here, *here in points:
        if 1 / SAME_COST <= cost / cost_here <= SAME_COST:
            return here[0], here[1]
    for (cost_here, *here), (cost_there, *there) in pairwise(points):
        if cost_here < cost < cost_there and min(here[0], there[0]) > 0:
            share = math.log(cost / cost_here) / math.log(cost_there / cost_here)
            error = math.exp((1 - share) * math.log(here[0]) + share * math.log(there[0]))
            spread = math.hypot((1 - share) * here[1] / here[0], share * there[1] / there[0])
            return error, error * spread
    return None


def difference(one: Estimate, other: Estimate) -> int:
    """−1 where the first error is lower, 1 where it is higher, 0 where they do not differ."""
    gap = one[0] - other[0]
    if abs(gap) <= max(STANDARD_ERRORS * math.hypot(one[1], other[1]), SAME_ERROR * max(one[0], other[0])):
        return 0
    return -1 if gap < 0 else 1


def families(rows: Iterable[Row]) -> dict[Family, list[Row]]:
    """Rows by all that they are but the number of features."""
    found: dict[Family, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in FAMILY), []).append(row)
    return found


def describe(row: Row) -> str:
    """A row's family in words."""
    trained = "trained" if row["trained"] else "fixed"
    if row["kind"] in ("low-rank", "narrow"):
        return f"{row['kind']} {trained}"
    words = [row["kind"], f"{trained} {row['projection']}", row["phi"]]
    words += [f"order {row['order']}"] if row["order"] > 1 else []
    return " ".join(words + (["norm"] if row["use_norm"] else []))


def _winners(group: list[Row]) -> list[str]:
    """The best of every kind within each budget."""
    target, setting = group[0]["target"], group[0]["setting"]
    lines = []
    for budget in budgets(group):
        ranked = sorted(best_within(budget, group).values(), key=lambda row: row["relative_error"])
        if len(ranked) < 2:
            continue
        level = [row for row in ranked if not difference(_estimate(row), _estimate(ranked[0]))]
        who = f"{_shown(ranked[0])} wins" if len(level) == 1 else f"no difference: {', '.join(map(_shown, level))}"
        rest = ", ".join(_shown(row) for row in ranked if row not in level)
        lines.append(f"{target}, {setting}, {budget} {UNITS[setting]}: {who}{'; ' if rest else ''}{rest}")
    return lines


def _opponents(rows: Sequence[Row]) -> list[str]:
    """The best EUGen setting against the best of every other kind, over all targets and budgets of one setting."""
    lines = []
    for kind in OPPONENTS:
        pairs = []
        for group in comparisons(rows):
            for budget in budgets(group):
                best = best_within(budget, group)
                if "eugen" in best and kind in best:
                    pairs.append((best["eugen"], best[kind]))
        if pairs:
            equal = "stored parameters" if rows[0]["setting"] == "lone" else "FLOPs in a chain"
            lines.append(f"the best EUGen against the best {kind} at equal {equal}: {_counted(pairs)}")
    return lines


def _orthogonality(rows: Sequence[Row]) -> list[str]:
    """Orthogonal projections against iid ones, all else equal."""
    lines = []
    for trained in (False, True):
        pairs = _pairs([row for row in rows if row["trained"] == trained], "projection", "orthogonal", "gaussian")
        if pairs:
            chance = f"of as many equal pairs about {BY_CHANCE * len(pairs):.0f} would seem higher by chance"
            name = f"orthogonal against iid projections, {'trained' if trained else 'fixed'}"
            lines.append(f"{name}: {_counted(pairs)}; {chance}")
    return lines


def _counted(pairs: Sequence[tuple[Row, Row]]) -> str:
    found = [difference(_estimate(one), _estimate(other)) for one, other in pairs]
    ratio = _mean_ratio([(one["relative_error"], other["relative_error"]) for one, other in pairs])
    behind = [
        f"{one['target']} m={one['num_features']} {_shown(one)} against {_shown(other)}"
        for (one, other), sign in zip(pairs, found, strict=True)
        if sign > 0
    ]
    line = (
        f"lower error in {found.count(-1)}, no difference in {found.count(0)}, higher in {len(behind)} of {len(pairs)}"
    )
    return f"{line}, × {ratio:.3g} on average" + (f" ({'; '.join(behind)})" if behind else "")


def _effect(target: str, rows: Sequence[Row], key: str, before: Any, after: Any, name: str) -> list[str]:
    """What a change of one setting does to the error of EUGen layers at equal cost."""
    parts = []
    for setting in COST:
        group = [row for row in rows if row["setting"] == setting and row["kind"] == "eugen"]
        plain = families(row for row in group if row[key] == before)
        pairs: list[tuple[Estimate, Estimate]] = []
        for row in (row for row in group if row[key] == after):
            partner = plain.get(tuple(before if k == key else row[k] for k in FAMILY), [])
            if error := error_at(row[COST[setting]], partner):
                pairs.append((_estimate(row), error))
        if pairs:
            parts.append(f"at equal {UNITS[setting]} {_judged(pairs)}")
    return [f"{target}: {name} {'; '.join(parts)}"] if parts else []


def _judged(pairs: Sequence[tuple[Estimate, Estimate]]) -> str:
    found = [difference(one, other) for one, other in pairs]
    lower, higher = found.count(-1), found.count(1)
    words = "brings nothing" if not lower else "lowers the error" if not higher else "helps here and hurts there"
    ratio = _mean_ratio([(one[0], other[0]) for one, other in pairs])
    counts = f"lower in {lower}, no difference in {found.count(0)}, higher in {higher} of {len(pairs)}"
    return f"{words} ({counts}, × {ratio:.3g} on average)"


def _mean_ratio(pairs: Iterable[tuple[float, float]]) -> float:
    """The geometric mean."""
    logarithms = [math.log(max(one, 1e-300) / max(other, 1e-300)) for one, other in pairs]
    return math.exp(sum(logarithms) / len(logarithms))


def _pairs(rows: Sequence[Row], key: str, one: Any, other: Any) -> list[tuple[Row, Row]]:
    """EUGen rows that differ in one setting alone."""
    same = [k for k in ("target", "setting", "num_features", *FAMILY) if k != key]
    index = {tuple(row[k] for k in same): row for row in rows if row["kind"] == "eugen" and row[key] == other}
    changed = [row for row in rows if row["kind"] == "eugen" and row[key] == one]
    return [(row, index[k]) for row in changed if (k := tuple(row[name] for name in same)) in index]


def _estimate(row: Row) -> Estimate:
    spread = row["standard_error"]
    return row["relative_error"], math.inf if spread is None else spread


def _shown(row: Row) -> str:
    spread = "" if row["standard_error"] is None else f" ± {row['standard_error']:.1g}"
    return f"{describe(row)} {row['relative_error']:.3g}{spread}"


def _target(row: Row) -> str:
    return row["target"]


def _comparison(row: Row) -> tuple[str, str]:
    return row["target"], row["setting"]
