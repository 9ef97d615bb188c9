"""`eugen3d distill` in processes of its own: several at once, and killed in the middle."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from eugen3d.layers import LayerConfig

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
MODULE = ["-m", "eugen3d.cli.main"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FLAGS = ("--num-features", "4", "--sampling.num-rays", "600", "--sampling.pair-fraction", "0.5")


@pytest.fixture
def teacher(make_run: Make) -> Path:
    """Three dense layers, of which the last two can be replaced."""
    return make_run("teacher", layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)


def start(launcher: list[str], teacher: Path, output: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A call of the command."""
    command = [sys.executable, *launcher, "distill", "--load-config", str(teacher), "--output-dir", str(output)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [*command, *FLAGS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a call that has to succeed; what it printed."""
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def kill(process: subprocess.Popen[str]) -> None:
    """End a call and all that it started, torchrun's workers too, without a chance to tidy up."""
    parent = psutil.Process(process.pid)
    for one in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def wait_for(process: subprocess.Popen[str], partial: Path, reached: Callable[[dict[str, Any]], bool]) -> None:
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


def test_two_processes_come_to_the_student_of_one(teacher: Path, tmp_path: Path) -> None:
    one = start(MODULE, teacher, tmp_path / "one")
    two = start([*TORCHRUN, *MODULE], teacher, tmp_path / "two")
    finish(one)
    assert finish(two).count("distilled layers") == 1, "the first process speaks alone"
    ours, expected = state_of(tmp_path / "two"), state_of(tmp_path / "one")
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert any((ours[name] != state_of(teacher.parent).get(name, value)).any() for name, value in ours.items())


@pytest.mark.parametrize("launcher", [MODULE, [*TORCHRUN, *MODULE]], ids=["one", "two"])
def test_a_killed_call_goes_on_to_the_same_student(teacher: Path, tmp_path: Path, launcher: list[str]) -> None:
    """Killed while layers are solved, and again while the student is refined."""
    arguments = "--fit-steps", "30", "--fit-sweeps", "1", "--refine-steps", "200", "--refine-num-rays", "64"
    finish(start(launcher, teacher, tmp_path / "whole", *arguments))
    output, partial = tmp_path / "student", tmp_path / "student.partial"
    first = start(launcher, teacher, output, *arguments)
    wait_for(first, partial, lambda saved: len(saved["done"]) >= 2)
    kill(first)
    assert torch.load(partial, weights_only=True)["refine"] is None, "it was killed while layers were solved"
    second = start(launcher, teacher, output, *arguments)
    wait_for(second, partial, lambda saved: saved["refine"] is not None)
    kill(second)
    assert torch.load(partial, weights_only=True)["refine"]["step"] < 200 and not output.exists()
    finish(start(launcher, teacher, output, *arguments))
    ours, expected = state_of(output), state_of(tmp_path / "whole")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)
    assert not partial.exists()


def test_what_ends_several_processes_is_said_once(teacher: Path, tmp_path: Path) -> None:
    """Each of them ends with exit code 2, and one says why."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        start(MODULE, teacher, tmp_path / "student", "--layers", "trunk.7", RANK=str(rank), **shared) for rank in (0, 1)
    ]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert sum(line.startswith("error: ") for text in said for line in text.splitlines()) == 1


def test_a_process_that_is_lost_ends_the_others(teacher: Path, tmp_path: Path) -> None:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    arguments = "--fit-steps", "100000"
    processes = [start(MODULE, teacher, tmp_path / "student", *arguments, RANK=str(rank), **shared) for rank in (0, 1)]
    wait_for(processes[0], tmp_path / "student.partial", lambda saved: bool(saved["done"]))
    kill(processes[1])
    said = processes[0].communicate()[1]
    assert processes[0].returncode == 2
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "another process ended before its part was done" in line
