"""`eugen3d distill` in processes of its own: several at once, and killed in the middle."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eugen3d.layers import LayerConfig

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
Start = Callable[..., list[Any]]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eugen3d.cli.main"]
FLAGS = ("--num-features", "4", "--sampling.num-rays", "600", "--sampling.pair-fraction", "0.5")


@pytest.fixture
def teacher(make_run: Make) -> Path:
    """Three dense layers, of which the last two can be replaced."""
    return make_run("teacher", layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)


@pytest.fixture
def start(commands: Any, teacher: Path) -> Start:
    """A function that starts calls of the command: one for each rank, two of which share their work."""

    def begin(output: Path, *arguments: str, ranks: int = 1) -> list[Any]:
        words = ["eugen3d", "distill", "--load-config", str(teacher), "--output-dir", str(output), *FLAGS, *arguments]
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        variables = [shared | {"RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]
        return [commands.start(words, output.parent, variable) for variable in variables]

    return begin


def finish(processes: list[Any]) -> None:
    """Wait for calls that have to succeed."""
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def kill(processes: list[Any]) -> None:
    """End calls without a chance to tidy up."""
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


def wait_for(process: Any, partial: Path, reached: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until a call has written progress of that kind."""
    while not (partial.exists() and reached(torch.load(partial, weights_only=True))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def state_of(output: Path) -> dict[str, Tensor]:
    (checkpoint,) = (output / "nerfstudio_models").glob("*.ckpt")
    return torch.load(checkpoint, weights_only=True)["pipeline"]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_two_processes_come_to_the_student_of_one(start: Start, teacher: Path, tmp_path: Path) -> None:
    """The two are torchrun's."""
    one = start(tmp_path / "one")
    command = [*TORCHRUN, "distill", "--load-config", str(teacher), "--output-dir", str(tmp_path / "two"), *FLAGS]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    two = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("distilled layers") == 1, "the first process speaks alone"
    finish(one)
    ours, expected = state_of(tmp_path / "two"), state_of(tmp_path / "one")
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert any((ours[name] != state_of(teacher.parent).get(name, value)).any() for name, value in ours.items())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_call_goes_on_to_the_same_student(start: Start, tmp_path: Path, ranks: int) -> None:
    """Killed while layers are solved, and again while the student is refined."""
    arguments = "--fit-steps", "10", "--fit-sweeps", "1", "--refine-steps", "120", "--refine-num-rays", "64"
    finish(start(tmp_path / "whole", *arguments, ranks=ranks))
    output, partial = tmp_path / "student", tmp_path / "student.partial"
    first = start(output, *arguments, ranks=ranks)
    wait_for(first[0], partial, lambda saved: len(saved["done"]) >= 2)
    kill(first)
    assert torch.load(partial, weights_only=True)["refine"] is None, "it was killed while layers were solved"
    second = start(output, *arguments, ranks=ranks)
    wait_for(second[0], partial, lambda saved: saved["refine"] is not None)
    kill(second)
    assert torch.load(partial, weights_only=True)["refine"]["step"] < 120 and not output.exists()
    finish(start(output, *arguments, ranks=ranks))
    ours, expected = state_of(output), state_of(tmp_path / "whole")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    assert not partial.exists()


def test_what_ends_several_processes_is_said_once(start: Start, tmp_path: Path) -> None:
    """Each of them ends with exit code 2, and one says why."""
    processes = start(tmp_path / "student", "--layers", "trunk.7", ranks=2)
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert sum(line.startswith("error: ") for text in said for line in text.splitlines()) == 1


def test_a_process_that_is_lost_ends_the_others(start: Start, tmp_path: Path) -> None:
    first, second = start(tmp_path / "student", "--fit-steps", "100000", ranks=2)
    wait_for(first, tmp_path / "student.partial", lambda saved: bool(saved["done"]))
    kill([second])
    said = first.communicate()[1]
    assert first.returncode == 2
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "another process ended before its part was done" in line
