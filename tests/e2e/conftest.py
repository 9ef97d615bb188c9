"""The real commands, started in a folder as a user would."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Start = Callable[[Path, str, Mapping[str, object]], subprocess.Popen[str]]
Finish = Callable[[subprocess.Popen[str]], str]


@pytest.fixture(scope="session")
def start() -> Start:
    """Start one of the commands, with its subcommand if it has one."""

    def begin(folder: Path, command: str, options: Mapping[str, object]) -> subprocess.Popen[str]:
        name, *arguments = command.split()
        for option, value in options.items():
            arguments += [option, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        (folder / "bin").mkdir(exist_ok=True)
        if shutil.which("ffmpeg") is None:  # looked for, but not called, where single images are rendered
            (folder / "bin" / "ffmpeg").write_text("#!/bin/sh\nexit 1\n")
            (folder / "bin" / "ffmpeg").chmod(0o755)
        return subprocess.Popen(
            [Path(sys.executable).parent / name, *arguments],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{os.environ['PATH']}:{folder / 'bin'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return begin


@pytest.fixture(scope="session")
def finish() -> Finish:
    """Wait for a command that has to succeed; what it printed."""

    def wait(process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-6000:]
        return output

    return wait


@pytest.fixture(scope="session")
def run(start: Start, finish: Finish) -> Callable[[Path, str, Mapping[str, object]], str]:
    """The same in one: start a command and wait for it."""
    return lambda folder, command, options: finish(start(folder, command, options))
