"""One affine map put into the affine map that begins what follows it: the algebra of folding, all in float64."""

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.structure import num_products


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
    down, projection = _compose_projection(outer, inner, columns)
    like = {"device": inner.weight.device, "dtype": inner.weight.dtype}
    composed = EUGenFeatures(
        (down or projection).in_features,
        outer.num_features,
        outer.order,
        outer.phi,
        outer.use_norm,
        outer.shared,
        norm_rank=0 if norm is None else len(norm[0]),
        **like,
    )
    composed.down, composed.projection = down, projection
    if norm is not None and composed.norm_factor is not None:
        composed.norm_weight = outer.norm_weight
        composed.norm_factor.weight.copy_(norm[0])
        composed.norm_factor.bias.copy_(norm[1])
    return composed.train(outer.training)


def _compose_projection(outer: EUGenFeatures, inner: nn.Linear, columns: slice) -> tuple[nn.Linear | None, nn.Linear]:
    """The projections of features over `inner`'s input; factored ones stay so where that takes fewer products."""
    if outer.down is None:
        return None, _compose_linear(outer.projection, inner, columns)
    down = _compose_linear(outer.down, inner, columns)
    whole = _compose_linear(outer.projection, down, slice(None))
    factored = num_products(down) + num_products(outer.projection)
    return (None, whole) if num_products(whole) <= factored else (down, outer.projection)


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
