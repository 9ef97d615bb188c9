"""Exact merges of neighbouring affine maps, for inference.

An EUGen layer ends in an affine readout, and what follows it (another EUGen layer's projections, or a linear layer)
begins with an affine map of it. The two are one matrix: a chain of EUGen layers becomes a thin network of width k·m.
The following layer's norm input ‖y‖₂, y = W φ + b, is kept without forming y: ‖W φ + b‖ = ‖R [φ; 1]‖ with R the
triangular factor of [W b] (EUGens 2025, section 3). All products are formed in float64.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from eugen3d.layers.compose import compose
from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.patterns import Pattern, Patterns, pattern_of, slot_at
from eugen3d.layers.registry import kind_of
from eugen3d.layers.structure import (
    Slot,
    as_linear,
    forward_owner,
    has_hooks,
    is_affine_map,
    is_chain,
    is_conv1d,
    is_plain_dense,
    num_products,
    slots_of,
)

Consumer = tuple[nn.Sequential, slice]


@runtime_checkable
class Composite(Protocol):
    """A layer that is a chain of maps itself."""

    def atoms(self) -> list[nn.Module]:
        """The maps, first to last: dense layers, features, activations or such layers again."""
        ...


@torch.no_grad()
def fold(model: nn.Module, patterns: Patterns | None = None) -> nn.Module:
    """Fold every chain in a model, in place, and return it (a root that is itself a layer comes back replaced).

    Inside every `nn.Sequential` neighbouring affine maps are merged wherever that lowers the cost; so are the two
    layers of a block of a known class (see `eugen3d.layers.patterns`) whose activation went into the first one. A
    module whose data flow is its own (a field with a skip connection) folds itself through its method `fold_()`. The
    function that the model computes stays the same up to rounding; its parameters do not, so fold a copy to go on
    training. Where nothing is merged, modules keep their places and names.

    Args:
        patterns: classes of blocks beside those of `eugen3d.layers.patterns`.

    Raises:
        ValueError: a module that could be merged away has hooks. The model is then as it was.
    """
    if _is_composite(model) and not isinstance(model, EUGenFeatures):
        return fold_sequential(nn.Sequential(model).train(model.training))
    for name, module in model.named_modules():
        if is_chain(module):
            _refuse_hooks(module, name)
    slots = slots_of(model)
    blocks = [block for module in model.modules() if (block := _block(module, slots, patterns)) is not None]
    names = {module: name for name, module in model.named_modules()}
    for block in blocks:
        for slot in block:
            _refuse_hooked(slot.module, names[slot.module] if slot.module else "")
    for block in blocks:
        _fold_block(*block)
    for module in list(model.modules()):
        if callable(own := getattr(module, "fold_", None)):
            own()
        elif is_chain(module):
            fold_sequential(module)
    return model


@torch.no_grad()
def fold_sequential(chain: nn.Sequential) -> nn.Sequential:
    """Flatten a chain into features, affine maps and activations, and merge neighbours, in place.

    A subclass with a `forward` of its own is not a chain and stays as it is, and so does a chain in which nothing can
    be merged.

    Raises:
        ValueError: a module that could be merged away has hooks.
    """
    if not is_chain(chain):
        return chain
    _refuse_hooks(chain)
    atoms = _atoms(chain)
    position, has_merged = 0, False
    while position + 1 < len(atoms):
        producer, consumer = nn.Sequential(atoms[position]), nn.Sequential(atoms[position + 1])
        if push_readout(producer, [(consumer, slice(None))]):
            atoms[position : position + 2] = list(consumer)
            position, has_merged = max(position - 1, 0), True
        else:
            position += 1
    if has_merged:
        _assign(chain, atoms)
    return chain


@torch.no_grad()
def push_readout(producer: nn.Sequential, consumers: Sequence[Consumer]) -> bool:
    """Merge the affine map that ends a producer into the affine maps that begin its consumers, if that costs less.

    Args:
        producer: a chain; both it and the consumers are changed in place.
        consumers: chains that take the producer's output, each with the columns of its input where that output
            stands (after a concatenation it is not all of them).

    Returns:
        Whether the merge took place. It does not where the producer ends in an activation, a consumer begins with
        one, or the merged maps would take more products than the separate ones.

    Raises:
        ValueError: a module that could be merged away has hooks.
    """
    for chain in (producer, *(chain for chain, _ in consumers)):
        _refuse_hooks(chain)
    last = _atoms(producer)[-1:]
    if not last or not is_affine_map(last[0]):
        return False
    inner, firsts = last[0], [_atoms(chain)[:1] for chain, _ in consumers]
    if not all(first and (is_affine_map(first[0]) or isinstance(first[0], EUGenFeatures)) for first in firsts):
        return False
    merged = [compose(first[0], inner, columns) for first, (_, columns) in zip(firsts, consumers, strict=True)]
    if sum(map(num_products, merged)) > num_products(inner) + sum(num_products(first[0]) for first in firsts):
        return False
    _assign(producer, _atoms(producer)[:-1])
    for (chain, _), replacement in zip(consumers, merged, strict=True):
        _assign(chain, [replacement, *_atoms(chain)[1:]])
    return True


def _atoms(chain: nn.Module) -> list[nn.Module]:
    """A chain as a flat list of maps; a layer of whatever kind is the maps that it consists of."""
    if is_chain(chain):
        return [atom for module in chain for atom in _atoms(module)]
    if _is_composite(chain):
        assert isinstance(chain, Composite)
        if (parts := chain.atoms()) != [chain]:
            return [atom for part in parts for atom in _atoms(part)]
    return [] if isinstance(chain, nn.Identity) else [chain]


def _is_composite(module: nn.Module | None) -> bool:
    """Whether a module is a layer that its maps make up: a subclass with a forward of its own may not be."""
    return module is not None and kind_of(module) is not None and "atoms" in vars(forward_owner(module))


def _block(module: nn.Module, slots: Mapping[nn.Module, list[Slot]], patterns: Patterns | None) -> list[Slot] | None:
    """The places of two affine maps of a known block with nothing but identities between them."""
    pattern = pattern_of(module, patterns)
    if pattern is None or pattern.following is None or not _is_open(module, pattern, slots):
        return None
    linear, following = (slot_at(module, path, slots) for path in (pattern.linear, pattern.following))
    if linear is None or following is None:
        return None
    is_producer = _is_composite(linear.module) or is_affine_map(linear.module)
    return [linear, following] if is_producer and _takes_product(following.module) else None


def _is_open(module: nn.Module, pattern: Pattern, slots: Mapping[nn.Module, list[Slot]]) -> bool:
    """Whether what stands between the two layers of a block does nothing, in training either."""
    activation = slot_at(module, pattern.activation, slots)
    if activation is None or not isinstance(activation.module, nn.Identity):
        return False
    missing = nn.Identity()
    between = [
        reduce(lambda part, name: getattr(part, name, missing), path.split("."), module) for path in pattern.after
    ]
    return all(
        part is None or isinstance(part, nn.Identity) or (isinstance(part, nn.Dropout) and part.p == 0)
        for part in between
    )


def _takes_product(module: nn.Module | None) -> bool:
    """Whether a module may begin with an affine map."""
    is_conv = module is not None and is_conv1d(module) and is_plain_dense(module)
    return _is_composite(module) or is_affine_map(module) or is_conv


def _fold_block(linear: Slot, following: Slot) -> None:
    """Merge the readout of a block's first layer into its second one, if that costs less."""
    first, second = linear.module, following.module
    assert first is not None and second is not None
    producer = nn.Sequential(first)
    consumer = nn.Sequential(as_linear(second) if is_conv1d(second) else second)
    has_merged = False
    while push_readout(producer, [(consumer, slice(None))]):
        has_merged = True
    if has_merged:
        for slot, chain, old in ((linear, producer, first), (following, consumer, second)):
            atoms = list(chain) or [nn.Identity()]
            slot.parent._modules[slot.key] = (atoms[0] if len(atoms) == 1 else chain).train(old.training)


def _refuse_hooks(chain: nn.Sequential, name: str = "") -> None:
    """Refuse a chain in which a module that folding takes apart or drops has hooks; the chain's own are kept."""
    for key, module in chain._modules.items():
        path = f"{name}.{key}" if name else key
        if module is not None and is_chain(module):
            if has_hooks(module):
                raise ValueError(f"{path}: has hooks, which would be lost; remove them before folding")
            _refuse_hooks(module, path)
        elif isinstance(module, nn.Identity) or is_affine_map(module) or _is_composite(module):
            _refuse_hooked(module, path)


def _refuse_hooked(module: nn.Module | None, name: str) -> None:
    for part_name, part in () if module is None else module.named_modules(prefix=name):
        if has_hooks(part):
            raise ValueError(f"{part_name}: has hooks, which would be lost; remove them before folding")


def _assign(chain: nn.Sequential, atoms: Sequence[nn.Module]) -> None:
    chain._modules.clear()
    chain.extend(atoms)
