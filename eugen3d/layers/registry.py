"""The layer kinds: one table from a kind's name to its configuration, its layer and the ways to build it.

To add a kind:

1. Write one file with a frozen configuration (a `KindConfig`) and a layer (a `KindLayer`) with `in_features`,
   `out_features`, the classmethod `from_linear` as the others have it, and `maps()`, by which it folds
   (with `trained_maps()` beside it where `maps()` copies parameters, so that gradients reach the layer's own); the
   configuration says by `includes_activation` whether a conversion takes in the activation.
2. Add its line to `REGISTRY` and, since type checkers and command lines read `LayerConfig` statically, its field there
   and its name in `LayerKind`.
3. Add its row to `tests/conformance/conftest.py`, with its equation.

Nothing else names kinds: fields, conversion, folding and command lines find them here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen import EUGenConfig, EUGenLinear
from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import Phi
from eugen3d.layers.kind import KindConfig
from eugen3d.layers.linear import LinearConfig, linear_from_config, linear_from_linear
from eugen3d.layers.low_rank import LowRankConfig, LowRankLinear
from eugen3d.layers.sine import Sine, SineConfig, SineLinear
from eugen3d.layers.snnk import SNNKConfig, SNNKLinear


@dataclass(frozen=True)
class LayerEntry:
    """A layer kind."""

    config: type[KindConfig]
    """Class of its configuration."""
    layers: tuple[type[nn.Module], ...]
    """Classes of its layers, those that folding leaves included."""
    from_config: Callable[..., nn.Module]
    """Takes (config, in_features, out_features), and device, dtype and generator by name; a freshly drawn layer."""
    from_linear: Callable[..., nn.Module]
    """Takes (linear, activation, config, inputs, generator); a layer that stands for activation(linear(x))."""


REGISTRY: dict[str, LayerEntry] = {
    "linear": LayerEntry(LinearConfig, (nn.Linear,), linear_from_config, linear_from_linear),
    "eugen": LayerEntry(EUGenConfig, (EUGenLinear, EUGenFeatures), EUGenLinear.from_config, EUGenLinear.from_linear),
    "low-rank": LayerEntry(LowRankConfig, (LowRankLinear,), LowRankLinear.from_config, LowRankLinear.from_linear),
    "snnk": LayerEntry(SNNKConfig, (SNNKLinear,), SNNKLinear.from_config, SNNKLinear.from_linear),
    "sine": LayerEntry(SineConfig, (SineLinear,), SineLinear.from_config, SineLinear.from_linear),
}


def make_layer(config: KindConfig, in_features: int, out_features: int, activation: Phi = "relu") -> nn.Sequential:
    """Build a hidden layer of any kind together with its activation.

    The activation follows as a module of its own, unless the layer has one inside: an EUGen layer whose Φ is not the
    identity, an SNNK layer or a sine layer.
    """
    layer = _entry(config).from_config(config, in_features, out_features)
    return nn.Sequential(layer) if config.includes_activation else nn.Sequential(layer, make_activation(activation))


def make_activation(activation: Phi) -> nn.Module:
    """The module of an activation."""
    modules: dict[Phi, Callable[[], nn.Module]] = {
        "identity": nn.Identity,
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "softplus": nn.Softplus,
        "softplus-100": lambda: nn.Softplus(beta=100),
        "sine": Sine,
    }
    if activation not in modules:
        raise ValueError(f"activation {activation!r} is unknown, expected one of {', '.join(modules)}")
    return modules[activation]()


def layer_from_linear(
    linear: nn.Linear,
    activation: Phi,
    config: KindConfig,
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a layer of any kind that stands for activation(linear(x)), without training.

    Device, dtype, training flag and requires_grad carry over. Where the kind has no activation inside, the layer stands
    for the dense one alone and the activation follows it in an `nn.Sequential`, "identity" excepted.

    Args:
        linear: the dense layer.
        activation: what follows the dense layer and is part of what is replaced.
        config: the kind and settings of the new layer.
        inputs: rows that the dense layer sees, shape (..., in_features), where there are some to fit to.
        generator: source of random draws; the global one by default.

    Raises:
        ValueError: where the kind cannot stand for that layer and activation.
    """
    entry = _entry(config)
    if config.includes_activation or activation == "identity":
        return entry.from_linear(linear, activation, config, inputs, generator)
    layer = entry.from_linear(linear, "identity", config, inputs, generator)
    return nn.Sequential(layer, make_activation(activation)).train(linear.training)


def kind_of(module: nn.Module) -> str | None:
    """The kind of a layer, or None of what is no layer; its parts are layers of their own kind, mostly "linear".

    Features that folding left are "eugen", those of an SNNK or a sine layer too: once folded they are the same thing.
    """
    return next((kind for kind, entry in REGISTRY.items() if isinstance(module, entry.layers)), None)


def _entry(config: KindConfig) -> LayerEntry:
    for entry in REGISTRY.values():
        if type(config) is entry.config:
            return entry
    known = ", ".join(entry.config.__name__ for entry in REGISTRY.values())
    raise TypeError(f"{type(config).__name__} is no layer kind's configuration, expected one of {known}")
