"""Seconds and bytes of calls: contestants take turns in one process, so that a machine's moods fall on all of them."""

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from eugen3d.runtime.machine import synchronize

Call = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write of its start and stop to stderr

SHORTEST = 0.02
"""Seconds that a contestant's turn takes at least: quicker calls are repeated."""
MOST_REPEATS = 1000
COPIED_BYTES = 1 << 27
"""Of the tensor that the bandwidth is measured on: no processor's cache holds it, and few GPUs'."""
SQUARES = (512, 1024, 2048)
"""Sizes of the square products that the peak is sought among."""


def time_in_turn(
    calls: Mapping[Key, Call], rounds: int, device: torch.device, on_turn: Callable[[], None] = lambda: None
) -> dict[Key, float]:
    """The median seconds of every call over rounds in which all take turns; each is called twice to warm up."""
    repeats = {}
    for key, call in calls.items():
        call()
        repeats[key] = min(MOST_REPEATS, max(1, round(SHORTEST / max(_seconds(call, 1, device), 1e-9))))
    turns: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            turns[key].append(_seconds(call, repeats[key], device))
            on_turn()
    return {key: statistics.median(seconds) for key, seconds in turns.items()}


def matmul_flops_per_second(
    shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, rounds: int, device: torch.device
) -> float:
    """The best rate of torch's products (rows, inner) by (inner, columns), with the threads that torch uses now.

    On a CPU both of torch's libraries are asked: in float32 `torch.mm` goes through MKL, which on some processors (an
    AMD EPYC of family 26 among them) reaches half of what oneDNN does.
    """
    calls: dict[tuple[int, int, int, str], Call] = {}
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, columns, device=device).to(dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        calls[rows, inner, columns, "mm"] = _product(left, right, out)
        if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            calls[rows, inner, columns, "onednn"] = _onednn_product(left, right)
    seconds = time_in_turn(calls, rounds, device)
    return max(2 * rows * inner * columns / taken for (rows, inner, columns, _), taken in seconds.items())


def copy_bytes_per_second(rounds: int, device: torch.device) -> float:
    """Bytes read and written a second as one large tensor is copied into another (McCalpin 1995, STREAM copy)."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device).fill_(1)
    target = torch.zeros_like(source).fill_(2)  # written, so that its pages are there
    return 2 * COPIED_BYTES / time_in_turn({"copy": lambda: target.copy_(source)}, rounds, device)["copy"]


def peak_allocation(call: Call, device: torch.device) -> int:
    """Bytes that one call holds at once, at most, of what torch's allocator gives it and was not held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events: list[Any] = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Call:
    return lambda: torch.mm(left, right, out=out)


def _onednn_product(left: torch.Tensor, right: torch.Tensor) -> Call:
    left, right = left.to_mkldnn(), right.T.contiguous().to_mkldnn()
    product: Callable[..., object] = torch._C._nn.mkldnn_linear  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: product(left, right)


def _seconds(call: Call, repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats
