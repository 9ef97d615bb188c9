"""The folded cost that is counted is that of the network that folding leaves."""

import random

import pytest
import torch
from torch import nn

from eugen3d.distill import FoldedCost, FoldedWidths, Network, layer_options
from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import EUGenConfig, KindConfig, LayerConfig, LowRankConfig, SineConfig, fold, num_products

SIZES = (0.05, 0.2, 0.4, 0.6, 0.9)


def field(num_layers: int, width: int, view_width: int, skip: int) -> Network:
    config = NerfFieldConfig(
        num_layers=num_layers,
        layer_width=width,
        view_width=view_width,
        skip=skip,
        num_position_frequencies=3,
        num_direction_frequencies=1,
        layer=LayerConfig("linear"),
        replaced_layers=(),
    )
    return Network.trace(NerfField(config).eval(), (torch.zeros(1, 3), torch.ones(1, 3)))


def chain() -> Network:
    """Layers without a bias, one that no activation follows, and an activation that nothing has inside."""
    layers = [nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, 20, bias=False), nn.ReLU(), nn.Linear(20, 40)]
    layers += [nn.Linear(40, 50, bias=False), nn.Sigmoid(), nn.Linear(50, 3)]
    return Network.trace(nn.Sequential(*layers).eval(), (torch.zeros(1, 5),))


def folded_cost(network: Network, layers: dict[str, KindConfig]) -> FoldedCost:
    """Of the network that folding leaves."""
    student = network.copy()
    for name, layer in layers.items():
        student.place_drawn(name, layer)
    folded = fold(student.module)
    return FoldedCost(num_products(folded), sum(p.numel() for p in folded.parameters()))


@pytest.mark.parametrize(
    "network", [field(4, 32, 40, 2), field(6, 24, 12, 3), field(3, 16, 8, 0), chain()], ids=["4", "6", "3", "chain"]
)
def test_random_plans_cost_what_their_folded_networks_do(network: Network) -> None:
    widths, draw, seen = FoldedWidths(network), random.Random(0), set()
    for _ in range(25):
        options = {name: [None, *layer_options(network, name, SIZES)] for name in network.sites}
        drawn = {name: draw.choice(found) for name, found in options.items()}
        layers = {name: layer for name, layer in drawn.items() if layer is not None}
        cost = widths.cost(layers)
        assert cost == folded_cost(network, layers)
        seen.add(cost)
    assert len(seen) > 20, "they differ"


def test_by_hand() -> None:
    """4 → 6 → 6 → 2: two and three features, whose readouts go into what follows."""
    chain = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    widths = FoldedWidths(Network.trace(chain, (torch.zeros(1, 4),)))
    two, three = EUGenConfig(2, use_norm=False), EUGenConfig(3, use_norm=False)
    assert widths.cost({}) == FoldedCost(24 + 36 + 12, 24 + 6 + 36 + 6 + 12 + 2)
    assert widths.cost({"0": two}) == FoldedCost(8 + 12 + 12, 8 + 2 + 12 + 6 + 12 + 2)
    assert widths.cost({"0": two, "2": three}) == FoldedCost(8 + 6 + 6, 8 + 2 + 6 + 3 + 6 + 2)
    assert widths.cost({"2": LowRankConfig(1)}) == FoldedCost(24 + 12 + 12, 24 + 6 + 12 + 6 + 12 + 2)
    after_features = widths.cost({"0": two, "2": LowRankConfig(2)})
    assert after_features.products == 8 + 12 + 12, "two by six is less than rank two of it"


def test_neighbours_that_fold_are_cheaper_than_the_same_layers_apart() -> None:
    network, layer = field(6, 24, 12, 3), EUGenConfig(8, use_norm=False)
    widths = FoldedWidths(network)

    def saved(*names: str) -> int:
        return widths.cost({}).products - widths.cost(dict.fromkeys(names, layer)).products

    assert saved("trunk.0", "trunk.2") == saved("trunk.0") + saved("trunk.2")
    assert saved("trunk.1", "trunk.2") == saved("trunk.1") + saved("trunk.2") - (24 - 8) * (24 - 8)


def test_a_layer_that_no_reader_is_known_of_keeps_its_readout() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    network = Network.trace(Opaque().eval(), (torch.zeros(1, 3),))
    assert FoldedWidths(network).cost({"first": EUGenConfig(2, use_norm=False)}).products == 2 * 3 + 8 * 2 + 8 * 2


def test_options(teacher: Network) -> None:
    relu = [EUGenConfig(m, use_norm=False) for m in (8, 16)]
    assert layer_options(teacher, "trunk.1", (0.25, 0.5)) == [*relu, LowRankConfig(8)], "rank 16 is no saving"
    assert layer_options(teacher, "feature", (0.25,)) == [], "it goes into the view layer"
    assert layer_options(teacher, "density_head", (0.25,)) == [], "a row has no lower rank"
    assert layer_options(teacher, "rgb_head", (0.4,)) == [LowRankConfig(1)]


def test_layers_whose_folded_cost_is_not_known_here_are_refused(teacher: Network) -> None:
    widths = FoldedWidths(teacher)
    for layer in (EUGenConfig(4), EUGenConfig(4, order=2, use_norm=False), SineConfig()):
        with pytest.raises(TypeError, match="has no folded cost here"):
            widths.cost({"trunk.1": layer})
