"""What an engine runs, wherever that is: one job's command, from where an earlier attempt left it to its end."""

import contextlib
import fcntl
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from eugen3d.cli.conditions import now
from eugen3d.cli.experiment.job import Job
from eugen3d.cli.files import write_whole

INTERRUPTED = 130
PATIENCE = 30.0  # seconds that an interrupted command has to keep what it has done

# Ray's workers and what a script puts into the background ignore SIGINT, and so would a command that they start; reset
# by a process of its own, as subprocess's preexec_fn is not safe where there are threads.
_INTERRUPTIBLE = (
    *(sys.executable, "-I", "-S", "-c"),
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)


def carry_out(job: Job, stop: threading.Event | None = None) -> int:
    """Run a job unless it is done, and keep a record of it; what it prints goes to `log.txt` in its folder.

    Args:
        stop: once set, the command is interrupted, as Ctrl-C would.

    Returns:
        The command's exit code.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with _locked(job.folder / "lock", stop) as lock:
        if lock is None:
            return INTERRUPTED
        if is_done(job):
            return 0
        if _is_complete(job):  # only the record was still to be written
            _record(job, None, None)
            return 0
        is_first = not log_path(job).exists()
        command = _command(job)
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        with log_path(job).open("ab", buffering=0) as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            # the lock goes with the command: it outlives a worker that is killed, and then nobody starts a second one
            process = subprocess.Popen(
                [*_INTERRUPTIBLE, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(job),
                pass_fds=(lock,),
                start_new_session=True,
            )
            code = _wait(process, stop)
            if code == 0 and not _is_complete(job):  # as nerfstudio ends where it is interrupted
                log.write(f"error: {job.product}: is not complete, expected the command to complete it\n".encode())
                code = 1
        if code == 0:
            spent = (time.perf_counter() - start, _cpu_seconds() - cpu_start) if is_first else (None, None)
            _record(job, *spent)
    return code


def carry_out_in(folder: Path, job: Job) -> int:
    """Carry out a job in the folder that its paths are relative to."""
    os.chdir(folder)
    return carry_out(job)


def is_done(job: Job) -> bool:
    """Whether an earlier call finished the job."""
    return job.kind == "given" or (_record_path(job).exists() and job.product.exists())


def read_seconds(job: Job) -> tuple[float | None, float | None]:
    """How long a finished job took, and for how long it kept a core busy; None where it was not done in one go."""
    if job.kind == "given":
        return None, None
    record = json.loads(_record_path(job).read_text())
    return record["seconds"], record["cpu_seconds"]


def log_path(job: Job) -> Path:
    """Where what the command prints is kept."""
    return job.folder / "log.txt"


def _is_complete(job: Job) -> bool:
    """Whether all of the product is there; a training writes its config.yml first, a distillation appears whole."""
    if job.kind != "train" or not job.product.exists():
        return job.product.exists()
    return _steps_done(job) >= job.steps if job.end is None else job.end.exists()


def _steps_done(job: Job) -> int:
    """How many steps a training's last checkpoint has seen; a part of one, left by a writer that died, is removed."""
    for checkpoint in sorted(_models(job).glob("step-*.ckpt"), reverse=True):
        if zipfile.is_zipfile(checkpoint):
            return int(checkpoint.stem.removeprefix("step-")) + 1
        checkpoint.unlink()
    return 0


def _models(job: Job) -> Path:
    return job.product.parent / "nerfstudio_models"


def _command(job: Job) -> list[str]:
    if job.kind != "train" or not (done := _steps_done(job)):
        return list(job.command)
    command = [*job.command, "--load-dir", str(_models(job))]
    # nerfstudio counts the steps from the checkpoint; the last of two equal flags holds
    return command if job.end else [*command, "--max-num-iterations", str(job.steps - done)]


def _environment(job: Job) -> dict[str, str]:
    threads = str(job.threads)
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "COLUMNS": "120"}


def _wait(process: subprocess.Popen[bytes], stop: threading.Event | None) -> int:
    """The exit code of a command; what ends this process or sets `stop` interrupts the command."""
    try:
        while (code := process.poll()) is None:
            if stop is not None and stop.is_set():
                _interrupt(process)
                return INTERRUPTED
            time.sleep(0.1)
    except BaseException:  # a signal of the engine, at the end of the time that it allows for instance
        _interrupt(process)
        raise
    return code


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _cpu_seconds() -> float:
    """What the processes that this one waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _record_path(job: Job) -> Path:
    return job.folder / "job.json"


def _record(job: Job, seconds: float | None, cpu_seconds: float | None) -> None:
    content = {
        "scene": job.scene,
        "name": job.name,
        "kind": job.kind,
        "command": job.command,
        "fingerprint": job.fingerprint,
        "threads": job.threads,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "host": os.uname().nodename,
        "date": now(),
    }
    write_whole(_record_path(job), json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def _locked(path: Path, stop: threading.Event | None) -> Iterator[int | None]:
    """Hold a file's lock, waiting while another process holds it; gives its descriptor, or None once told to stop."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while not _take(descriptor):
            if stop is not None and stop.is_set():
                yield None
                return
            time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
