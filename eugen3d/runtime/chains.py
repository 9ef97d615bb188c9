"""Find the plain chains in a module and put something else that computes the same in their place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eugen3d.layers import Sine
from eugen3d.layers.maps import chain_maps, is_composite, is_features
from eugen3d.layers.structure import has_hooks, is_affine_map, is_chain


class CastChain(nn.Module):
    """A chain evaluated in a precision of its own: inputs are cast on the way in, outputs back to the input's dtype.

    Args:
        chain: dense layers, EUGen features and activations; its parameters are cast in place.

    Raises:
        ValueError: when the chain holds anything else: an encoding's angles, say, do not survive bfloat16.
    """

    def __init__(self, chain: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        for module in chain_maps(chain):
            is_activation = type(module).__module__ == nn.ReLU.__module__ or type(module) is Sine
            if not (is_affine_map(module) or is_features(module) or is_activation):
                raise ValueError(
                    f"dtype {dtype}: a chain holds {type(module).__name__}, expected layers and activations"
                )
        self.chain = chain.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x.to(self.dtype)).to(x.dtype)


def replace_chains(module: nn.Module, replace: Callable[[nn.Sequential], nn.Module]) -> nn.Module:
    """Replace every plain chain in a module, in place, and return it (a root that is a chain comes back replaced).

    A chain is an `nn.Sequential`, or a layer of any kind that its maps make up, with a dense layer or features among
    its maps once nested chains are flattened; one dense layer is enough. The outermost one counts; the chains inside
    a map that is no layer are replaced before it. A lone `nn.Linear` is a chain only at the root, since others may
    read its weight. A chain that stands at several places stays shared.

    Args:
        replace: takes the flattened chain, returns what stands in its place.

    Raises:
        ValueError: when the module has no chain, or a chain has hooks, which would be lost.
    """
    if is_affine_map(module):
        module = nn.Sequential(module).train(module.training)
    replaced: dict[nn.Module, nn.Module] = {}

    def visit(part: nn.Module) -> nn.Module:
        if part not in replaced:
            replaced[part] = part
            if _is_plain_chain(part):
                maps = flat_maps(part)
                replaced[part] = replace(nn.Sequential(*(m if _is_layer(m) else visit(m) for m in maps)))
            else:
                for name, child in part._modules.items():
                    part._modules[name] = child and visit(child)
        return replaced[part]

    root = visit(module)
    if all(new is old for old, new in replaced.items()):
        raise ValueError(f"{type(module).__name__} has no chain of dense layers (nn.Sequential)")
    return root


def replace_runs(
    chain: nn.Sequential,
    why_not: Callable[[nn.Module, Sequence[nn.Module]], str | None],
    replace: Callable[[nn.Sequential], nn.Module],
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A chain with its maps replaced, as long runs of them at a time as can be had.

    What has no replacement (another activation, features with the norm and factored projections, a map with hooks)
    stays between them and is evaluated as it is, in `dtype` if one is given.

    Args:
        why_not: takes a map and those before it in a run, returns why it cannot be part of the run, or None.
        replace: takes a run, returns what stands in its place.

    Raises:
        ValueError: when no map can be replaced, a map cannot be cast, or the chain has hooks.
    """
    maps, parts = flat_maps(chain), []
    start, replaced = 0, False
    while start < len(maps):
        stop = start
        while stop < len(maps) and why_not(maps[stop], maps[start:stop]) is None:
            stop += 1
        if stop > start:
            parts.append(replace(nn.Sequential(*maps[start:stop])))
            replaced = True
        else:
            stop = start + 1
            parts.append(maps[start] if dtype is None else CastChain(nn.Sequential(maps[start]), dtype))
        start = stop
    if not replaced:
        raise ValueError(next(filter(None, (why_not(module, []) for module in maps)), "a chain has no maps"))
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def flat_maps(chain: nn.Module) -> list[nn.Module]:
    """The maps of a chain (see `chain_maps`), where that loses no hooks.

    Raises:
        ValueError: the chain, or a layer or chain in it that is taken apart, has hooks.
    """
    maps = chain_maps(chain)
    kept = {part for module in maps for part in module.modules()}
    hooked = next((part for part in chain.modules() if part not in kept and has_hooks(part)), None)
    if hooked is not None:
        raise ValueError(f"a chain's {type(hooked).__name__} has hooks, which would be lost")
    return maps


def _is_plain_chain(part: nn.Module) -> bool:
    return (is_chain(part) or is_composite(part)) and any(_is_layer(module) for module in chain_maps(part))


def _is_layer(module: nn.Module) -> bool:
    return is_affine_map(module) or is_features(module)
