"""What is freed stays with the process, where it was asked to keep it."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from eugen3d.runtime import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_freed_memory() if sys.argv[1] == "keep" else True
before = resident()
x = torch.ones(64 << 18)
held = resident()
del x
print(held - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory of a process")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept(keep: bool) -> None:
    """64 MiB that are allocated, written and freed."""
    command = [sys.executable, "-c", PROGRAM, "keep" if keep else "leave"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held, left = map(int, printed.split())
    assert held > 60 << 20
    assert left > 60 << 20 if keep else left < 8 << 20
