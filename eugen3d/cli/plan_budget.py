"""The budgets of `eugen3d plan`: what is bounded, how it is written, and which plan meets it."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from eugen3d.cli.errors import UsageError

BudgetKind = Literal["max-psnr-drop", "max-parameters", "max-flops", "min-speedup"]
SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
CLOSE_ENOUGH = 1.04
"""The ratio of prices between which no further plan is tried."""
SMALLEST = 1e-3
"""dB: less is as good as nothing where values are compared by their logarithms."""


@dataclass(frozen=True)
class Budget:
    """A bound on one thing; everything else is to be as good as it can be."""

    kind: BudgetKind
    value: float

    def meets(self, value: float) -> bool:
        """Whether a measured drop or speedup, or a counted cost, is within the budget."""
        return value >= self.value if self.kind == "min-speedup" else value <= self.value

    def distance(self, value: float) -> float:
        """How far a value is from the budget, in its own unit."""
        return abs(value - self.value)

    @property
    def is_cost(self) -> bool:
        """Whether it bounds what is counted, not what is measured."""
        return self.kind in ("max-parameters", "max-flops")


@dataclass(frozen=True)
class Priced:
    """A price with the value of its plan, both positive."""

    price: float
    value: float


def parse_amount(flag: str, text: str, whole: float) -> float:
    """A number such as 150k or 1.5M, or a share of the whole such as 0.25x.

    Raises:
        UsageError: it is neither, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(x|k|M|G)?", text)
    if match is None or not (number := float(match[1])) > 0:
        raise UsageError(f"--{flag} {text}: expected a positive number such as 150000, 150k or 1.5M, or 0.5x of all")
    return number * (whole if match[2] == "x" else SUFFIXES[match[2] or ""])


def next_price(budget: Budget, tried: Iterable[Priced]) -> float | None:
    """The price at which the budget is expected to be just met, between the tried ones that are nearest to it.

    Drop and speedup both fall with the price. Between the dearest try whose value is above the budget and the cheapest
    whose value is below, the logarithms are interpolated (regula falsi), a tenth of the way from either end at least.

    Returns:
        The price, or None where the two are close enough together, or the budget is not between any.
    """
    above = [point for point in tried if point.value > budget.value]
    below = [point for point in tried if point.value <= budget.value]
    if not above or not below:
        return None
    low = max(above, key=lambda point: point.price)
    beyond = [point for point in below if point.price > low.price]
    if not beyond:
        return None
    high = min(beyond, key=lambda point: point.price)
    if high.price < CLOSE_ENOUGH * low.price:
        return None
    top, bottom, target = (math.log(max(value, SMALLEST)) for value in (low.value, high.value, budget.value))
    share = (top - target) / (top - bottom) if top > bottom else 0.5
    share = min(max(share, 0.1), 0.9)
    return low.price * (high.price / low.price) ** share


def choose(budget: Budget, names: Iterable[str], value: Callable[[str], float], key: Callable[[str], float]) -> str:
    """The name of what meets the budget with the least key.

    Raises:
        LookupError: nothing does; its argument is the name that comes nearest.
    """
    names = list(names)
    fitting = [name for name in names if budget.meets(value(name))]
    if not fitting:
        raise LookupError(min(names, key=lambda name: budget.distance(value(name))))
    return min(fitting, key=key)
