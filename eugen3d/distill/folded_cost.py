"""What a network costs once it is folded, known from its layers' widths alone: nothing is built or merged.

A site's matrices depend on how wide what it reads has become: a neighbour of m features hands on m columns in the place
of all its neurons. So costs are counted along the stream of widths, from the sites that read no other to those that
they feed:

    dense, d → l                l·d                      l go on
    low rank r                  r·d + l·r, or l·d        l go on
    m features                  m·d                      m go on, its readout being merged into every reader
    no activation               nothing, or the above    what it reads goes on, where its readers take in its matrix

Where there is a choice a fold takes what costs less (`eugen3d.layers.fold`), and so does this count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eugen3d.distill.network import Network
from eugen3d.layers import EUGenConfig, KindConfig, LinearConfig, LowRankConfig

DENSE = LinearConfig()


@dataclass(frozen=True)
class FoldedCost:
    """Cost of a folded network's layers; tables and embeddings are none."""

    products: int = 0
    """Scalar products of one row."""
    parameters: int = 0
    """Entries of matrices and biases."""

    def __add__(self, other: "FoldedCost") -> "FoldedCost":
        return FoldedCost(self.products + other.products, self.parameters + other.parameters)


class Stream(NamedTuple):
    """What comes out of a folded site."""

    width: int
    """Its length."""
    is_merged: bool
    """Whether it is not the site's own output, because the matrix behind it went into the readers."""


class Variant(NamedTuple):
    """One way in which a layer can be folded."""

    cost: FoldedCost
    out: Stream


class FoldedWidths:
    """The sites of a network as a forest, every site below the one that it reads.

    Args:
        network: all dense. A site that reads several others is taken as one that reads none.
    """

    def __init__(self, network: Network) -> None:
        self.sites = {name: network.dense(name) for name in network.sites}
        self.has_activation = {name: bool(site.activations) for name, site in network.sites.items()}
        producers: dict[str, list[tuple[str, int]]] = {name: [] for name in self.sites}
        for name, readers in network.readers.items():
            for reader in readers:
                taken = len(range(*reader.columns.indices(self.sites[reader.name].in_features)))
                producers[reader.name].append((name, self.sites[reader.name].in_features - taken))
        self.producer = {name: found[0] if len(found) == 1 else None for name, found in producers.items()}
        """For every site the one that it reads, and how many columns it has beside those."""
        self.readers: dict[str, list[str]] = {name: [] for name in self.sites}
        for name, found in self.producer.items():
            if found is not None:
                self.readers[found[0]].append(name)

        self._variants: dict[tuple[str, KindConfig, Stream], list[Variant]] = {}

    @property
    def roots(self) -> list[str]:
        """The sites that read no other."""
        return [name for name, found in self.producer.items() if found is None]

    def root_stream(self, name: str) -> Stream:
        """What a root reads."""
        return Stream(self.sites[name].in_features, False)

    def variants(self, name: str, layer: KindConfig, stream: Stream) -> list[Variant]:
        """The ways in which a layer that stands at a site and reads a stream can be folded.

        Raises:
            TypeError: a layer of another kind than dense, low rank and features of order 1 without the norm.
        """
        key = name, layer, stream
        if key not in self._variants:
            self._variants[key] = list(self._counted(*key))
        return self._variants[key]

    def cost(self, layers: Mapping[str, KindConfig]) -> FoldedCost:
        """The cost with these layers at their sites and dense ones at all others."""
        total = FoldedCost()
        for root in self.roots:
            total += self._cost_below(root, self.root_stream(root), layers)
        return total

    def _cost_below(self, name: str, stream: Stream, layers: Mapping[str, KindConfig]) -> FoldedCost:
        """Of a site and all that it feeds, by the way that takes fewest products; the more merged of equals."""
        costs = []
        for variant in self.variants(name, layers.get(name, DENSE), stream):
            cost = variant.cost
            for reader in self.readers[name]:
                cost += self._cost_below(reader, variant.out, layers)
            costs.append(cost)
        return min(reversed(costs), key=lambda cost: cost.products)

    def _counted(self, name: str, layer: KindConfig, stream: Stream) -> Iterator[Variant]:
        dense, found = self.sites[name], self.producer[name]
        width, rows, merged = stream.width + (found[1] if found else 0), dense.out_features, stream.is_merged
        own, has_readers = Stream(rows, False), bool(self.readers[name])
        has_bias = dense.bias is not None
        if isinstance(layer, LinearConfig):
            ways = [([(rows, width, has_bias or merged)], own)]
        elif isinstance(layer, LowRankConfig):
            down = (layer.rank, width, merged)
            ways = [([down, (rows, layer.rank, True)], own), ([(rows, width, True)], own)]
        elif isinstance(layer, EUGenConfig) and layer.order == 1 and not layer.use_norm and layer.includes_activation:
            features = (layer.num_features, width, True)
            ways = [([features, (rows, layer.num_features, True)], own)]
            if has_readers:
                ways.append(([features], Stream(layer.num_features, True)))
        else:
            raise TypeError(f"{layer} has no folded cost here, expected dense, low rank or features of order 1")
        if has_readers and not self.has_activation[name]:
            ways.append(([], Stream(width, True)))
        for matrices, out in ways:
            products = sum(height * length for height, length, _ in matrices)
            yield Variant(FoldedCost(products, products + sum(h for h, _, biased in matrices if biased)), out)


def layer_options(network: Network, name: str, sizes: Sequence[float]) -> list[KindConfig]:
    """What may stand at a site beside the dense layer: features where it has an activation, and low rank.

    A layer without an activation whose readers are known goes into them as it is folded: they may have a low rank, it
    has none of its own.

    Args:
        sizes: m over the neurons of the layer, and r over its smaller side, each between 0 and 1.
    """
    dense, site = network.dense(name), network.sites[name]
    if not site.activations and network.readers.get(name):
        return []
    smaller = min(dense.in_features, dense.out_features)
    widths = sorted({max(1, round(size * dense.out_features)) for size in sizes})
    ranks = sorted({max(1, round(size * smaller)) for size in sizes})
    separate = dense.in_features * dense.out_features
    features = [EUGenConfig(m, phi=site.phi, use_norm=False) for m in widths if site.activations]
    low_rank = [LowRankConfig(r) for r in ranks if r * (dense.in_features + dense.out_features) < separate]
    return [*(f for f in features if f.num_features < dense.out_features), *low_rank]
