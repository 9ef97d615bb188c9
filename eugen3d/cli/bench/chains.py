"""The chains that `eugen3d bench layers` measures: hidden layers of one kind, as they are trained and as they infer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eugen3d.layers import EUGenConfig, KindConfig, LinearConfig, LowRankConfig, SNNKConfig, fold_sequential, make_layer
from eugen3d.metrics.cost import flops_per_row

ChainKind = Literal["linear", "eugen", "eugen-merged", "low-rank", "snnk", "narrow"]
Direction = Literal["forward", "forward+backward"]

COUNTED_ROWS = 4


@dataclass(frozen=True)
class Chain:
    """A contestant."""

    kind: ChainKind
    """"eugen-merged" is the folded chain, trained as it is; for inference every EUGen chain is folded."""
    num_features: int | None = None
    """m, the rank, or the narrow network's width; None for the dense layers."""
    order: int | None = None
    """k of an EUGen chain."""

    def __str__(self) -> str:
        settings = {"m": self.num_features, "k": self.order}
        return " ".join([self.kind, *(f"{key}={value}" for key, value in settings.items() if value is not None)])


def make_chain(
    chain: Chain, width: int, depth: int, direction: Direction, use_norm: bool, generator_seed: int = 0
) -> nn.Sequential:
    """Build a chain in float32: folded where it is to infer or is trained merged, as it is drawn otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        if chain.kind == "narrow":
            return _narrow_chain(width, depth, chain.num_features or width)
        config = _config(chain, use_norm)
        built = nn.Sequential(*(layer for _ in range(depth) for layer in make_layer(config, width, width)))
    if direction == "forward" or chain.kind == "eugen-merged":
        return fold_sequential(copy.deepcopy(built)).requires_grad_(direction != "forward")
    return built


def chains_for(
    kinds: Sequence[ChainKind],
    num_features: Sequence[int],
    orders: Sequence[int],
    width: int,
    depth: int,
    direction: Direction,
    use_norm: bool,
) -> list[Chain]:
    """The contestants of one comparison, every one once; a narrow network for every cost of a folded EUGen chain."""
    chains: list[Chain] = []
    for kind in kinds:
        if kind == "linear":
            chains.append(Chain(kind))
        elif kind == "narrow":
            eugens = [Chain("eugen", m, k) for m in num_features for k in orders]
            widths = {_equal_width(chain, width, depth, use_norm) for chain in eugens}
            chains += [Chain(kind, narrow) for narrow in sorted(widths)]
        elif kind in ("eugen", "eugen-merged"):
            if kind == "eugen" or direction != "forward":
                chains += [Chain(kind, m, k) for k in orders for m in num_features]
        else:
            chains += [Chain(kind, m) for m in num_features]
    return chains


def count_flops(module: nn.Module, width: int, direction: Direction) -> float:
    """Operations that one row takes in products of matrices, counted while a few rows go through; the input takes no
    gradient."""
    x = torch.zeros(COUNTED_ROWS, width)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(direction != "forward"):
        y = module(x)
        if direction != "forward":
            y.backward(torch.ones_like(y))
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops() / COUNTED_ROWS


def _config(chain: Chain, use_norm: bool) -> KindConfig:
    if chain.kind == "linear":
        return LinearConfig()
    assert chain.num_features is not None
    if chain.kind == "low-rank":
        return LowRankConfig(chain.num_features)
    if chain.kind == "snnk":
        return SNNKConfig(chain.num_features)
    # how projections are drawn changes no time, and Gaussian ones need no orthogonalisation
    return EUGenConfig(chain.num_features, chain.order or 1, use_norm=use_norm, projection="gaussian")


def _narrow_chain(width: int, depth: int, narrow: int) -> nn.Sequential:
    """The plain network: into its width, `depth` activations, and out again, as a folded chain of order 1 is built."""
    layers = list(make_layer(LinearConfig(), width, narrow))
    for _ in range(depth - 1):
        layers += make_layer(LinearConfig(), narrow, narrow)
    return nn.Sequential(*layers, nn.Linear(narrow, width))


def _equal_width(chain: Chain, width: int, depth: int, use_norm: bool) -> int:
    """The width at which the narrow network costs what an EUGen chain costs, folded; to the nearest FLOP count."""
    with torch.device("meta"):
        flops = flops_per_row(make_chain(chain, width, depth, "forward", use_norm))

    def distance(narrow: int) -> int:
        return abs(2 * (2 * width * narrow + (depth - 1) * narrow**2) - flops)

    return min(range(1, 4 * max(width, chain.num_features or 1) + 1), key=distance)
