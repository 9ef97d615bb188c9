"""The search over plans whose costs and losses are known."""

import itertools
import random

import pytest
import torch
from torch import nn

from eugen3d.distill import FoldedWidths, Network, Part, Plan, Planned, Planner, largest_uniform, layer_options, pareto
from eugen3d.distill.uniform import uniform_plan
from eugen3d.layers import EUGenConfig, KindConfig, LowRankConfig

SIZES = (0.25, 0.5)


def network(width: int = 8) -> Network:
    layers = [nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return Network.trace(nn.Sequential(*layers, nn.Linear(width, 3)).eval(), (torch.zeros(1, 4),))


def losses_of(network: Network, seed: int) -> dict[str, dict[KindConfig, float]]:
    """Random ones that shrink with the size."""
    draw = random.Random(seed)
    return {
        name: {option: draw.random() / option.inner_width for option in layer_options(network, name, SIZES)}
        for name in network.sites
    }


def part(seed: int = 0, **weights: float) -> Part:
    net = network()
    return Part(FoldedWidths(net), losses_of(net, seed), **weights)


def all_plans(each: Part) -> list[dict[str, KindConfig]]:
    choices = [[(name, option) for option in (None, *options)] for name, options in each.losses.items()]
    return [{name: option for name, option in chosen if option is not None} for chosen in itertools.product(*choices)]


@pytest.mark.parametrize("weights", [{}, {"product_weight": 0.0, "parameter_weight": 1.0}, {"loss_weight": 3.0}])
def test_dynamic_programming_equals_brute_force(weights: dict[str, float]) -> None:
    found = set()
    for seed, multiplier in itertools.product((0, 1), (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 1.0)):
        one = part(seed, **weights)

        def value(layers: dict[str, KindConfig], one: Part = one, multiplier: float = multiplier) -> float:
            return one.loss(layers) + multiplier * one.price(one.widths.cost(layers))

        best = one.best(multiplier)
        assert value(best) == pytest.approx(min(map(value, all_plans(one))), rel=1e-12)
        found.add(len(best))
    assert len(found) > 2, "between none and all of the layers"


def test_the_hull_is_that_of_all_plans() -> None:
    one = part()
    planner = Planner({"one": one})
    points = [planner.of({"one": layers}) for layers in all_plans(one)]
    hull = planner.hull()
    assert len(hull) > 3
    for low, high in itertools.pairwise(hull):
        assert low.price < high.price and low.loss > high.loss
        slope = (low.loss - high.loss) / (high.price - low.price)
        assert all(p.loss + slope * p.price >= low.loss + slope * low.price - 1e-12 for p in points), "none is below"
    assert hull[0].price == min(p.price for p in points) and hull[-1].loss == 0


def test_within_a_budget_single_changes_do_better_than_the_hull() -> None:
    one = part(3)
    planner = Planner({"one": one})
    hull, points = planner.hull(), [planner.of({"one": layers}) for layers in all_plans(one)]
    dense, closer = planner.of({}).price, 0
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        budget = share * dense
        found = planner.within(budget, hull)
        assert found is not None and found.price <= budget
        hull_loss = min(p.loss for p in hull if p.price <= budget)
        assert min(p.loss for p in points if p.price <= budget) <= found.loss <= hull_loss
        closer += found.loss < hull_loss
    assert closer >= 2
    assert planner.within(hull[0].price - 1, hull) is None


def test_parts_are_planned_together() -> None:
    """What counts for less of the picture is replaced first."""
    loud, quiet = part(0), part(0, loss_weight=0.01)
    planner = Planner({"loud": loud, "quiet": quiet})
    hull = planner.hull()
    middle = hull[len(hull) // 2].plan
    assert quiet.price(quiet.widths.cost(middle["quiet"])) < loud.price(loud.widths.cost(middle["loud"]))
    assert planner.of(middle).price == planner.cost(middle)
    assert planner.of(middle).loss == pytest.approx(loud.loss(middle["loud"]) + quiet.loss(middle["quiet"]))


def test_a_network_without_options_stays_as_it_is() -> None:
    one = Part(FoldedWidths(network()), {})
    assert Planner({"one": one}).hull() == [Planned({"one": {}}, one.price(one.widths.cost({})), 0)]


def test_pareto() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 6.0), "c": (2.0, 3.0), "d": (4.0, 3.0), "e": (3.0, 1.0)}
    assert pareto(points) == ["a", "c", "e"]
    assert pareto({}) == []


def test_uniform_plans() -> None:
    networks = {"one": network()}
    features, rank = (uniform_plan(networks, kind, 2)["one"] for kind in ("features", "rank"))
    hidden = ["0", "2", "4"]
    assert features == dict.fromkeys(hidden, EUGenConfig(2, use_norm=False)), "the last layer has no activation"
    assert rank == dict.fromkeys(hidden, LowRankConfig(2))
    assert uniform_plan(networks, "features", 8) == {"one": {}}
    assert list(uniform_plan(networks, "rank", 3)["one"]) == ["2", "4"], "rank 3 of 8 × 4 is no saving"


def test_the_largest_uniform_plan_within_a_budget() -> None:
    networks = {"one": network()}
    widths = FoldedWidths(networks["one"])

    def price(plan: Plan) -> float:
        return widths.cost(plan["one"]).products

    for size in (2, 5):
        plan = uniform_plan(networks, "features", size)
        assert largest_uniform(networks, "features", price, price(plan)) == plan
        assert largest_uniform(networks, "features", price, price(plan) - 1) == uniform_plan(
            networks, "features", size - 1
        )
    assert largest_uniform(networks, "features", price, 1) is None
