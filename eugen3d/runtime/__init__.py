"""Fast evaluation of folded networks."""

import copy

from torch import nn

from eugen3d.layers import fold
from eugen3d.runtime.tiled import Backend, TiledModule

__all__ = ["Backend", "TiledModule", "build"]


def build(module: nn.Module, backend: Backend = "eager", tile_rows: int | None = None) -> TiledModule:
    """Fold a copy of a module and wrap it for fast evaluation; the module itself stays as it is."""
    return TiledModule(fold(copy.deepcopy(module)), backend, tile_rows)
