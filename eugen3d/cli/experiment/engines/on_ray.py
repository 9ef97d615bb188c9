"""Jobs on Ray: started by itself on this machine, or the cluster that RAY_ADDRESS names."""

import logging
import os
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.experiment.engines.engine import Status
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.worker import carry_out_in

PATIENCE = 35.0  # seconds that cancelled jobs have to keep what they have done


class RayEngine:
    """One task for each job; as many run at once as there are processors for."""

    poll_seconds = 0.2

    def __init__(self, conditions: Conditions, folder: Path) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray: needs Ray, expected pip install 'eugen3d[ray]'") from None
        self._ray: Any = ray
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # where a node does not start in time, Ray raises nothing more special
            raise UsageError(f"--engine ray: cannot be started or reached ({first_line(error)})") from None
        needed = {"CPU": conditions.threads} | ({"GPU": 1} if conditions.device.startswith("cuda") else {})
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= count for name, count in needed.items()) for node in nodes):
            ray.shutdown()
            found = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in needed) for node in nodes)
            wanted = ", ".join(f"{count} {name}" for name, count in needed.items())
            raise UsageError(f"--engine ray: its nodes have {found}, expected one with {wanted} as a job needs it")
        options = {"num_cpus": conditions.threads, "num_gpus": needed.get("GPU", 0), "max_retries": 0}
        self._task = self._ray.remote(**options)(carry_out_in)
        self._folder = folder
        self._cancelled: list[Any] = []

    def submit(self, job: Job) -> "RayHandle":
        """Put a task into Ray's queue."""
        return RayHandle(self, self._ray, self._task.remote(self._folder, job))

    def cancelled(self, reference: Any) -> None:
        """Remember a task that `close` has to wait for."""
        self._cancelled.append(reference)

    def close(self) -> None:
        """Wait for what was cancelled and leave Ray; it ends where this process started it. Twice is once."""
        cancelled, self._cancelled = self._cancelled, []
        if cancelled:
            self._ray.wait(cancelled, num_returns=len(cancelled), timeout=PATIENCE)
        self._ray.shutdown()


class RayHandle:
    """A task of Ray's."""

    def __init__(self, engine: RayEngine, ray: Any, reference: Any) -> None:
        self._engine, self._ray, self._reference = engine, ray, reference

    def status(self) -> Status:
        """Where it stands now; a task that waits for a processor counts as running."""
        done, _ = self._ray.wait([self._reference], timeout=0)
        if not done:
            return Status("running")
        try:
            return Status.of_exit(self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:
            return Status("failed", first_line(error))

    def cancel(self) -> None:
        """Interrupt the task."""
        self._ray.cancel(self._reference)
        self._engine.cancelled(self._reference)
