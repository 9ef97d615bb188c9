"""Under what conditions a number was measured: hardware, versions, date."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import eugen3d


def device_name(device: torch.device) -> str:
    """The hardware's name; for a processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor_name()}, {threads} thread{'s' if threads > 1 else ''}"


def load_average() -> float | None:
    """Processes that wanted to run over the last minute, this one's too; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def versions(device: torch.device) -> dict[str, str]:
    """Versions of what computes."""
    names = {"eugen3d": eugen3d.__version__, "torch": torch.__version__, "nerfstudio": version("nerfstudio")}
    names["python"] = platform.python_version()
    return names | ({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {})


def now() -> str:
    """The time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
