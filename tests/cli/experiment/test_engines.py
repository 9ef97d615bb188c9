"""Four jobs, one of which needs another, through every engine: the same files. Ray and SLURM where they are."""

import contextlib
import os
import re
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
PROGRAM = """
import pathlib, random
p = pathlib.Path('{product}')
p.parent.mkdir(parents=True, exist_ok=True)
p.write_text(FROM + str(random.Random(SEED).random()))
"""
REFUSED = """
from pathlib import Path
import ray
from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.engines import open_engine
from eugen3d.cli.experiment.job import Conditions
try:
    open_engine("ray", Conditions(Path("out"), threads=100_000))
except UsageError as error:
    print(error)
print(ray.is_initialized())
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


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Each of the engines, opened once: Ray takes half a minute for that."""
    opened = open_or_skip(request.param, Conditions(tmp_path_factory.mktemp("out")))
    yield opened
    opened.close()


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


def test_four_jobs_leave_what_the_commands_leave_by_themselves(engine: Engine, make_job: MakeJob) -> None:
    jobs: list[Job] = []
    for number in range(3):
        jobs.append(make_job(f"job-{number}", PROGRAM.replace("SEED", str(number)).replace("FROM", "''")))
    source = f"open('{jobs[0].product}').read() + ' and '"
    jobs.append(make_job("job-3", PROGRAM.replace("SEED", "3").replace("FROM", source), jobs[0]))
    ends = run_jobs(jobs, engine, 0, ignore)
    assert [ends[job.key].end for job in jobs] == ["done"] * 4, ends
    through_engine = [job.product.read_text() for job in jobs]
    for job in jobs:
        job.product.unlink()
    for job in jobs:
        subprocess.run(job.command, check=True)
    assert [job.product.read_text() for job in jobs] == through_engine
    assert len(set(through_engine)) == 4 and " and " in through_engine[3]


def test_a_failure_is_tried_again_and_reported_with_the_end_of_its_log(engine: Engine, make_job: MakeJob) -> None:
    failing = make_job("failing", "print('the reason'); raise SystemExit(4)")
    fine = make_job("fine", PROGRAM.replace("SEED", "0").replace("FROM", "''"))
    ends = run_jobs([failing, fine], engine, 1, ignore)
    outcome = ends[failing.key]
    assert (outcome.end, outcome.reason, outcome.attempts) == ("failed", "exit code 4", 2)
    assert outcome.log_tail[-1] == "the reason" and log_path(failing).read_text().count("the reason\n") == 2
    assert ends[fine.key].is_done


@pytest.mark.parametrize("engine", [pytest.param("ray", marks=[NEEDS["ray"], pytest.mark.slow, ALONE])], indirect=True)
@pytest.mark.usefixtures("engine")
def test_more_threads_than_ray_has_are_refused() -> None:
    """By a second call, on the cluster that runs."""
    ray = pytest.importorskip("ray")
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    refused = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, env=environment)
    assert refused.returncode == 0, refused.stderr
    said, is_connected = refused.stdout.splitlines()
    assert re.match(r"--engine ray: its nodes have \d+ CPU, expected one with 100000 CPU", said)
    assert is_connected == "False"


def test_a_cancelled_job_ends(engine: Engine, make_job: MakeJob) -> None:
    """The last of an engine's tests, since it closes it."""
    job = make_job("long", "import time; print('started', flush=True); time.sleep(600)")
    handle = engine.submit(job)
    wait_for(lambda: log_path(job).exists() and "started\n" in log_path(job).read_text())
    assert handle.status().state == "running"
    handle.cancel()
    engine.close()
    lock_is_free = [sys.executable, "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"]
    subprocess.run([*lock_is_free, str(job.folder / "lock")], check=True, timeout=60)
    assert not (job.folder / "job.json").exists()


def test_one_job_runs_at_a_time_here(make_job: MakeJob, tmp_path: Path) -> None:
    """Each notes when it begins and ends: they do not overlap."""
    notes = tmp_path / "notes"
    program = f"import time; f = open('{notes}', 'a', 1); f.write('(\\n'); time.sleep(0.1); f.write(')\\n')"
    with contextlib.closing(open_engine("local", Conditions(tmp_path / "out"))) as engine:
        run_jobs([make_job(name, program) for name in "abc"], engine, 0, ignore)
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


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
