"""The `eugen3d` command: picks the subcommand and turns what goes wrong into one line and an exit code."""

import errno
import sys

import torch
import tyro
from rich.console import Console

from eugen3d.cli.bake import Bake
from eugen3d.cli.bench import bench
from eugen3d.cli.compress import Compress
from eugen3d.cli.decode import Decode
from eugen3d.cli.distill import Distill
from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.experiment.command import Experiment
from eugen3d.cli.export_mesh import ExportMesh
from eugen3d.cli.plan import PlanCommand
from eugen3d.cli.query import Query
from eugen3d.cli.score import Score
from eugen3d.datasets import SceneError
from eugen3d.runtime import keep_freed_memory
from eugen3d.training.distributed import ProcessLostError, has_the_word

COMMANDS = {
    "bake": Bake,
    "bench": bench,
    "compress": Compress,
    "decode": Decode,
    "distill": Distill,
    "experiment": Experiment,
    "export-mesh": ExportMesh,
    "plan": PlanCommand,
    "query": Query,
    "score": Score,
}


def main(args: list[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        args: its name and arguments; by default those that the process was started with.

    Exit codes: 0 done, 1 a job of an experiment failed, 2 input that cannot be used or a file that cannot be written,
    130 interrupted. Of several processes that end together one says why.
    """
    keep_freed_memory()
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="eugen3d", description="Smaller and faster neural fields.", args=args
        )
        command.main()
    except (UsageError, SceneError) as error:
        _stop(first_line(error), 2)
    except ProcessLostError as error:
        _stop(f"{first_line(error)}; the same command goes on from what is done", 2)
    except OSError as error:
        _stop(_describe(error), 2)
    except torch.OutOfMemoryError as error:
        _stop(f"out of memory on the device: {first_line(error)}", 2)
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on from what is done", 130)


def _describe(error: OSError) -> str:
    file = "a file" if error.filename is None else str(error.filename)
    reason = error.strerror or first_line(error)
    if error.errno == errno.ENOSPC:
        reason = "the disk is full, expected room to write"
    return f"{file}: {reason[:1].lower()}{reason[1:]}"


def _stop(message: str, code: int) -> None:
    if has_the_word():
        Console(stderr=True, highlight=False).print(f"error: {message}", soft_wrap=True, markup=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
