"""SdfQuery: distances and gradients of a trained field, folded, for 1 to 10⁷ points at a time."""

import copy

import torch
from torch import Tensor, nn

from eugen3d.fields import distance_and_gradient
from eugen3d.layers import fold
from eugen3d.runtime import Backend, build

TILE_ROWS = 1024
"""Points of a tile on a CPU with gradients: activations of both ways through fit the second-level cache."""
GPU_TILE_ROWS = 1 << 17


class SdfQuery:
    """A folded copy of a field, to be asked by planners; later changes of the field are not seen.

    Args:
        field: takes positions (n, 3) in metres to distances (n,).
        runtime: the backend of `distance`; gradients are taken by torch's reverse mode, tile by tile.

    Attributes:
        folded: the copy.
    """

    def __init__(self, field: nn.Module, runtime: Backend = "eager") -> None:
        self.folded = fold(copy.deepcopy(field)).eval().requires_grad_(False)
        self._evaluate = build(self.folded, runtime)
        parameter = next(self.folded.parameters())
        self._like = {"device": parameter.device, "dtype": parameter.dtype}

    def distance(self, points: Tensor) -> Tensor:
        """Signed distances (n,) in metres at points (n, 3), on the points' device."""
        outputs = self._evaluate(points.to(**self._like))
        assert isinstance(outputs, Tensor)
        return outputs.to(points.device)

    def distance_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances (n,) in metres and their gradients (n, 3) at points (n, 3), on the points' device."""
        rows = TILE_ROWS if self._like["device"].type == "cpu" else GPU_TILE_ROWS
        distance = torch.empty(len(points), dtype=self._like["dtype"], device=points.device)
        gradient = torch.empty(len(points), 3, dtype=self._like["dtype"], device=points.device)
        for start in range(0, len(points), rows):
            tile = slice(start, start + rows)
            distance[tile], gradient[tile] = distance_and_gradient(self.folded, points[tile].to(**self._like))
        return distance, gradient
