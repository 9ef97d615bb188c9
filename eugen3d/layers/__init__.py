"""The layers and their algebra. Depends on torch alone."""

from eugen3d.layers.bernstein import bernstein_coefficients
from eugen3d.layers.compose import compose
from eugen3d.layers.config import LayerConfig
from eugen3d.layers.convert import convert, layer_status
from eugen3d.layers.eugen import EUGenConfig, EUGenLinear
from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.fold import Link, fold, fold_links, fold_sequential, push_readout
from eugen3d.layers.kind import KindConfig
from eugen3d.layers.linear import LinearConfig
from eugen3d.layers.low_rank import LowRankConfig, LowRankLinear
from eugen3d.layers.maps import first_matrix
from eugen3d.layers.merged import Deferred, forward_merged
from eugen3d.layers.patterns import Pattern, Patterns
from eugen3d.layers.registry import kind_of, layer_from_linear, make_activation, make_layer
from eugen3d.layers.sine import Sine, SineConfig, SineLinear
from eugen3d.layers.sine_start import Moments, sine_moments, start_sines
from eugen3d.layers.sites import Site, find_sites, place_drawn, place_layer
from eugen3d.layers.snnk import SNNKConfig, SNNKLinear
from eugen3d.layers.stack import LayerStack
from eugen3d.layers.structure import num_products
from eugen3d.layers.weight_norm import detach_weight_norm, remove_weight_norm

__all__ = [
    "Deferred",
    "EUGenConfig",
    "EUGenFeatures",
    "EUGenLinear",
    "KindConfig",
    "LayerConfig",
    "LayerStack",
    "LinearConfig",
    "Link",
    "LowRankConfig",
    "LowRankLinear",
    "Moments",
    "Pattern",
    "Patterns",
    "SNNKConfig",
    "SNNKLinear",
    "Sine",
    "SineConfig",
    "SineLinear",
    "Site",
    "bernstein_coefficients",
    "compose",
    "convert",
    "detach_weight_norm",
    "find_sites",
    "first_matrix",
    "fold",
    "fold_links",
    "fold_sequential",
    "forward_merged",
    "kind_of",
    "layer_from_linear",
    "layer_status",
    "make_activation",
    "make_layer",
    "num_products",
    "place_drawn",
    "place_layer",
    "push_readout",
    "remove_weight_norm",
    "sine_moments",
    "start_sines",
]
