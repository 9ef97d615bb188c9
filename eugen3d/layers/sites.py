"""Sites: the places of a model where a dense layer stands, with the activation that follows it, known by name.

A site stays when its layer is exchanged: the same name finds it in a teacher, in a copy of it, and in what is rebuilt
from a configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from eugen3d.layers.features import Phi
from eugen3d.layers.kind import KindConfig
from eugen3d.layers.patterns import Patterns, find_activations
from eugen3d.layers.refusals import refuse_unfit
from eugen3d.layers.registry import kind_of, make_layer
from eugen3d.layers.structure import Slot, is_affine_map, is_chain, slots_of


@dataclass(frozen=True)
class Site:
    """A dense layer's places in a model, and those of its activation; a shared layer stands at several."""

    name: str
    """That of the chain where the layer and its activation are all that is in it, that of the layer otherwise."""
    places: tuple[str, ...]
    """Fully qualified names of the layer."""
    activations: tuple[str, ...] = ()
    """Those of the activation that follows it everywhere; none where that is not known."""
    phi: Phi = "identity"
    """What the activation computes; the identity where there is none."""

    def layer(self, model: nn.Module) -> nn.Module:
        """What stands there in a model."""
        return model.get_submodule(self.places[0])

    def block(self, model: nn.Module) -> nn.Sequential:
        """The layer with its activation, for evaluation alone: both stay where they are."""
        activation = model.get_submodule(self.activations[0]) if self.activations else nn.Identity()
        return nn.Sequential(self.layer(model), activation)


def find_sites(model: nn.Module, patterns: Patterns | None = None) -> dict[str, Site]:
    """The sites of a model's `nn.Linear` layers by name, in the order of its modules.

    What layers of other kinds are made of is no site.

    Args:
        patterns: classes of blocks and activations that the tables of `eugen3d.layers.patterns` lack.
    """
    names = {module: name for name, module in model.named_modules()}
    slots = slots_of(model)
    inner = {part for module in names if kind_of(module) not in (None, "linear") for part in module.modules()}
    dense = [module for module in names if is_affine_map(module) and module is not model and module not in inner]
    followed = find_activations(model, set(dense), patterns)
    sites: dict[str, Site] = {}
    for module in dense:
        places = tuple(_path(names, slot) for slot in slots[module])
        activation = followed.get(module)
        activations = tuple(_path(names, slot) for slot in activation.slots) if activation else ()
        name = _name(slots[module][0], names)
        sites[name] = Site(name, places, activations, activation.phi if activation else "identity")
    return sites


def place_layer(model: nn.Module, site: Site, layer: nn.Module, includes_activation: bool) -> None:
    """Put a layer where the site's stands, everywhere, in place; its training flag becomes that of what stood there.

    Args:
        includes_activation: whether it stands for the activation too, at whose places the identity is put then.
    """
    layer.train(site.layer(model).training)
    for place in site.places:
        _slot(model, place).parent._modules[_slot(model, place).key] = layer
    for place in site.activations if includes_activation else ():
        slot = _slot(model, place)
        slot.parent._modules[slot.key] = nn.Identity().train(layer.training)


def place_drawn(model: nn.Module, layers: Mapping[str, KindConfig], patterns: Patterns | None = None) -> None:
    """Put freshly drawn layers at sites, in place: the structure into which trained parameters are loaded.

    Args:
        layers: the kind and settings of every new layer, by the name of its site.

    Raises:
        ValueError: there is no site of that name, or its layer cannot be replaced.
    """
    sites = find_sites(model, patterns)
    for name, config in layers.items():
        if name not in sites:
            raise ValueError(f"{name!r} is no dense layer, expected one of {', '.join(sites)}")
        dense = sites[name].layer(model)
        refuse_unfit(name, dense)
        assert isinstance(dense, nn.Linear)
        layer = make_layer(config, dense.in_features, dense.out_features)[0].to(dense.weight)
        place_layer(model, sites[name], layer, config.includes_activation)


def _name(slot: Slot, names: Mapping[nn.Module, str]) -> str:
    """A chain's name where the layer begins it and is the only one in it."""
    chain = names[slot.parent]
    others = [module for module in slot.parent.modules() if is_affine_map(module)]
    is_own = is_chain(slot.parent) and next(iter(slot.parent._modules)) == slot.key and len(others) == 1
    return chain if is_own and chain else _path(names, slot)


def _path(names: Mapping[nn.Module, str], slot: Slot) -> str:
    return f"{names[slot.parent]}.{slot.key}".removeprefix(".")


def _slot(model: nn.Module, place: str) -> Slot:
    parent, _, key = place.rpartition(".")
    return Slot(model.get_submodule(parent), key)
