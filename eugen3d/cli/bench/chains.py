"""The chains that `eugen3d bench layers` measures: hidden layers of one kind, as they are trained and as they infer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eugen3d.layers import (
    EUGenConfig,
    KindConfig,
    LinearConfig,
    LowRankConfig,
    SNNKConfig,
    fold_sequential,
    forward_merged,
    make_layer,
)
from eugen3d.metrics.cost import flops_per_row

ChainKind = Literal["linear", "eugen", "eugen-merged", "low-rank", "snnk", "narrow"]
Direction = Literal["forward", "forward+backward"]
Form = Literal["factored", "merged"]

COUNTED_ROWS = 4


@dataclass(frozen=True)
class Chain:
    """A contestant."""

    kind: ChainKind
    """"eugen-merged" is the folded chain, whose products are the parameters; for inference all are folded."""
    num_features: int | None = None
    """m, the rank, or the narrow network's width; None for the dense layers."""
    order: int | None = None
    """k of an EUGen chain."""
    form: Form | None = None
    """How a chain of layers that end in a readout is trained: "factored", layer after layer, or "merged", on the same
    parameters through matrices that are multiplied at every step; None of everything else."""

    def __str__(self) -> str:
        settings = {"m": self.num_features, "k": self.order}
        words = [self.kind, *(f"{key}={value}" for key, value in settings.items() if value is not None)]
        return " ".join(words + ([self.form] if self.form else []))


class MergedEvaluation(nn.Module):
    """A chain, evaluated merged (see `eugen3d.layers.merged`)."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return forward_merged(self.chain, x)


def make_chain(
    chain: Chain, width: int, depth: int, direction: Direction, use_norm: bool, generator_seed: int = 0
) -> nn.Module:
    """Build a chain in float32: folded where it is to infer or its products are what is trained, else as drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        if chain.kind == "narrow":
            return _narrow_chain(width, depth, chain.num_features or width)
        config = _config(chain, use_norm)
        built = nn.Sequential(*(layer for _ in range(depth) for layer in make_layer(config, width, width)))
    if direction == "forward" or chain.kind == "eugen-merged":
        return fold_sequential(copy.deepcopy(built)).requires_grad_(direction != "forward")
    return MergedEvaluation(built) if chain.form == "merged" else built


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
        elif kind == "eugen-merged":
            if direction != "forward":
                chains += [Chain(kind, m, k) for k in orders for m in num_features]
        else:
            ends_in_readout = kind != "low-rank"
            forms = get_args(Form) if ends_in_readout and direction != "forward" else (None,)
            kind_orders = orders if kind == "eugen" else (None,)
            chains += [Chain(kind, m, k, form) for k in kind_orders for m in num_features for form in forms]
    return chains


def count_flops(module: nn.Module, width: int, direction: Direction, rows: int = COUNTED_ROWS) -> float:
    """Operations that one of so many rows takes in products of matrices, those that form other matrices included,
    counted while a copy without memory is evaluated; the input takes no gradient."""
    module, x = copy.deepcopy(module).to("meta"), torch.zeros(rows, width, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(direction != "forward"):
        y = module(x)
        if direction != "forward":
            y.backward(torch.ones_like(y))
    return counter.get_total_flops() / rows


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
