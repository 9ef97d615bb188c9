"""A folded chain as tensors in a chosen precision and a description in plain values, from which it is built again.

In "int8" a matrix is whole numbers from -127 to 127, and every row has a scale: w = scale · q, with the scale that maps
the row's largest entry to 127. What reads the chain's input stays float32: with a first frequency ω₀ of hundreds the
phases ω₀ w·x are no small numbers. So do biases, whose size is nothing.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import ACTIVATIONS
from eugen3d.layers.maps import chain_maps, is_features
from eugen3d.layers.registry import make_activation
from eugen3d.layers.sine import Sine
from eugen3d.layers.structure import is_affine_map

Precision = Literal["float32", "float16", "int8"]
_LEVELS = 127


class PackedChain(NamedTuple):
    """What is stored of a chain."""

    steps: list[dict[str, Any]]
    """The maps, first to last, described in plain values."""
    tensors: dict[str, Tensor]
    """Their parameters, by the number of the map and the parameter's name; of an int8 matrix NAME.scale, too."""


def pack_chain(chain: nn.Module, precision: Precision) -> PackedChain:
    """Store a chain of dense layers, EUGen features and activations, folded or not.

    Raises:
        ValueError: it holds another module, or a parameter is not finite or too large for the precision.
    """
    steps, tensors = [], {}
    for index, map_ in enumerate(chain_maps(chain)):
        steps.append(_describe(map_))
        for name, parameter in map_.named_parameters():
            value = parameter.detach().float().cpu()
            if not value.isfinite().all():
                raise ValueError(f"map {index}'s {name} is not finite")
            stored = _stored(value, precision if index and value.dim() == 2 else "float32")
            tensors |= {f"{index}.{name}{suffix}": part for suffix, part in stored.items()}
    return PackedChain(steps, tensors)


def unpack_chain(packed: PackedChain) -> nn.Sequential:
    """Build a stored chain again, in float32 on the CPU.

    Raises:
        ValueError: a description is not known, or a tensor is missing, left over or of another shape.
    """
    maps, left = [], dict(packed.tensors)
    for index, step in enumerate(packed.steps):
        map_ = _build(step)
        for name, parameter in map_.named_parameters():
            key = f"{index}.{name}"
            if key not in left:
                raise ValueError(f"{key} is missing")
            value = left.pop(key).float()
            if (scale := left.pop(f"{key}.scale", None)) is not None:
                value = value * scale.float()
            if value.shape != parameter.shape:
                raise ValueError(f"{key} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
            parameter.data.copy_(value)
        maps.append(map_)
    if left:
        raise ValueError(f"{next(iter(left))} belongs to no map")
    return nn.Sequential(*maps).requires_grad_(False).eval()


def _stored(value: Tensor, precision: Precision) -> dict[str, Tensor]:
    if precision == "float32":
        return {"": value.contiguous()}
    if precision == "float16":
        half = value.half().contiguous()
        if not half.isfinite().all():
            raise ValueError(f"a parameter of {float(value.abs().max()):.3g} is too large for float16")
        return {"": half}
    scale = value.abs().amax(dim=1, keepdim=True) / _LEVELS
    whole = torch.round(value / scale.clamp(min=torch.finfo(torch.float32).tiny)).clamp(-_LEVELS, _LEVELS)
    return {"": whole.to(torch.int8), ".scale": scale}


def _describe(map_: nn.Module) -> dict[str, Any]:
    if is_affine_map(map_):
        widths = {"in_features": map_.in_features, "out_features": map_.out_features}
        return {"map": "linear", **widths, "bias": map_.bias is not None}
    if is_features(map_):
        settings = {name: getattr(map_, name) for name in ("in_features", "num_features", "order", "phi", "shared")}
        settings["use_norm"], settings["bias"] = map_.use_norm, map_.projection.bias is not None
        settings["norm_rank"] = map_.norm_factor.out_features if map_.norm_factor is not None else 0
        settings["projection_rank"] = None if map_.down is None else map_.down.out_features
        return {"map": "features", **settings}
    if type(map_) is Sine:
        return {"map": "sine", "omega_0": map_.omega_0}
    for phi in ACTIVATIONS:
        known = make_activation(phi)  # pyright: ignore[reportArgumentType]
        if type(map_) is type(known) and str(map_) == str(known):
            return {"map": "activation", "phi": phi}
    raise ValueError(f"a chain holds {str(map_).splitlines()[0]}, which cannot be stored")


def _build(step: dict[str, Any]) -> nn.Module:
    kinds = {"linear": nn.Linear, "features": EUGenFeatures, "sine": Sine}
    settings = {name: value for name, value in step.items() if name != "map"}
    try:
        if step["map"] == "activation":
            return make_activation(settings["phi"])
        return kinds[step["map"]](**settings)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{step} describes no map ({error})") from None
