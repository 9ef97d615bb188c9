"""The contestants of `eugen3d bench training`: one network, its hidden layers of different kinds."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from eugen3d.layers import EUGenConfig, KindConfig, LinearConfig, fold_sequential, forward_merged, make_layer
from eugen3d.metrics.cost import flops_per_row

ContestantName = Literal["dense", "narrow", "eugen", "eugen-merged", "eugen-norm"]


@dataclass(frozen=True)
class NetworkShape:
    """What the contestants have in common."""

    in_dim: int
    out_dim: int
    width: int
    depth: int
    """Hidden layers, each with its ReLU; the first is dense."""
    num_features: int
    """m of the others where they are EUGen layers."""


def make_network(name: ContestantName, shape: NetworkShape, seed: int) -> nn.Sequential:
    """Build a contestant as it starts.

    eugen and eugen-norm are the layers as they are, eugen-merged is eugen folded: it starts as the same function, and
    what is trained are the products of the matrices. narrow is as wide as makes it cost what eugen does, folded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "dense":
            return _layers(shape, shape.width, LinearConfig())
        if name == "narrow":
            return _layers(shape, narrow_width(shape), LinearConfig())
        network = _layers(shape, shape.width, EUGenConfig(shape.num_features, use_norm=name == "eugen-norm"))
    return fold_sequential(network) if name == "eugen-merged" else network


def evaluate(network: nn.Sequential, x: Tensor) -> Tensor:
    """The output (n, out_dim) for inputs (n, in_dim), as a field evaluates its layers in training."""
    return forward_merged(network, x)


def narrow_width(shape: NetworkShape) -> int:
    """The width at which a plain network costs what the EUGen network costs, folded; to the nearest FLOP count."""
    with torch.device("meta"):
        flops = flops_per_row(
            fold_sequential(_layers(shape, shape.width, EUGenConfig(shape.num_features, use_norm=False)))
        )

    def distance(narrow: int) -> int:
        return abs(2 * ((shape.in_dim + shape.out_dim) * narrow + (shape.depth - 1) * narrow**2) - flops)

    return min(range(1, 4 * max(shape.width, shape.num_features)), key=distance)


def _layers(shape: NetworkShape, width: int, config: KindConfig) -> nn.Sequential:
    layers = list(make_layer(LinearConfig(), shape.in_dim, width))
    for _ in range(shape.depth - 1):
        layers += make_layer(config, width, width)
    return nn.Sequential(*layers, nn.Linear(width, shape.out_dim))
