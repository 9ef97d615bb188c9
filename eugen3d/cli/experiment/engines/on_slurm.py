"""Jobs on a SLURM cluster whose nodes share the folder that the experiment runs in; submitit submits them."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.experiment.engines.engine import Status
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.worker import carry_out_in

GRACE = 30.0  # seconds that the result of a job which has left the queue may take to appear on a shared disk


class SlurmEngine:
    """One job of the cluster for each job; the queue is asked with squeue, which needs no accounting."""

    poll_seconds = 2.0

    def __init__(self, conditions: Conditions, options: tuple[str, ...], folder: Path) -> None:
        try:
            import submitit
            from submitit.core.utils import FailedSubmissionError, UncompletedJobError
        except ImportError:
            raise UsageError("--engine slurm: needs submitit, expected pip install 'eugen3d[slurm]'") from None
        if shutil.which("sbatch") is None:
            raise UsageError("--engine slurm: found no sbatch, expected SLURM's commands on the path")
        asked = subprocess.run(["squeue", "--noheader", "--me"], capture_output=True, text=True)
        if asked.returncode:
            raise UsageError(f"--engine slurm: squeue says {asked.stderr.strip().splitlines()[-1]!r}")
        self._errors = UncompletedJobError, FailedSubmissionError
        self._executor: Any = submitit.SlurmExecutor(conditions.output_dir / "slurm")
        given = dict(_option(option) for option in options)
        gpus = {"gpus-per-node": 1} if conditions.device.startswith("cuda") else {}
        # no time is asked for, so that the partition's holds: submitit's own default is five minutes
        shared = {"job_name": "eugen3d", "cpus_per_task": conditions.threads, "time": None}
        self._executor.update_parameters(**shared, additional_parameters=gpus | given)
        self._folder = folder
        self._queue: dict[str, str] = {}
        self._asked = -GRACE

    def submit(self, job: Job) -> "SlurmHandle":
        """Put a job into the cluster's queue."""
        try:
            return SlurmHandle(self, self._executor.submit(carry_out_in, self._folder, job), self._errors)
        except self._errors as error:
            raise UsageError(f"--engine slurm: sbatch refused a job ({_reason(error)})") from None

    def close(self) -> None:
        """Nothing is held: what was cancelled ends by itself."""

    def queue(self) -> dict[str, str] | None:
        """The state of every job of this user that has not ended; None while the controller does not answer."""
        if time.monotonic() - self._asked >= self.poll_seconds:
            command = ["squeue", "--noheader", "--me", "--format", "%A %T"]
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode:
                return None
            self._queue = dict(line.split() for line in asked.stdout.splitlines())
            self._asked = time.monotonic()
        return self._queue


class SlurmHandle:
    """A job in the cluster's queue."""

    def __init__(self, engine: SlurmEngine, job: Any, errors: tuple[type[Exception], ...]) -> None:
        self._engine, self._job, self._errors = engine, job, errors
        self._last_seen = time.monotonic()

    def status(self) -> Status:
        """Where it stands now."""
        if self._job.paths.result_pickle.exists():
            try:
                return Status.of_exit(self._job.result())
            except self._errors as error:
                return Status("failed", _reason(error))
        queue = self._engine.queue()
        if queue is None or (state := queue.get(self._job.job_id)) is not None:
            self._last_seen = time.monotonic()
            return Status("waiting" if queue is None or state == "PENDING" else "running")
        if time.monotonic() - self._last_seen < GRACE:
            return Status("running")
        return Status("failed", f"SLURM job {self._job.job_id} left the queue without a result")

    def cancel(self) -> None:
        """scancel the job."""
        self._job.cancel(check=False)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.lstrip("-").partition("=")
    if not (name and equals and value):
        raise UsageError(f"--slurm {text}: expected NAME=VALUE, an option of sbatch such as partition=gpu")
    return name, value


def _reason(error: Exception) -> str:
    """The last line of the traceback from the other side, without the paths of submitit's logs that follow it."""
    lines = [line.strip() for line in str(error).partition("You can check full logs")[0].splitlines()]
    told = [line for line in lines if line.strip("-")]
    return told[-1] if told else first_line(error)
