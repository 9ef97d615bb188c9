"""The layers and their algebra. Depends on torch alone."""

from eugen3d.layers.config import EUGenConfig, LayerConfig, LinearConfig
from eugen3d.layers.convert import convert, layer_status, make_activation, make_layer
from eugen3d.layers.eugen import EUGenFeatures, EUGenLinear
from eugen3d.layers.fold import compose, fold, fold_sequential, push_readout
from eugen3d.layers.patterns import Pattern, Patterns
from eugen3d.layers.structure import num_products

__all__ = [
    "EUGenConfig",
    "EUGenFeatures",
    "EUGenLinear",
    "LayerConfig",
    "LinearConfig",
    "Pattern",
    "Patterns",
    "compose",
    "convert",
    "fold",
    "fold_sequential",
    "layer_status",
    "make_activation",
    "make_layer",
    "num_products",
    "push_readout",
]
