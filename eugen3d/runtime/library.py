"""Compile and load `chain.cpp` and `grid.cpp`, once a machine.

The libraries have a plain C interface, so no header of torch has to be compiled and an upgrade of torch does not break
them. The compiler is the one that torch's own extensions take. OpenMP's threads are shared with torch where torch
brings its own OpenMP.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch

from eugen3d.runtime.machine import cache_folder, cpu_line

SOURCE, GRID_SOURCE = (Path(__file__).with_name(name) for name in ("chain.cpp", "grid.cpp"))
COMPILE_SECONDS = 300


class NativeUnavailable(RuntimeError):  # noqa: N818 (it says what the caller has to know, not that something broke)
    """The native runtime cannot be built here, or cannot evaluate this module; the message says why, in one line."""


class Step(ctypes.Structure):
    """`Step` of chain.cpp."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            *("in_features", "out_features", "concatenates_input", "activation"),
            *("num_features", "order", "shared", "norm_rank"),
        )
    ] + [(name, ctypes.c_void_p) for name in ("weight", "bias", "norm_weight", "norm_factor", "norm_offset")]


class Level(ctypes.Structure):
    """`Level` of grid.cpp."""

    _fields_ = [
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("resolution", "size", "is_dense")),
        ("start", ctypes.c_int64),
    ]


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled chains, built first where there is no library for this source, compiler and processor.

    Raises:
        NativeUnavailable: no compiler, or it fails; with what it said.
    """
    library = _load(SOURCE)
    for kind in ("float32", "bfloat16") if library.chain_has_bfloat16() else ("float32",):
        getattr(library, f"chain_run_{kind}").argtypes = [
            *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32),
            *(ctypes.c_void_p, ctypes.c_int32),
        ]
    return library


@functools.cache
def load_grid_library() -> ctypes.CDLL:
    """The compiled hash grid, likewise.

    Raises:
        NativeUnavailable: no compiler, or it fails; with what it said.
    """
    library = _load(GRID_SOURCE)
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    common = [pointer, int32, pointer, int32, pointer, pointer, int64, int32, pointer]
    library.grid_forward.argtypes = [*common, pointer, int32]
    library.grid_backward.argtypes = [*common, int32]
    return library


def _load(source: Path) -> ctypes.CDLL:
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O3", "-march=native", "-fno-math-errno"]
    command += ["-fPIC", "-shared", "-fopenmp", str(source)]
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if runtimes:  # with a second OpenMP the two would wait for each other's spinning threads
        command += [str(runtimes[0]), f"-Wl,-rpath,{runtimes[0].parent}"]
    path = cache_folder() / f"{source.stem}-{_fingerprint(source, command)}.so"
    if not path.exists():
        _compile(command, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"{path} cannot be loaded ({error}), remove it to have it built again") from None


def _fingerprint(source: Path, command: list[str]) -> str:
    """What the compiled code depends on: its source, how it is compiled, and what this processor can do."""
    parts = (source.read_text(), " ".join(command), platform.machine(), cpu_line("flags", "Features"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(command: list[str], path: Path) -> None:
    """Compile into a folder of its own and rename, so that nobody sees half a library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            beside = Path(folder) / path.name
            _call_compiler([*command, "-o", str(beside)])
            beside.replace(path)
    except OSError as error:
        raise NativeUnavailable(f"{path.parent} cannot be written to ({error})") from None


def _call_compiler(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"the compiler {command[0]} does not run ({error})") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["nothing"]
        raise NativeUnavailable(f"the compiler {command[0]} failed with exit code {done.returncode}: {said[0].strip()}")
