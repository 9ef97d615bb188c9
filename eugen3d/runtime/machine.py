"""What the runtime knows of this machine, and where it keeps what it has built and measured here."""

import os
import platform
from pathlib import Path

import torch


def cache_folder() -> Path:
    """The user's folder for what can be built or measured again; it need not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "eugen3d"


def machine_name() -> str:
    """The processor with the version of torch: what a measured time depends on beside the work itself."""
    return f"{cpu_line('model name') or platform.processor() or platform.machine()}, torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given; a clock is right only then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def why_no_cuda() -> str | None:
    """Why nothing can be evaluated by CUDA here; None where it can."""
    if torch.version.cuda is not None and torch.cuda.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"no CUDA device was found (torch {torch.__version__}, {built}), expected one"


def cpu_line(*keys: str) -> str:
    """What the kernel says of the first processor under one of these keys; "" where it says nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""
