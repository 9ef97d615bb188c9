"""Evaluate a folded module over many rows, tile by tile, so that its activations stay in the processor's cache.

A wide layer's activations over a whole chunk of rays are tens of megabytes; written to memory and read back for every
layer they cost more than the products do. A tile of a few thousand rows fits the cache.
"""

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from eugen3d.runtime.derivatives import differentiable

TileBackend = Literal["eager", "compiled"]

TILE_ROWS = 2048
GPU_TILE_ROWS = 1 << 18


class TiledModule(nn.Module):
    """A module over rows, evaluated in tiles.

    Inputs that require gradients get them, of any order that the reference has; the parameters get none.

    Args:
        module: takes tensors whose first axis is the rows and returns a tensor or a tuple of tensors, row by row.
        backend: "eager" runs it as it is; "compiled" through `torch.compile`, which needs a C++ compiler on a CPU.
        tile_rows: rows per tile; by default what suits the device, and all rows where the module has `tiles_itself`
            set: it needs no copies put together then. A compiled module sees the last tile padded, so that it is
            compiled for one shape.
        reference: the same function in operations that torch differentiates, for inputs that require gradients; by
            default the module.
    """

    _call: Callable[..., Tensor | tuple[Tensor, ...]]

    def __init__(
        self,
        module: nn.Module,
        backend: TileBackend = "eager",
        tile_rows: int | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if backend not in get_args(TileBackend):
            raise ValueError(
                f"runtime backend {backend!r} is unknown, expected one of {', '.join(get_args(TileBackend))}"
            )
        self.module = module.eval().requires_grad_(False)
        self.tile_rows = tile_rows
        self.is_compiled = backend == "compiled"
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        # Not an attribute of the module: it would stand twice in the state dict.
        self.__dict__["_call"] = torch.compile(module, dynamic=False) if self.is_compiled else module

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return differentiable(self._evaluate, self.reference or self.module, *inputs)
        return self._evaluate(*inputs)

    @torch.no_grad()
    def _evaluate(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        rows = len(inputs[0])
        tile_rows = self.tile_rows or (TILE_ROWS if inputs[0].device.type == "cpu" else GPU_TILE_ROWS)
        if rows == 0 or (self.tile_rows is None and getattr(self.module, "tiles_itself", False)):
            return self.module(*inputs)
        tiles = [self._tile(inputs, start, tile_rows) for start in range(0, rows, tile_rows)]
        if isinstance(tiles[0], Tensor):
            return torch.cat(cast(list[Tensor], tiles))
        return tuple(torch.cat(parts) for parts in zip(*tiles, strict=True))

    def _tile(self, inputs: tuple[Tensor, ...], start: int, tile_rows: int) -> Tensor | tuple[Tensor, ...]:
        tile = [x[start : start + tile_rows] for x in inputs]
        missing = tile_rows - len(tile[0])
        if not self.is_compiled or not missing:
            return self._call(*tile)
        padded = [torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) for x in tile]
        outputs = self._call(*padded)
        if isinstance(outputs, Tensor):
            return outputs[: len(tile[0])]
        return tuple(y[: len(tile[0])] for y in outputs)
