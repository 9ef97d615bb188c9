"""The seam between an experiment and what runs its jobs."""

from dataclasses import dataclass
from typing import Literal, Protocol

from eugen3d.cli.experiment.job import Job

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Status:
    """Where a job stands."""

    state: State
    reason: str = ""
    """Of a failure, on one line."""

    @classmethod
    def of_exit(cls, code: int) -> "Status":
        """That of a command which ended."""
        return cls("done") if code == 0 else cls("failed", f"exit code {code}")


class Handle(Protocol):
    """A job that was handed over."""

    def status(self) -> Status:
        """Where it stands now; does not wait."""
        ...

    def cancel(self) -> None:
        """Ask it to end; does not wait."""
        ...


class Engine(Protocol):
    """What runs jobs.

    Attributes:
        poll_seconds: how long to wait before looking at the handles again.
    """

    poll_seconds: float

    def submit(self, job: Job) -> Handle:
        """Hand a job over, whose inputs are done."""
        ...

    def close(self) -> None:
        """Wait for what was cancelled, and give back what the engine holds."""
        ...
