"""Build a module for fast evaluation by one of the backends."""

import copy
import warnings
from typing import Literal, get_args

import torch
from torch import nn

from eugen3d.layers import fold
from eugen3d.runtime.auto import AutoModule
from eugen3d.runtime.chains import CastChain, replace_chains
from eugen3d.runtime.library import NativeUnavailable
from eugen3d.runtime.native import make_native
from eugen3d.runtime.tcnn_chain import TcnnChain, TcnnUnavailable, load_tcnn, make_tcnn
from eugen3d.runtime.tiled import TileBackend, TiledModule
from eugen3d.runtime.triton_chain import TritonUnavailable, load_kernel, make_triton

Backend = Literal["auto", "eager", "compiled", "native", "triton", "tcnn"]

DTYPES = (None, torch.float32, torch.bfloat16)


class RuntimeFallbackWarning(UserWarning):
    """Another backend than the one asked for evaluates a module; the message says which and why."""


def build(
    module: nn.Module, backend: Backend = "auto", tile_rows: int | None = None, dtype: torch.dtype | None = None
) -> TiledModule | AutoModule:
    """Fold a copy of a module and wrap it for fast evaluation; the module itself stays as it is.

    Args:
        module: takes tensors whose first axis is the rows and returns a tensor or a tuple of tensors, row by row. It
            may be folded already.
        backend: "eager" is the reference; "compiled" goes through `torch.compile`; "native" evaluates the chains of
            dense layers, EUGen features and activations by a small C++ library, on CPUs, and what it has no step for
            as it is (see `make_native`); "triton" does so by one kernel per chain, on NVIDIA GPUs (see
            `TritonChain`); "tcnn" hands every chain of several dense layers to tiny-cuda-nn, on NVIDIA GPUs, and
            refuses one that does not fit (see `TcnnChain`); "auto" measures which is fastest, once (see `AutoModule`).
            They agree to rounding: relative errors of 1e-4 in float32, 2e-2 in bfloat16; on a GPU where torch is
            allowed TF32, 5e-3 in float32; by tcnn, which knows float16 alone, 1e-2. For native, triton and tcnn a
            module whose data flow is its own joins its chains first, by its method `join_()`.
            Inputs that require gradients get them, first, second and beyond: those of the folded module, in its own
            precision, whichever backend computes the values.
        tile_rows: rows per tile; by default what suits the device.
        dtype: precision of the chains of dense layers, torch.float32 or torch.bfloat16; by default as they are. The
            chains' parameters and what flows inside them are cast; what enters and leaves them, encodings,
            concatenations and the module's inputs and outputs keep the caller's dtype. With either given, "tcnn" is
            unavailable, and "auto" does not choose it.

    Raises:
        ValueError: on a backend or dtype that does not exist, or when `dtype` finds no chain to cast.
        TritonUnavailable: "triton" cannot be had here or for this module.
        TcnnUnavailable: "tcnn" cannot be had here or for this module.

    Warns:
        RuntimeFallbackWarning: "native" cannot be had here or for this module; "compiled" stands in.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"runtime backend {backend!r} is unknown, expected one of {', '.join(get_args(Backend))}")
    if dtype not in DTYPES:
        raise ValueError(f"runtime dtype {dtype} is unknown, expected torch.float32, torch.bfloat16 or None")
    folded = fold(copy.deepcopy(module))
    if backend == "auto":
        if dtype is not None:
            _build_one(folded, "eager", tile_rows, dtype)  # raises here, not at the first call
        makers = {name: lambda name=name: _candidate(folded, name, tile_rows, dtype) for name in get_args(Backend)[1:]}
        return AutoModule(folded, makers, f"tile_rows={tile_rows} dtype={dtype}")
    try:
        return _build_one(folded, backend, tile_rows, dtype)
    except NativeUnavailable as error:
        warnings.warn(f"runtime native: {error}; compiled instead", RuntimeFallbackWarning, stacklevel=2)
        return _build_one(folded, "compiled", tile_rows, dtype)


def _candidate(folded: nn.Module, backend: Backend, tile_rows: int | None, dtype: torch.dtype | None) -> TiledModule:
    """A backend that "auto" may choose; Triton's interpreter, which is for tests, is none."""
    if backend == "triton" and load_kernel().IS_INTERPRETED:
        raise TritonUnavailable("Triton's interpreter is on, expected a CUDA device")
    return _build_one(folded, backend, tile_rows, dtype)


def _build_one(folded: nn.Module, backend: Backend, tile_rows: int | None, dtype: torch.dtype | None) -> TiledModule:
    module = copy.deepcopy(folded).eval()
    tile_backend: TileBackend = "compiled" if backend == "compiled" else "eager"
    if backend == "native":
        try:
            module = replace_chains(_joined(module), lambda chain: make_native(chain, dtype))
        except ValueError as error:
            raise NativeUnavailable(str(error)) from None
    elif backend == "triton":
        load_kernel()  # a module without chains, too, is told first what is missing here
        try:
            module = replace_chains(_joined(module), lambda chain: make_triton(chain, dtype))
        except ValueError as error:
            raise TritonUnavailable(f"runtime triton: {error}") from None
    elif backend == "tcnn":
        module = _with_tcnn(module, dtype)
    elif dtype is not None:
        module = replace_chains(module, lambda chain: CastChain(chain, dtype))
    has_torchs_derivatives = backend in ("eager", "compiled")
    return TiledModule(module, tile_backend, tile_rows, None if has_torchs_derivatives else folded)


def _with_tcnn(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The module with its chains handed to tiny-cuda-nn; lone dense layers stay as they are."""
    try:
        if dtype is not None:
            raise TcnnUnavailable(f"dtype {dtype} was asked for, tiny-cuda-nn computes in torch.float16 alone")
        load_tcnn()  # a module without chains, too, is told first what is missing here
        module = replace_chains(_joined(module), make_tcnn)
        if not any(isinstance(part, TcnnChain) for part in module.modules()):
            raise TcnnUnavailable("no chain has two dense layers or more")
    except (TcnnUnavailable, ValueError) as error:
        raise TcnnUnavailable(f"runtime tcnn: {error}") from None
    return module


def _joined(module: nn.Module) -> nn.Module:
    """The module, with the chains joined that its own `join_()` and those of its parts can join."""
    for part in list(module.modules()):
        if callable(join := getattr(part, "join_", None)):
            join()
    return module
