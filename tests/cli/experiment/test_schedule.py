"""The order of jobs, failures and retries, on an engine that only pretends."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from eugen3d.cli.experiment.engines import Status
from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.schedule import run_jobs

MakeJob = Callable[..., Job]


@dataclass
class FakeHandle:
    states: list[Status]
    is_cancelled: bool = False

    def status(self) -> Status:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeEngine:
    """Ends every job after one look, in failure as often as `failures` says."""

    failures: dict[str, int] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    handles: list[FakeHandle] = field(default_factory=list)
    poll_seconds: float = 0.0

    def submit(self, job: Job) -> FakeHandle:
        self.submitted.append(job.name)
        left = self.failures.get(job.name, 0)
        self.failures[job.name] = left - 1
        end = Status.of_exit(3) if left > 0 else Status("done")
        self.handles.append(FakeHandle([Status("waiting"), Status("running"), end]))
        return self.handles[-1]

    def close(self) -> None:
        pass


def ignore(*_: object) -> None:
    pass


def test_a_job_starts_once_its_input_is_done(make_job: MakeJob) -> None:
    dense = make_job("dense", "")
    student = make_job("student", "", dense)
    phases: list[tuple[str, str]] = []
    ends = run_jobs([dense, student], FakeEngine(), 0, lambda job, phase, _: phases.append((job.name, phase)))
    assert phases == [(name, phase) for name in ("dense", "student") for phase in ("submitted", "running", "done")]
    assert [outcome.end for outcome in ends.values()] == ["done", "done"]


def test_what_does_not_depend_on_a_failed_job_runs(make_job: MakeJob) -> None:
    dense = make_job("dense", "")
    student, other = make_job("student", "", dense), make_job("other", "")
    refined = make_job("refined", "", student)
    engine = FakeEngine({"dense": 9})
    ends = run_jobs([dense, student, refined, other], engine, 2, ignore)
    assert engine.submitted.count("dense") == 3 and "student" not in engine.submitted
    assert {key[1]: outcome.end for key, outcome in ends.items()} == {
        "dense": "failed",
        "other": "done",
        "student": "not run",
        "refined": "not run",
    }
    assert (ends["disc", "dense"].reason, ends["disc", "dense"].attempts) == ("exit code 3", 3)
    assert ends["disc", "student"].reason == "its input dense failed"
    assert ends["disc", "refined"].reason == "its input student was not run"


def test_a_job_that_fails_once_is_tried_again(make_job: MakeJob) -> None:
    dense = make_job("dense", "")
    student = make_job("student", "", dense)
    engine = FakeEngine({"dense": 1})
    phases: list[str] = []
    ends = run_jobs([dense, student], engine, 1, lambda job, phase, _: phases.append(phase))
    assert engine.submitted == ["dense", "dense", "student"]
    assert phases[:5] == ["submitted", "running", "again", "running", "done"]
    assert ends["disc", "dense"].attempts == 2 and ends["disc", "dense"].is_done


def test_an_interruption_cancels_what_runs(make_job: MakeJob) -> None:
    engine = FakeEngine()

    def interrupt(job: Job, phase: str, _: str) -> None:
        if phase == "running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([make_job("a", ""), make_job("b", "")], engine, 0, interrupt)
    assert [handle.is_cancelled for handle in engine.handles] == [True, True]
