"""Where an activation follows a dense layer: read from the structure of known classes, never from a trace.

In an `nn.Sequential` the order of the modules says it. Of other classes a table does: class → which attribute is the
dense layer, which one its activation, and which dense layer comes next. A class is named by its top-level package and
its name, and a subclass counts as long as it keeps the `forward` of the class that is named.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

import torch.nn.functional as F
from torch import nn

from eugen3d.layers.features import Phi
from eugen3d.layers.structure import Slot, forward_owner, is_chain, qualified_name, slots_of


@dataclass(frozen=True)
class Pattern:
    """A class whose forward runs `following(after(activation(linear(x))))`. Attributes may be dotted paths."""

    linear: str
    """The dense layer."""
    activation: str
    """The activation that takes its output, directly."""
    following: str | None = None
    """The dense layer that takes the activation's output, if there is one."""
    after: tuple[str, ...] = ()
    """The modules between the activation and `following`; those that a model lacks are no matter."""


Patterns = Mapping[type | str, Pattern | Phi]
"""Classes, or their names "package.Class": of a block its `Pattern`, of an activation the Φ that it computes."""

PATTERNS: dict[str, Pattern] = {
    "timm.Mlp": Pattern("fc1", "act", "fc2", after=("drop", "drop1", "norm")),
    "torch.TransformerEncoderLayer": Pattern("linear1", "activation", "linear2", after=("dropout",)),
    "torch.TransformerDecoderLayer": Pattern("linear1", "activation", "linear2", after=("dropout",)),
    "transformers.BertIntermediate": Pattern("dense", "intermediate_act_fn"),
    "transformers.BertLayer": Pattern("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    "transformers.RobertaIntermediate": Pattern("dense", "intermediate_act_fn"),
    "transformers.RobertaLayer": Pattern("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    "transformers.CLIPMLP": Pattern("fc1", "activation_fn", "fc2"),
    "transformers.GPT2MLP": Pattern("c_fc", "act", "c_proj"),
}

ACTIVATION_MODULES: dict[str, tuple[tuple[Phi, dict[str, Any]], ...]] = {
    "torch.ReLU": (("relu", {}),),
    "torch.GELU": (("gelu", {"approximate": "none"}),),
    "torch.Softplus": (
        ("softplus", {"beta": 1, "threshold": 20}),
        ("softplus-100", {"beta": 100, "threshold": 20}),
    ),
    "transformers.GELUActivation": (("gelu", {"act": F.gelu}),),
    "eugen3d.Sine": (("sine", {"omega_0": 1}),),
}
"""Activation classes with every Φ that they compute, if their attributes have these values. GELU's tanh form is another
function, off by up to 5e-4, and so are a Softplus of another β and a sine of another ω₀: they stay where they are."""


@dataclass(frozen=True)
class Followed:
    """The activation that follows a dense layer wherever it stands, and the places of that activation."""

    phi: Phi
    slots: tuple[Slot, ...]


def find_activations(
    model: nn.Module, layers: Container[nn.Module], patterns: Patterns | None = None
) -> dict[nn.Module, Followed]:
    """The dense layers among `layers` whose activation can go into them, with that activation.

    A layer that stands at several places counts if the same activation follows at all of them. The places returned
    are run after these layers only; that one activation module may stand at others, too, is no matter.

    Args:
        patterns: beside the tables of this module, which they overrule.
    """
    slots = slots_of(model)
    sites = {site[0]: site[1:] for site in _sites(model, slots, patterns or {})}
    found = {}
    for layer, places in slots.items():
        if layer not in layers or not all(place in sites for place in places):
            continue
        activations, kinds = zip(*(sites[place] for place in places), strict=True)
        if len(set(kinds)) > 1 or kinds[0] is None:
            continue
        found[layer] = Followed(kinds[0], tuple(dict.fromkeys(activations)))
    return found


def pattern_of(module: nn.Module, patterns: Patterns | None = None) -> Pattern | None:
    """The pattern that a module's `forward` follows, None if it is not known."""
    owner = forward_owner(module)
    for key in (owner, qualified_name(owner)):
        if isinstance(found := (patterns or {}).get(key), Pattern):
            return found
    return PATTERNS.get(qualified_name(owner))


def phi_of(module: nn.Module | None, patterns: Patterns | None = None) -> Phi | None:
    """The Φ that an activation module computes, None if it is none or another function."""
    if module is None:
        return None
    owner = forward_owner(module)
    for key in (owner, qualified_name(owner)):
        if isinstance(found := (patterns or {}).get(key), str):
            if found not in get_args(Phi):
                raise ValueError(f"patterns give {key} as {found!r}, expected one of {', '.join(get_args(Phi))}")
            return found
    for phi, settings in ACTIVATION_MODULES.get(qualified_name(owner), ()):
        if all(getattr(module, name, None) == value for name, value in settings.items()):
            return phi
    return None


def slot_at(root: nn.Module, path: str, slots: Mapping[nn.Module, list[Slot]]) -> Slot | None:
    """The place of a dotted path below a module, None where there is none or another module shares a part of it."""
    *inner, key = path.split(".")
    parent = root
    for name in inner:
        child = parent._modules.get(name)
        if child is None or len(slots[child]) > 1:
            return None
        parent = child
    return Slot(parent, key) if parent._modules.get(key) is not None else None


def _sites(
    model: nn.Module, slots: Mapping[nn.Module, list[Slot]], patterns: Patterns
) -> Iterator[tuple[Slot, Slot, Phi | None]]:
    """Every place of a module with the place and Φ of the activation that takes its output."""
    for module in model.modules():
        if is_chain(module):
            places = _chain_slots(module, slots)
            for place, following in pairwise(places):
                if (phi := phi_of(following.module, patterns)) is not None:
                    yield place, following, phi
        elif (pattern := pattern_of(module, patterns)) is not None:
            place, following = slot_at(module, pattern.linear, slots), slot_at(module, pattern.activation, slots)
            if place is not None and following is not None:
                yield place, following, phi_of(following.module, patterns)


def _chain_slots(chain: nn.Sequential, slots: Mapping[nn.Module, list[Slot]]) -> list[Slot]:
    """The places of a chain in the order of its data. A nested chain that others share is left as one module."""
    places = []
    for key, module in chain._modules.items():
        if module is not None and is_chain(module) and len(slots[module]) == 1:
            places.extend(_chain_slots(module, slots))
        elif not isinstance(module, nn.Identity):
            places.append(Slot(chain, key))
    return places
