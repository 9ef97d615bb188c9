"""Compile and load `chain.cpp`, once a machine.

The library has a plain C interface, so no header of torch has to be compiled and an upgrade of torch does not break it.
The compiler is the one that torch's own extensions take. OpenMP's threads are shared with torch where torch brings its
own OpenMP.
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

SOURCE = Path(__file__).with_name("chain.cpp")
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


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled library, built first where there is none for this source, compiler and processor.

    Raises:
        NativeUnavailable: no compiler, or it fails; with what it said.
    """
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O3", "-march=native", "-fno-math-errno"]
    command += ["-fPIC", "-shared", "-fopenmp", str(SOURCE)]
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if runtimes:  # with a second OpenMP the two would wait for each other's spinning threads
        command += [str(runtimes[0]), f"-Wl,-rpath,{runtimes[0].parent}"]
    path = cache_folder() / f"chain-{_fingerprint(command)}.so"
    if not path.exists():
        _compile(command, path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"{path} cannot be loaded ({error}), remove it to have it built again") from None
    for kind in ("float32", "bfloat16") if library.chain_has_bfloat16() else ("float32",):
        getattr(library, f"chain_run_{kind}").argtypes = [
            *(ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32),
            *(ctypes.c_void_p, ctypes.c_int32),
        ]
    return library


def _fingerprint(command: list[str]) -> str:
    """What the compiled code depends on: its source, how it is compiled, and what this processor can do."""
    parts = (SOURCE.read_text(), " ".join(command), platform.machine(), cpu_line("flags", "Features"))
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
