"""The search of `eugen3d plan`: what is tried, in which order, and what of it is chosen."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from eugen3d.cli.plan_budget import Budget, Priced, choose, next_price
from eugen3d.cli.plan_file import layers_entry
from eugen3d.cli.plan_trials import Trial
from eugen3d.distill import UNIFORM_KINDS, Network, Plan, Planned, Planner, largest_uniform, pareto

Origin = Literal["planned", "uniform features", "uniform rank"]


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried."""

    origin: Origin
    plan: Plan
    price: float
    """In the units of the planner."""
    trial: Trial

    def value(self, budget: Budget) -> float:
        """What the budget bounds."""
        if budget.is_cost:
            return self.price
        if budget.kind == "max-psnr-drop":
            return self.trial.psnr_drop
        assert self.trial.speedup is not None
        return self.trial.speedup


class PlanSearch:
    """Tries plans of a planner until one meets a budget.

    Args:
        planner: its prices are in what the budget bounds where that is counted, in operations otherwise.
        networks: the teacher's.
        measure: puts a plan to the test.
        budget: what is to be met.
        shares: of the dense price at which the front is measured.
        max_steps: further plans that are tried to come close to a measured budget.
    """

    def __init__(
        self,
        planner: Planner,
        networks: Mapping[str, Network],
        measure: Callable[[Origin, Plan], Trial],
        budget: Budget,
        shares: tuple[float, ...],
        max_steps: int,
    ) -> None:
        self.planner, self.networks, self.measure, self.budget = planner, networks, measure, budget
        self.shares, self.max_steps = shares, max_steps
        self.candidates: list[Candidate] = []
        self._tried: set[str] = set()

    @cached_property
    def dense(self) -> Planned:
        """The plan that replaces nothing."""
        return self.planner.of({})

    @cached_property
    def hull(self) -> list[Planned]:
        """The plans of the lower convex hull of loss against price."""
        return self.planner.hull()

    def run(self) -> Candidate:
        """Try what is to be tried; the plan that is chosen.

        Raises:
            LookupError: nothing meets the budget; its argument is the candidate that comes nearest, or None where
                even the smallest plan costs more.
        """
        for share in self.shares:
            self._try_at(share * self.dense.price)
        if self.budget.is_cost:
            self._try_at(self.budget.value)
        else:
            self._approach()
        return self._chosen()

    def front(self) -> list[Candidate]:
        """The candidates than which no other is both cheaper and better, the cheapest first."""
        points = {str(n): (each.price, each.trial.psnr_drop) for n, each in enumerate(self.candidates)}
        return [self.candidates[int(name)] for name in pareto(points)]

    def _chosen(self) -> Candidate:
        if not self.candidates:
            raise LookupError(None)
        by_name = {str(number): candidate for number, candidate in enumerate(self.candidates)}
        for_quality = self.budget.kind != "max-psnr-drop"

        def key(name: str) -> float:
            return by_name[name].trial.difference if for_quality else by_name[name].price

        try:
            return by_name[choose(self.budget, by_name, lambda name: by_name[name].value(self.budget), key)]
        except LookupError as error:
            raise LookupError(by_name[error.args[0]]) from None

    def _try_at(self, price: float) -> None:
        """The planned and the uniform plans of at most that price."""
        for origin, plan in self._plans_at(price):
            self._try(origin, plan)

    def _plans_at(self, price: float) -> Iterator[tuple[Origin, Plan]]:
        if (planned := self.planner.within(price, self.hull)) is not None:
            yield "planned", planned.plan
        for kind in UNIFORM_KINDS:
            uniform = largest_uniform(self.networks, kind, lambda plan: self.planner.cost(plan), price)
            if uniform is not None:
                yield ("uniform features" if kind == "features" else "uniform rank"), uniform

    def _try(self, origin: Origin, plan: Plan) -> None:
        key = json.dumps(layers_entry(plan), sort_keys=True)
        if not any(plan.values()) or key in self._tried:
            return
        self._tried.add(key)
        self.candidates.append(Candidate(origin, plan, self.planner.cost(plan), self.measure(origin, plan)))

    def _approach(self) -> None:
        """Halve the price until the value is above a measured budget, then try plans ever nearer to it."""
        dense_value = 0.0 if self.budget.kind == "max-psnr-drop" else 1.0
        for _ in range(self.max_steps):
            planned = [each for each in self.candidates if each.origin == "planned"]
            tried = [Priced(each.price, each.value(self.budget)) for each in planned]
            if not any(point.value > self.budget.value for point in tried):
                if (smallest := self.hull[0]).price in (point.price for point in tried):
                    return
                half = 0.5 * min((point.price for point in tried), default=self.dense.price)
                self._try("planned", (self.planner.within(half, self.hull) or smallest).plan)
                continue
            price = next_price(self.budget, [*tried, Priced(self.dense.price, dense_value)])
            found = None if price is None else self.planner.within(price, self.hull)
            count = len(self.candidates)
            if found is not None:
                self._try("planned", found.plan)
            if len(self.candidates) == count:
                return
