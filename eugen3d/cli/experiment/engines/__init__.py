"""Where jobs run: here, on a SLURM cluster, or on Ray. The seam is `Engine.submit` and the handle that it gives."""

from pathlib import Path
from typing import Literal

from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.engines.engine import Engine, Handle, State, Status
from eugen3d.cli.experiment.engines.local import LocalEngine
from eugen3d.cli.experiment.engines.on_ray import RayEngine
from eugen3d.cli.experiment.engines.on_slurm import SlurmEngine
from eugen3d.cli.experiment.job import Conditions

__all__ = ["Engine", "EngineName", "Handle", "State", "Status", "open_engine"]

EngineName = Literal["local", "slurm", "ray"]


def open_engine(name: EngineName, conditions: Conditions, slurm: tuple[str, ...] = ()) -> Engine:
    """The engine of that name.

    Args:
        slurm: options of sbatch as NAME=VALUE.

    Raises:
        UsageError: what it needs is not installed or not running.
    """
    if slurm and name != "slurm":
        raise UsageError(f"--slurm {' '.join(slurm)}: is of no use with --engine {name}, expected --engine slurm")
    if name == "slurm":
        return SlurmEngine(conditions, slurm, Path.cwd())
    return RayEngine(conditions, Path.cwd()) if name == "ray" else LocalEngine()
