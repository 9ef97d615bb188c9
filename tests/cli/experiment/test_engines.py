"""Four jobs, one of which needs another, through every engine: the same files. Ray and SLURM where they are."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.engines import Engine, EngineName, open_engine
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.schedule import run_jobs
from eugen3d.cli.experiment.worker import log_path

MakeJob = Callable[..., Job]
Open = Callable[[EngineName], Engine]
PROGRAM = """
import pathlib, random
p = pathlib.Path('{product}')
p.parent.mkdir(parents=True, exist_ok=True)
p.write_text(FROM + str(random.Random(SEED).random()))
"""
NEEDS = {
    "ray": pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'eugen3d[ray]'"),
    "slurm": pytest.mark.skipif(
        find_spec("submitit") is None
        or shutil.which("squeue") is None
        or subprocess.run(["squeue"], capture_output=True).returncode != 0,
        reason="needs a SLURM that runs, and submitit; tests/e2e/one_node_slurm.sh starts one",
    ),
}
ALONE = pytest.mark.xdist_group("engines")  # one at a time: each takes the machine for its own
ENGINES = ["local", *(pytest.param(name, marks=[mark, pytest.mark.slow, ALONE]) for name, mark in NEEDS.items())]


@pytest.fixture
def open_one(tmp_path: Path) -> Iterator[Open]:
    """A function that opens an engine, which is closed at the end."""
    opened: list[Engine] = []

    def opener(name: EngineName) -> Engine:
        opened.append(open_or_skip(name, Conditions(tmp_path / "out")))
        return opened[-1]

    yield opener
    for engine in opened:
        engine.close()


def open_or_skip(name: EngineName, conditions: Conditions) -> Engine:
    """An engine; where Ray cannot be started, as on a machine that is too busy for it, the test is skipped."""
    try:
        return open_engine(name, conditions)
    except UsageError as error:
        if name != "ray" or "cannot be started" not in str(error):
            raise
        pytest.skip(str(error))


def ignore(*_: object) -> None:
    pass


@pytest.mark.parametrize("name", ENGINES)
def test_four_jobs_leave_what_the_commands_leave_by_themselves(
    name: EngineName, make_job: MakeJob, open_one: Open
) -> None:
    jobs: list[Job] = []
    for number in range(3):
        jobs.append(make_job(f"job-{number}", PROGRAM.replace("SEED", str(number)).replace("FROM", "''")))
    source = f"open('{jobs[0].product}').read() + ' and '"
    jobs.append(make_job("job-3", PROGRAM.replace("SEED", "3").replace("FROM", source), jobs[0]))
    ends = run_jobs(jobs, open_one(name), 0, ignore)
    assert [ends[job.key].end for job in jobs] == ["done"] * 4, ends
    through_engine = [job.product.read_text() for job in jobs]
    for job in jobs:
        job.product.unlink()
    for job in jobs:
        subprocess.run(job.command, check=True)
    assert [job.product.read_text() for job in jobs] == through_engine
    assert len(set(through_engine)) == 4 and " and " in through_engine[3]


@pytest.mark.parametrize("name", ENGINES)
def test_a_failure_is_tried_again_and_reported_with_the_end_of_its_log(
    name: EngineName, make_job: MakeJob, open_one: Open
) -> None:
    failing = make_job("failing", "print('the reason'); raise SystemExit(4)")
    fine = make_job("fine", PROGRAM.replace("SEED", "0").replace("FROM", "''"))
    ends = run_jobs([failing, fine], open_one(name), 1, ignore)
    outcome = ends[failing.key]
    assert (outcome.end, outcome.reason, outcome.attempts) == ("failed", "exit code 4", 2)
    assert outcome.log_tail[-1] == "the reason" and log_path(failing).read_text().count("the reason\n") == 2
    assert ends[fine.key].is_done


@pytest.mark.parametrize("name", ENGINES)
def test_a_cancelled_job_ends(name: EngineName, make_job: MakeJob, open_one: Open) -> None:
    job = make_job("long", "import time; print('started', flush=True); time.sleep(600)")
    engine = open_one(name)
    handle = engine.submit(job)
    wait_for(lambda: log_path(job).exists() and "started\n" in log_path(job).read_text())
    assert handle.status().state == "running"
    handle.cancel()
    engine.close()
    lock_is_free = [sys.executable, "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"]
    subprocess.run([*lock_is_free, str(job.folder / "lock")], check=True, timeout=60)
    assert not (job.folder / "job.json").exists()


def test_one_job_runs_at_a_time_here(make_job: MakeJob, open_one: Open, tmp_path: Path) -> None:
    """Each notes when it begins and ends: they do not overlap."""
    notes = tmp_path / "notes"
    program = f"import time; f = open('{notes}', 'a', 1); f.write('(\\n'); time.sleep(0.1); f.write(')\\n')"
    run_jobs([make_job(name, program) for name in "abc"], open_one("local"), 0, ignore)
    assert notes.read_text().split() == ["(", ")"] * 3


def test_options_of_sbatch_are_for_slurm() -> None:
    with pytest.raises(UsageError, match="--slurm partition=gpu: is of no use with --engine local"):
        open_engine("local", Conditions(Path("out")), ("partition=gpu",))


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_is_one_line(name: EngineName, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"^--engine {name}: needs .*pip install 'eugen3d\[{name}\]'$"):
        open_engine(name, Conditions(Path("out")))


@pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit: pip install 'eugen3d[slurm]'")
def test_a_missing_slurm_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"^--engine slurm: found no sbatch"):
        open_engine("slurm", Conditions(tmp_path / "out"))


@pytest.mark.slow
@ALONE
@NEEDS["ray"]
def test_more_threads_than_ray_has_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--engine ray: its nodes have \d+ CPU, expected one with 100000 CPU"):
        open_or_skip("ray", Conditions(Path("out"), threads=100_000))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
