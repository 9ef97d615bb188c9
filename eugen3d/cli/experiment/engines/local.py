"""Jobs on this machine, one after the other."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from eugen3d.cli.errors import first_line
from eugen3d.cli.experiment.engines.engine import Status
from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.worker import carry_out


class LocalEngine:
    """A queue with one worker, which waits for one command at a time."""

    poll_seconds = 0.1

    def __init__(self) -> None:
        self._queue = ThreadPoolExecutor(max_workers=1)

    def submit(self, job: Job) -> "LocalHandle":
        """Put a job at the end of the queue."""
        stop = threading.Event()
        return LocalHandle(self._queue.submit(carry_out, job, stop), stop)

    def close(self) -> None:
        """Wait for the command that runs."""
        self._queue.shutdown(wait=True, cancel_futures=True)


class LocalHandle:
    """A place in the queue."""

    def __init__(self, future: Future[int], stop: threading.Event) -> None:
        self._future, self._stop = future, stop

    def status(self) -> Status:
        """Where it stands now."""
        if not self._future.done():
            return Status("running" if self._future.running() else "waiting")
        error = self._future.exception()
        return Status.of_exit(self._future.result()) if error is None else Status("failed", first_line(error))

    def cancel(self) -> None:
        """Interrupt the command, or take it from the queue."""
        self._future.cancel()
        self._stop.set()
