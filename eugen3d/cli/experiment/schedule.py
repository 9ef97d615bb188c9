"""Runs jobs on an engine: each when its input is done, again where it fails, and none after a failed input."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from eugen3d.cli.experiment.engines import Engine, Handle
from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.worker import is_done, log_path

TAIL = 5  # lines of a failed job's log that are shown

End = Literal["done", "found", "failed", "not run"]
Phase = Literal["submitted", "running", "again", "done", "found", "failed", "not run"]


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    end: End
    """`found` is what an earlier call finished; `not run` what had no input."""
    reason: str = ""
    attempts: int = 0
    log_tail: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the job's product is there."""
        return self.end in ("done", "found")


@dataclass
class _Started:
    job: Job
    handle: Handle
    attempts: int
    runs: bool = False


def run_jobs(
    jobs: Sequence[Job], engine: Engine, retries: int, on_change: Callable[[Job, Phase, str], None]
) -> dict[tuple[str, str], Outcome]:
    """Run jobs until all have ended; interrupted, it cancels what runs.

    Args:
        jobs: inputs before what starts from them.
        retries: how often a job that fails is tried again.
        on_change: is told of every step of a job, with the reason of a failure.

    Returns:
        Every job's end, by its key.
    """
    ends: dict[tuple[str, str], Outcome] = {}
    started: list[_Started] = []
    waiting = list(jobs)

    def settle(outcome: Outcome) -> None:
        ends[outcome.job.key] = outcome
        on_change(outcome.job, outcome.end, outcome.reason)

    try:
        while waiting or started:
            for job in list(waiting):
                source = ends.get(job.input.key) if job.input else None
                if job.input and source is None:
                    continue
                waiting.remove(job)
                if source and not source.is_done:
                    settle(Outcome(job, "not run", f"its input {source.job.name} {_past(source.end)}"))
                elif is_done(job):
                    settle(Outcome(job, "found"))
                else:
                    started.append(_Started(job, engine.submit(job), attempts=1))
                    on_change(job, "submitted", "")
            for one in list(started):
                status = one.handle.status()
                if status.state == "running" and not one.runs:
                    one.runs = True
                    on_change(one.job, "running", "")
                elif status.state == "done":
                    started.remove(one)
                    settle(Outcome(one.job, "done", attempts=one.attempts))
                elif status.state == "failed" and one.attempts <= retries:
                    on_change(one.job, "again", status.reason)
                    one.handle, one.attempts, one.runs = engine.submit(one.job), one.attempts + 1, False
                elif status.state == "failed":
                    started.remove(one)
                    settle(Outcome(one.job, "failed", status.reason, one.attempts, _tail(one.job)))
            if started:
                time.sleep(engine.poll_seconds)
    except BaseException:
        for one in started:
            one.handle.cancel()
        raise
    return ends


def _past(end: End) -> str:
    return "failed" if end == "failed" else "was not run"


def _tail(job: Job) -> tuple[str, ...]:
    """The last lines of a job's log."""
    try:
        lines = log_path(job).read_text(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple([line.rstrip() for line in lines if line.strip()][-TAIL:])
