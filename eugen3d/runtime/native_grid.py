"""A hash grid's weighted means on a CPU by `grid.cpp`, differentiable in the table."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eugen3d.runtime.library import Level, NativeUnavailable, load_grid_library

MAX_FEATURES = 64
"""The longest entry that the library takes."""


class GridLevel(NamedTuple):
    """One level's layout (see `eugen3d.fields.hash_grid` for the symbols)."""

    scale: float
    resolution: int
    size: int
    is_dense: bool


@functools.cache
def has_native_grid() -> bool:
    """Whether the library can be built here."""
    try:
        load_grid_library()
    except NativeUnavailable:
        return False
    return True


def grid_means(levels: Sequence[GridLevel], table: Tensor, means: Tensor, stds: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted means (n, levels * features) of a grid over Gaussians, and the mean weights (n, levels).

    Args:
        levels: the layout.
        table: (entries, features), float32 on the CPU.
        means: (n, points, 3) in [0, 1]³, taken without gradients.
        stds: (n, points), likewise; None for points, all of weight 1.

    Raises:
        NativeUnavailable: the library cannot be built here.
    """
    return _GridMeans.apply(table, means, stds, tuple(levels))  # pyright: ignore[reportReturnType]


class _GridMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, means: Tensor, stds: Tensor | None, levels: tuple[GridLevel, ...]):
        means, stds, table = means.contiguous(), None if stds is None else stds.contiguous(), table.contiguous()
        outputs = table.new_empty(len(means), len(levels) * table.shape[1])
        omega = table.new_empty(len(means), len(levels))
        load_grid_library().grid_forward(
            *_arguments(levels, table, means, stds), outputs.data_ptr(), omega.data_ptr(), torch.get_num_threads()
        )
        ctx.save_for_backward(means, stds)
        ctx.levels, ctx.shape = levels, table.shape
        ctx.mark_non_differentiable(omega)
        return outputs, omega

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        means, stds = ctx.saved_tensors
        table = means.new_zeros(ctx.shape)
        gradient = gradients[0].contiguous()
        load_grid_library().grid_backward(
            *_arguments(ctx.levels, table, means, stds), gradient.data_ptr(), torch.get_num_threads()
        )
        return table, None, None, None


def _arguments(levels: tuple[GridLevel, ...], table: Tensor, means: Tensor, stds: Tensor | None) -> list[Any]:
    start, structures = 0, []
    for level in levels:
        structures.append(Level(level.scale, level.resolution, level.size, int(level.is_dense), start))
        start += level.size
    array = (Level * len(structures))(*structures)
    stds_pointer = None if stds is None else stds.data_ptr()
    where = table.data_ptr(), table.shape[1], means.data_ptr(), stds_pointer, len(means), means.shape[1]
    return [ctypes.cast(array, ctypes.c_void_p), len(levels), *where]
