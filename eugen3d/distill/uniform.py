"""Plans without a choice: one kind and one size for every hidden layer. A planned front has to be no worse."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from eugen3d.distill.network import Network
from eugen3d.distill.plan import Plan
from eugen3d.layers import EUGenConfig, KindConfig, LowRankConfig

UniformKind = Literal["features", "rank"]
UNIFORM_KINDS: tuple[UniformKind, ...] = get_args(UniformKind)


def uniform_plan(networks: Mapping[str, Network], kind: UniformKind, size: int) -> Plan:
    """The plan that replaces every hidden layer that has more than `size` neurons, or more products.

    Args:
        kind: features with the layer's own activation inside, or low rank.
        size: m, or r.
    """
    return {part: _layers(network, kind, size) for part, network in networks.items()}


def largest_uniform(
    networks: Mapping[str, Network], kind: UniformKind, price: Callable[[Plan], float], budget: float
) -> Plan | None:
    """The uniform plan of the largest size whose price is within a budget; None where there is none.

    Its sizes are looked through from the largest down, since a price need not be monotone in them.
    """
    widest = max(network.dense(name).out_features for network in networks.values() for name in network.sites)
    for size in range(widest - 1, 0, -1):
        plan = uniform_plan(networks, kind, size)
        if any(plan.values()) and price(plan) <= budget:
            return plan
    return None


def _layers(network: Network, kind: UniformKind, size: int) -> dict[str, KindConfig]:
    layers: dict[str, KindConfig] = {}
    for name, site in network.sites.items():
        if not site.activations:
            continue
        dense = network.dense(name)
        if kind == "rank" and size * (dense.in_features + dense.out_features) < dense.weight.numel():
            layers[name] = LowRankConfig(size)
        if kind == "features" and size < dense.out_features:
            layers[name] = EUGenConfig(size, phi=site.phi, use_norm=False)
    return layers
