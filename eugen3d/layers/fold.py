"""Exact merges of neighbouring affine maps, for inference.

An EUGen layer ends in an affine readout, and what follows it (another EUGen layer's projections, or a linear layer)
begins with an affine map of it. The two are one matrix: a chain of EUGen layers becomes a thin network of width k·m.
The following layer's norm input ‖y‖₂, y = W φ + b, is kept without forming y: ‖W φ + b‖ = ‖R [φ; 1]‖ with R the
triangular factor of [W b] (EUGens 2025, section 3). All products are formed in float64.
"""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen import EUGenFeatures, EUGenLinear

Consumer = tuple[nn.Sequential, slice]


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Fold every chain in a model, in place, and return it (a root that is itself a layer comes back replaced).

    Inside every `nn.Sequential` neighbouring affine maps are merged wherever that lowers the cost; a module whose
    data flow is its own (a field with a skip connection) folds itself through its method `fold_()`. The function that
    the model computes stays the same up to rounding; its parameters do not, so fold a copy to go on training.
    """
    if isinstance(model, EUGenLinear):
        return fold_sequential(nn.Sequential(model).train(model.training))
    for module in list(model.modules()):
        if callable(own := getattr(module, "fold_", None)):
            own()
        elif is_chain(module):
            fold_sequential(module)
    return model


@torch.no_grad()
def fold_sequential(chain: nn.Sequential) -> nn.Sequential:
    """Flatten a chain into features, affine maps and activations, and merge neighbours, in place.

    A subclass with a `forward` of its own is not a chain and stays as it is.
    """
    if not is_chain(chain):
        return chain
    atoms = chain_maps(chain)
    position = 0
    while position + 1 < len(atoms):
        producer, consumer = nn.Sequential(atoms[position]), nn.Sequential(atoms[position + 1])
        if push_readout(producer, [(consumer, slice(None))]):
            atoms[position : position + 2] = list(consumer)
            position = max(position - 1, 0)
        else:
            position += 1
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
    """
    last = chain_maps(producer)[-1:]
    if not last or not is_dense(last[0]):
        return False
    inner, firsts = last[0], [chain_maps(chain)[:1] for chain, _ in consumers]
    if not all(first and (is_dense(first[0]) or isinstance(first[0], EUGenFeatures)) for first in firsts):
        return False
    merged = [compose(first[0], inner, columns) for first, (_, columns) in zip(firsts, consumers, strict=True)]
    if sum(map(_products, merged)) > _products(inner) + sum(_products(first[0]) for first in firsts):
        return False
    _assign(producer, chain_maps(producer)[:-1])
    for (chain, _), replacement in zip(consumers, merged, strict=True):
        _assign(chain, [replacement, *chain_maps(chain)[1:]])
    return True


@torch.no_grad()
def compose(outer: nn.Module, inner: nn.Linear, columns: slice = slice(None)) -> nn.Module:
    """The map x ↦ outer([… inner(x) …]): a linear layer or features over `inner`'s input.

    Args:
        outer: `nn.Linear` or `EUGenFeatures`.
        inner: the affine map whose output stands in `columns` of outer's input.
        columns: where; the other columns stay as they are, in their order.
    """
    if isinstance(outer, nn.Linear):
        return _compose_linear(outer, inner, columns)
    if not isinstance(outer, EUGenFeatures):
        raise TypeError(f"cannot compose {type(outer).__name__}, expected Linear or EUGenFeatures")
    norm = _compose_norm(outer, inner, columns) if outer.use_norm else None
    projection = _compose_linear(outer.projection, inner, columns)
    like = {"device": inner.weight.device, "dtype": inner.weight.dtype}
    composed = EUGenFeatures(
        projection.in_features,
        outer.num_features,
        outer.order,
        outer.phi,
        outer.use_norm,
        outer.shared,
        norm_rank=0 if norm is None else len(norm[0]),
        **like,
    )
    composed.projection = projection
    if norm is not None and composed.norm_factor is not None:
        composed.norm_weight = outer.norm_weight
        composed.norm_factor.weight.copy_(norm[0])
        composed.norm_factor.bias.copy_(norm[1])
    return composed.train(outer.training)


def chain_maps(chain: nn.Module) -> list[nn.Module]:
    """A chain as a flat list of maps; an EUGen layer is its features and its readout."""
    if is_chain(chain):
        return [atom for module in chain for atom in chain_maps(module)]
    if isinstance(chain, EUGenLinear):
        return [*chain_maps(chain.features), chain.readout]
    if isinstance(chain, EUGenFeatures) and chain.is_affine:
        return [chain.projection]
    return [] if isinstance(chain, nn.Identity) else [chain]


def is_chain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a module is a plain chain: a subclass may route its data in a way of its own."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_dense(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes what its weight and bias say: a subclass (LoRA, quantised) may not."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _compose_linear(outer: nn.Linear, inner: nn.Linear, columns: slice) -> nn.Linear:
    weight, bias = _substitute(outer.weight.double(), inner, columns)
    if outer.bias is not None:
        bias = bias + outer.bias.double()
    composed = nn.Linear(weight.shape[1], weight.shape[0], device=inner.weight.device, dtype=inner.weight.dtype)
    composed.weight.copy_(weight)
    composed.bias.copy_(bias)
    return composed.train(outer.training)


def _compose_norm(outer: EUGenFeatures, inner: nn.Linear, columns: slice) -> tuple[Tensor, Tensor]:
    """The triangular factor (R, r) with ‖R z + r‖ equal to the norm that `outer` sees, z being the new input."""
    if outer.norm_factor is None:
        factor = torch.eye(outer.in_features, dtype=torch.float64, device=inner.weight.device)
        offset = factor.new_zeros(outer.in_features)
    else:
        factor, offset = outer.norm_factor.weight.double(), outer.norm_factor.bias.double()
    weight, bias = _substitute(factor, inner, columns)
    triangle = torch.linalg.qr(torch.cat([weight, (bias + offset)[:, None]], dim=1), mode="r").R
    return triangle[:, :-1], triangle[:, -1]


def _substitute(matrix: Tensor, inner: nn.Linear, columns: slice) -> tuple[Tensor, Tensor]:
    """Replace `columns` of a float64 matrix by their product with inner; the constant part comes second."""
    start, stop, _ = columns.indices(matrix.shape[1])
    block = matrix[:, start:stop]
    if block.shape[1] != inner.out_features:
        raise ValueError(f"columns {start}:{stop} are {block.shape[1]}, expected {inner.out_features}")
    weight = torch.cat([matrix[:, :start], block @ inner.weight.double(), matrix[:, stop:]], dim=1)
    bias = matrix.new_zeros(len(matrix)) if inner.bias is None else block @ inner.bias.double()
    return weight, bias


def _assign(chain: nn.Sequential, atoms: Sequence[nn.Module]) -> None:
    chain._modules.clear()
    chain.extend(atoms)


def _products(module: nn.Module) -> int:
    """Scalar products that one row takes in a map's matrices."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
