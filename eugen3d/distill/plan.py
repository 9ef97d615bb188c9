"""Which layers to replace, by what and how large: the search over plans whose costs and losses are known.

A plan's loss is taken to be the sum of what each layer loses alone, a Lagrangian L + λ C then splits along the stream
of widths (`eugen3d.distill.folded_cost`), and dynamic programming minimises it exactly (Viterbi 1967; Shoham and
Gersho 1988 allocate bits this way). All λ together give the lower convex hull of loss against cost. Losses of
layers replaced together do not add up exactly: what a plan really loses has to be measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from eugen3d.distill.folded_cost import DENSE, FoldedCost, FoldedWidths, Stream
from eugen3d.layers import KindConfig

Plan = dict[str, dict[str, KindConfig]]
"""What stands at which sites, by network and site; dense where nothing is named."""
Losses = Mapping[str, Mapping[KindConfig, float]]
"""What a network loses when one layer alone is replaced, by site and option."""

WORTH_A_STEP = 0.002
"""The share of a plan's loss that a single change has to take away."""

_Best = tuple[float, dict[str, KindConfig]]


@dataclass(frozen=True)
class Part:
    """One of the networks that are planned together."""

    widths: FoldedWidths
    """Its folded cost."""
    losses: Losses
    """What each option loses."""
    loss_weight: float = 1.0
    """By what these losses count beside those of the other parts."""
    product_weight: float = 1.0
    """What a product costs; 0 where products do not matter."""
    parameter_weight: float = 0.0
    """What a parameter costs."""

    def price(self, cost: FoldedCost) -> float:
        """A folded cost as one number."""
        return self.product_weight * cost.products + self.parameter_weight * cost.parameters

    def loss(self, layers: Mapping[str, KindConfig]) -> float:
        """The sum of what each of these layers loses alone."""
        return self.loss_weight * sum(self.losses[name][layer] for name, layer in layers.items())

    def best(self, multiplier: float) -> dict[str, KindConfig]:
        """The layers with the least loss + multiplier · price."""
        memory: dict[tuple[str, Stream], _Best] = {}
        chosen: dict[str, KindConfig] = {}
        for root in self.widths.roots:
            chosen |= self._best_below(root, self.widths.root_stream(root), multiplier, memory)[1]
        return chosen

    def _best_below(
        self, name: str, stream: Stream, multiplier: float, memory: dict[tuple[str, Stream], _Best]
    ) -> _Best:
        """The best of a site and all that it feeds, given what it reads."""
        if (found := memory.get((name, stream))) is not None:
            return found
        best: _Best | None = None
        for layer, loss in {DENSE: 0.0, **self.losses.get(name, {})}.items():
            for variant in self.widths.variants(name, layer, stream):
                value = self.loss_weight * loss + multiplier * self.price(variant.cost)
                below = [self._best_below(r, variant.out, multiplier, memory) for r in self.widths.readers[name]]
                value += sum(part for part, _ in below)
                if best is None or value < best[0]:
                    own = {} if layer == DENSE else {name: layer}
                    best = value, own | {site: each for _, layers in below for site, each in layers.items()}
        assert best is not None
        memory[name, stream] = best
        return best


@dataclass(frozen=True)
class Planned:
    """A plan with what is expected of it."""

    plan: Plan
    price: float
    loss: float


class Planner:
    """The plans of several networks at once.

    Args:
        parts: the networks by name.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)

    def cost(self, plan: Plan) -> float:
        """The price of a plan, folded."""
        return sum(part.price(part.widths.cost(plan.get(name, {}))) for name, part in self.parts.items())

    def of(self, plan: Plan) -> Planned:
        """What a plan costs, folded, and is expected to lose."""
        return Planned(plan, self.cost(plan), sum(part.loss(plan.get(name, {})) for name, part in self.parts.items()))

    def best(self, multiplier: float) -> Planned:
        """The plan with the least loss + multiplier · price."""
        return self.of({name: part.best(multiplier) for name, part in self.parts.items()})

    def hull(self) -> list[Planned]:
        """The lower convex hull of loss against price, the cheapest first; the last replaces nothing that loses."""
        cheapest, dense = self.best(self._steepest()), self.best(0.0)
        return [cheapest, *self._between(cheapest, dense), dense] if cheapest.price < dense.price else [dense]

    def within(self, budget: float, hull: list[Planned]) -> Planned | None:
        """A plan of at most that price with as little loss as the hull and single changes to it give.

        Between two plans of the hull, layers are enlarged, or exchanged, one at a time, each time the one that lowers
        the loss most per price, or most of all where it costs nothing. None where even the cheapest costs more.
        """
        affordable = [planned for planned in hull if planned.price <= budget]
        if not affordable:
            return None
        current = min(affordable, key=lambda planned: planned.loss)
        while True:
            least = current.loss * (1 - WORTH_A_STEP)
            steps = [step for step in self._changes(current) if step.price <= budget and step.loss < least]
            if not steps:
                return current
            current = max(steps, key=lambda step: _gain(current, step))

    def _changes(self, planned: Planned) -> Iterator[Planned]:
        for name, part in self.parts.items():
            layers = planned.plan.get(name, {})
            price, loss = part.price(part.widths.cost(layers)), part.loss(layers)
            for site, losses in part.losses.items():
                for layer in (DENSE, *losses):
                    if layer != layers.get(site, DENSE):
                        changed = {each: kind for each, kind in layers.items() if each != site}
                        changed |= {} if layer == DENSE else {site: layer}
                        other_price, other_loss = part.price(part.widths.cost(changed)), part.loss(changed)
                        plan = planned.plan | {name: changed}
                        yield Planned(plan, planned.price - price + other_price, planned.loss - loss + other_loss)

    def _between(self, cheap: Planned, dear: Planned) -> list[Planned]:
        """The plans of the hull between two of it."""
        if dear.price <= cheap.price or cheap.loss <= dear.loss:
            return []
        multiplier = (cheap.loss - dear.loss) / (dear.price - cheap.price)
        found = self.best(multiplier)
        on_the_line = cheap.loss + multiplier * cheap.price
        if found.loss + multiplier * found.price >= on_the_line * (1 - 1e-9) or found.price in (
            cheap.price,
            dear.price,
        ):
            return []
        return [*self._between(cheap, found), found, *self._between(found, dear)]

    def _steepest(self) -> float:
        """A multiplier at which price alone decides: all losses together weigh less than one product."""
        total = sum(
            part.loss_weight * max(losses.values(), default=0.0)
            for part in self.parts.values()
            for losses in part.losses.values()
        )
        weights = [w for part in self.parts.values() for w in (part.product_weight, part.parameter_weight) if w > 0]
        return 2 * (total or 1.0) / min(weights)


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points (price, loss) than which no other is both cheaper and better, the cheapest first."""
    order = sorted(points, key=lambda name: points[name])
    front: list[str] = []
    for name in order:
        if not front or points[name][1] < points[front[-1]][1]:
            front.append(name)
    return front


def _gain(before: Planned, after: Planned) -> float:
    """How much loss a change takes away for its price."""
    return (before.loss - after.loss) / max(after.price - before.price, 1e-9 * (1 + before.price))
