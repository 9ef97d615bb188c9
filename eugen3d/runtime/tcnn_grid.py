"""A hash grid's values on an NVIDIA GPU by tiny-cuda-nn's encoding, over a table that stays PyTorch's own."""

import torch
from torch import Tensor, nn

from eugen3d.runtime.tcnn_chain import TcnnUnavailable, load_tcnn


class TcnnGrid(nn.Module):
    """tiny-cuda-nn's `HashGrid` encoding of points in [0, 1]³, in float32; differentiable in the table and the points.

    It holds no parameters: those that it is built with are exchanged at every call.

    Args:
        num_levels, features, log2_hashmap_size, base_resolution, growth: the grid's shape (see
            `eugen3d.fields.hash_grid` for the symbols).
        num_parameters: what the table has; refused where tiny-cuda-nn counts another number.

    Raises:
        TcnnUnavailable: no tiny-cuda-nn or no GPU, or its grid is of another size.
    """

    def __init__(
        self,
        num_levels: int,
        features: int,
        log2_hashmap_size: int,
        base_resolution: int,
        growth: float,
        num_parameters: int,
    ) -> None:
        super().__init__()
        config = {
            "otype": "HashGrid",
            "n_levels": num_levels,
            "n_features_per_level": features,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": base_resolution,
            "per_level_scale": growth,
        }
        encoding = load_tcnn().Encoding(3, config, dtype=torch.float32)
        if encoding.params.numel() != num_parameters:
            found = f"{encoding.params.numel():,} entries' numbers"
            raise TcnnUnavailable(f"tiny-cuda-nn has {found} for a grid, expected {num_parameters:,}")
        self.__dict__["encoding"] = encoding  # no submodule: its parameters are no part of a state

    def forward(self, table: Tensor, x: Tensor) -> Tensor:
        """Values (n, levels * features) at points (n, 3), of a table (entries, features)."""
        values = torch.func.functional_call(self.__dict__["encoding"], {"params": table.flatten()}, (x,))
        return values.to(table.dtype)
