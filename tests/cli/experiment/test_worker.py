"""One job's command: its record, its log, and what an earlier attempt left."""

import dataclasses
import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.worker import carry_out, is_done, log_path, read_seconds

MakeJob = Callable[..., Job]
WRITE = "import pathlib; p = pathlib.Path('{product}'); p.parent.mkdir(parents=True, exist_ok=True); p.write_text('x')"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_is_done_once_and_its_output_kept(make_job: MakeJob) -> None:
    job = make_job("a", f"{WRITE}; print('hello')")
    assert not is_done(job) and carry_out(job) == 0 and is_done(job)
    log = log_path(job).read_text()
    assert log.startswith(f"$ {sys.executable} -c ") and log.endswith("hello\n")
    record = json.loads((job.folder / "job.json").read_text())
    assert record["command"] == list(job.command) and record["fingerprint"] == "a"
    assert read_seconds(job) == (record["seconds"], record["cpu_seconds"])
    assert record["seconds"] > 0 and record["cpu_seconds"] > 0
    assert carry_out(job) == 0 and log_path(job).read_text() == log, "it was not run a second time"
    job.product.unlink()
    assert not is_done(job) and carry_out(job) == 0 and log_path(job).read_text() != log


def test_the_threads_of_a_job_are_those_that_it_is_given(make_job: MakeJob) -> None:
    job = make_job("a", "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']);" + WRITE)
    carry_out(dataclasses.replace(job, threads=3))
    assert log_path(job).read_text().endswith("3 3\n")


def test_a_failure_and_a_missing_product_leave_no_record(make_job: MakeJob) -> None:
    failing, lazy = make_job("failing", "print('why'); raise SystemExit(3)"), make_job("lazy", "print('all well')")
    assert carry_out(failing) == 3 and log_path(failing).read_text().endswith("why\n")
    assert carry_out(lazy) == 1 and "config.yml: is not complete" in log_path(lazy).read_text()
    assert not is_done(failing) and not is_done(lazy)


def test_a_job_that_took_several_attempts_has_no_time(make_job: MakeJob, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    program = f"import pathlib; f = pathlib.Path('{flag}'); there = f.exists(); f.touch(); assert there;{WRITE}"
    job = make_job("a", program)
    assert carry_out(job) == 1 and carry_out(job) == 0
    assert is_done(job) and read_seconds(job) == (None, None)


def test_a_product_without_a_record_counts_as_made(make_job: MakeJob) -> None:
    job = make_job("a", "raise SystemExit(3)")
    job.product.parent.mkdir(parents=True)
    job.product.write_text("made")
    assert carry_out(job) == 0 and is_done(job) and not log_path(job).exists()


def test_a_training_goes_on_from_its_last_whole_checkpoint(make_job: MakeJob) -> None:
    """nerfstudio writes config.yml first, ends with 0 where it is interrupted, and saves into the file's own place."""
    job = make_job("a", "import sys; print(*sys.argv[1:])", kind="train", steps=10)
    models = job.product.parent / "nerfstudio_models"
    models.mkdir(parents=True)
    job.product.write_text("config")
    torch.save({"step": 3}, models / "step-000000003.ckpt")
    whole = (models / "step-000000003.ckpt").read_bytes()
    (models / "step-000000006.ckpt").write_bytes(whole[: len(whole) // 2])
    assert carry_out(job) == 1
    assert f"--load-dir {models} --max-num-iterations 6\n" in log_path(job).read_text()
    assert not (models / "step-000000006.ckpt").exists()
    (models / "step-000000009.ckpt").write_bytes(whole)
    assert carry_out(job) == 0 and is_done(job)


def test_a_training_without_a_known_end_is_over_when_it_says_so(make_job: MakeJob, tmp_path: Path) -> None:
    """A stream is over when it is, not after so many steps."""
    end = tmp_path / "ended"
    job = make_job("a", "import sys; print(*sys.argv[1:])", kind="train", steps=10, end=end)
    models = job.product.parent / "nerfstudio_models"
    models.mkdir(parents=True)
    job.product.write_text("config")
    torch.save({"step": 20}, models / "step-000000020.ckpt")
    assert carry_out(job) == 1 and not is_done(job)
    assert log_path(job).read_text().splitlines()[1] == f"--load-dir {models}"
    end.touch()
    assert carry_out(job) == 0 and is_done(job)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["heeded", "ignored"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """How this process takes an interrupt: as any, or like one that a script started in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_a_command_that_is_told_to_stop_ends_in_its_own_way(make_job: MakeJob) -> None:
    program = (
        "import pathlib, time\nlog = pathlib.Path('{product}.log'); log.parent.mkdir()\ntry:\n"
        "    log.write_text('started'); time.sleep(60)\nexcept KeyboardInterrupt:\n    log.write_text('kept')\n"
        "    raise SystemExit(130)"
    )
    job, stop = make_job("a", program), threading.Event()
    kept = Path(f"{job.product}.log")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(carry_out(job, stop)))
    thread.start()
    wait_for(lambda: kept.exists() and kept.read_text() == "started")
    stop.set()
    thread.join(60)
    assert codes == [130] and kept.read_text() == "kept" and not is_done(job)


@pytest.mark.slow
def test_a_killed_worker_leaves_its_command_alone_with_the_job(make_job: MakeJob, tmp_path: Path) -> None:
    """The command lives on and holds the lock: a second worker waits for it instead of starting another."""
    starts, go = tmp_path / "starts", tmp_path / "go"
    program = (
        f"import pathlib, time\nopen('{starts}', 'a').write('x')\n"
        f"while not pathlib.Path('{go}').exists(): time.sleep(0.05)\n{WRITE}"
    )
    job = make_job("a", program)
    source = (
        "import pathlib, pickle, sys; from eugen3d.cli.experiment.worker import carry_out;"
        "carry_out(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))"
    )
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    worker = subprocess.Popen([sys.executable, "-c", source, str(tmp_path / "job.pickle")])
    wait_for(starts.exists)
    worker.send_signal(signal.SIGKILL)
    worker.wait(60)
    codes: list[int] = []
    second = threading.Thread(target=lambda: codes.append(carry_out(job)))
    second.start()
    second.join(1)
    assert second.is_alive() and not is_done(job)
    go.touch()
    second.join(60)
    assert codes == [0] and is_done(job) and starts.read_text() == "x"
