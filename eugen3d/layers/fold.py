"""Exact merges of neighbouring affine maps, for inference.

An EUGen layer ends in an affine readout, and what follows it (another EUGen layer's projections, or a linear layer)
begins with an affine map of it. The two are one matrix: a chain of EUGen layers becomes a thin network of width k·m.
The following layer's norm input ‖y‖₂, y = W φ + b, is kept without forming y: ‖W φ + b‖ = ‖R [φ; 1]‖ with R the
triangular factor of [W b] (EUGens 2025, section 3). All products are formed in float64.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
from torch import nn

from eugen3d.layers.compose import compose
from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.maps import chain_maps, is_composite, is_features
from eugen3d.layers.patterns import Pattern, Patterns, pattern_of, slot_at
from eugen3d.layers.structure import (
    Slot,
    as_linear,
    has_hooks,
    is_affine_map,
    is_chain,
    is_conv1d,
    is_plain_dense,
    num_products,
    slots_of,
)

Consumer = tuple[nn.Sequential, slice]
Link = tuple[nn.Sequential, list[Consumer]]
"""A chain with all that takes its output, each with the columns of its input where that output stands."""


@torch.no_grad()
def fold(model: nn.Module, patterns: Patterns | None = None) -> nn.Module:
    """Fold every chain in a model, in place, and return it (a root that is itself a layer comes back replaced).

    Inside every `nn.Sequential` neighbouring affine maps are merged wherever that lowers the cost; so are the two
    layers of a block of a known class (see `eugen3d.layers.patterns`) whose activation went into the first one. A
    module whose data flow is its own (a field with a skip connection) folds itself through its method `fold_()`. The
    function that the model computes stays the same up to rounding; its parameters do not, so fold a copy to go on
    training. Where nothing is merged, modules keep their places and names, and their hooks.

    Args:
        patterns: classes of blocks beside those of `eugen3d.layers.patterns`.

    Raises:
        ValueError: a module that a merge would do away with has hooks. The model is then as it was, less what a
            `fold_()` had merged before it met them.
    """
    if is_composite(model) and not isinstance(model, EUGenFeatures):
        return fold_sequential(nn.Sequential(model).train(model.training))
    names = {module: name for name, module in model.named_modules()}
    slots = slots_of(model)
    blocks = [block for module in names if (block := _block(module, slots, patterns)) is not None]
    merged_blocks = [(block, maps) for block in blocks if (maps := _merged_block(*block, names)) is not None]
    for module, name in names.items():
        if is_chain(module) and any(has_hooks(part) for part in module.modules() if part is not module):
            _merged_chain(module, name)  # raises where hooks would be lost, before anything is changed
    for block, replacements in merged_blocks:
        for slot, maps in zip(block, replacements, strict=True):
            _place(slot, maps)
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
        ValueError: a module that would be merged away, or taken apart, has hooks. The chain is then as it was.
    """
    if is_chain(chain) and (maps := _merged_chain(chain)) is not None:
        _assign(chain, maps)
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
        ValueError: a module that would be merged away, or taken apart, has hooks. All chains are then as they were.
    """
    maps, following = chain_maps(producer), [chain_maps(chain) for chain, _ in consumers]
    if not maps or not all(following):
        return False
    firsts = [(first[0], columns) for first, (_, columns) in zip(following, consumers, strict=True)]
    if (merged := _merge(maps[-1], firsts)) is None:
        return False
    changed = [(producer, maps[:-1])]
    for (chain, _), first, rest in zip(consumers, merged, following, strict=True):
        changed.append((chain, [first, *rest[1:]]))
    for chain, kept in changed:
        _refuse_lost_hooks(_inside(chain), kept)
    for chain, kept in changed:
        _assign(chain, kept)
    return True


def fold_links(chains: Sequence[nn.Sequential], links: Callable[[], Sequence[Link]]) -> None:
    """Fold chains in place and push their readouts into what takes them, until nothing merges any more.

    Args:
        links: what is linked to what; asked anew after every merge, since columns can change.
    """
    has_merged = True
    while has_merged:  # a readout that was pushed into a chain may merge with what follows there
        for chain in chains:
            fold_sequential(chain)
        has_merged = any(push_readout(producer, consumers) for producer, consumers in links())


def _merge(inner: nn.Module, outers: Sequence[tuple[nn.Module, slice]]) -> list[nn.Module] | None:
    """What maps become that take an affine map's output in some columns; None where they cannot, or that costs more."""
    if not is_affine_map(inner) or not all(is_affine_map(outer) or is_features(outer) for outer, _ in outers):
        return None
    merged = [compose(outer, inner, columns) for outer, columns in outers]
    separate = num_products(inner) + sum(num_products(outer) for outer, _ in outers)
    return merged if sum(map(num_products, merged)) <= separate else None


def _merged_chain(chain: nn.Sequential, name: str = "") -> list[nn.Module] | None:
    """The maps that a chain folds to, None where nothing is merged; hooks that would be lost are refused."""
    maps, position, has_merged = chain_maps(chain), 0, False
    while position + 1 < len(maps):
        merged = _merge(maps[position], [(maps[position + 1], slice(None))])
        if merged is None:
            position += 1
        else:
            maps[position : position + 2] = merged
            position, has_merged = max(position - 1, 0), True
    if not has_merged:
        return None
    _refuse_lost_hooks(_inside(chain, name), maps)
    return maps


def _block(
    module: nn.Module, slots: Mapping[nn.Module, list[Slot]], patterns: Patterns | None
) -> tuple[Slot, Slot] | None:
    """The places of two affine maps of a known block with nothing but identities between them."""
    pattern = pattern_of(module, patterns)
    if pattern is None or pattern.following is None or not _is_open(module, pattern, slots):
        return None
    linear, following = (slot_at(module, path, slots) for path in (pattern.linear, pattern.following))
    if linear is None or following is None:
        return None
    is_producer = is_composite(linear.module) or is_affine_map(linear.module)
    return (linear, following) if is_producer and _takes_product(following.module) else None


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
    return is_composite(module) or is_affine_map(module) or is_conv


def _merged_block(
    linear: Slot, following: Slot, names: Mapping[nn.Module, str]
) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """The maps that a block's two layers fold to, None where nothing is merged; lost hooks are refused."""
    first, second = linear.module, following.module
    assert first is not None and second is not None
    left, right = chain_maps(first), chain_maps(as_linear(second) if is_conv1d(second) else second)
    has_merged = False
    while left and (merged := _merge(left[-1], [(right[0], slice(None))])) is not None:
        left, right, has_merged = left[:-1], [*merged, *right[1:]], True
    if not has_merged:
        return None
    for module in (first, second):
        _refuse_lost_hooks(module.named_modules(prefix=names[module]), [*left, *right])
    return left, right


def _place(slot: Slot, maps: list[nn.Module]) -> None:
    """Put maps where a layer stands: as a chain, alone where there is one, and the identity where there is none."""
    assert slot.module is not None
    chain = maps[0] if len(maps) == 1 else nn.Sequential(*maps) if maps else nn.Identity()
    slot.parent._modules[slot.key] = chain.train(slot.module.training)


def _inside(chain: nn.Sequential, name: str = "") -> Iterable[tuple[str, nn.Module]]:
    """The modules of a chain, with their names, less the chain itself, whose hooks are kept."""
    return (part for part in chain.named_modules(prefix=name) if part[1] is not chain)


def _refuse_lost_hooks(before: Iterable[tuple[str, nn.Module]], maps: Iterable[nn.Module]) -> None:
    """Refuse a merge that leaves `maps`, if it does away with one of the named modules before it that has hooks."""
    kept = {part for map_ in maps for part in map_.modules()}
    for name, module in before:
        if module not in kept and has_hooks(module):
            raise ValueError(f"{name}: has hooks, which would be lost; remove them before folding")


def _assign(chain: nn.Sequential, maps: Sequence[nn.Module]) -> None:
    chain._modules.clear()
    chain.extend(maps)
