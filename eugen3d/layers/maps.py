"""Layers and chains as flat lists of maps: what folding merges, and what a runtime evaluates one after the other."""

from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.registry import kind_of
from eugen3d.layers.structure import forward_owner, is_affine_map, is_chain


@runtime_checkable
class Composite(Protocol):
    """A layer that is a chain of maps itself."""

    def maps(self) -> list[nn.Module]:
        """The maps, first to last: dense layers, features, activations or such layers again."""
        ...


@runtime_checkable
class TrainedComposite(Protocol):
    """A layer whose `maps` hold copies of its parameters, and which can be a chain of maps on its own ones, too."""

    def trained_maps(self) -> list[nn.Module]:
        """The maps, first to last, on the layer's own parameters."""
        ...


def chain_maps(chain: nn.Module) -> list[nn.Module]:
    """A chain as a flat list of maps, identities left out; a layer of whatever kind is the maps that make it up.

    What is neither a chain nor such a layer is one map. The maps hold the chain's own parameters, sine layers
    excepted, whose ω₀ goes into a copy.
    """
    if is_chain(chain):
        return [part for module in chain for part in chain_maps(module)]
    if is_composite(chain):
        assert isinstance(chain, Composite)
        if (parts := chain.maps()) != [chain]:
            return [map_ for part in parts for map_ in chain_maps(part)]
    return [] if isinstance(chain, nn.Identity) else [chain]


def first_matrix(chain: nn.Module) -> Tensor:
    """The matrix that reads a chain's input, shape (outputs, in_features): its first dense layer's or projections'.

    Raises:
        TypeError: the chain begins with something else.
    """
    first = next(iter(chain_maps(chain)), None)
    if is_features(first):
        first = first.projection if first.down is None else first.down
    if not is_affine_map(first):
        raise TypeError(f"a chain begins with {type(first).__name__}, expected a dense layer or features")
    return first.weight


def trained_maps(layer: nn.Module) -> list[nn.Module]:
    """The maps that make up a layer, on its own parameters: gradients reach them."""
    if "trained_maps" in vars(forward_owner(layer)):  # a subclass with a forward of its own may be other maps
        assert isinstance(layer, TrainedComposite)
        return layer.trained_maps()
    assert isinstance(layer, Composite)
    return layer.maps()


def is_composite(module: nn.Module | None) -> bool:
    """Whether a module is a layer that its maps make up: a subclass with a forward of its own may not be."""
    return module is not None and kind_of(module) is not None and "maps" in vars(forward_owner(module))


def is_features(module: nn.Module | None) -> TypeGuard[EUGenFeatures]:
    """Whether a module computes what its class says of EUGen features: a subclass may not."""
    return isinstance(module, EUGenFeatures) and type(module).forward is EUGenFeatures.forward
