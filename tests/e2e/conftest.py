"""The real commands, started in a folder as a user would."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
Finish = Callable[[Any], str]


@pytest.fixture(scope="session")
def start(commands: Any) -> Start:
    """Start one of the commands, with its subcommand if it has one."""

    def begin(folder: Path, command: str, options: Mapping[str, object], is_new: bool = False) -> Any:
        words = command.split()
        for option, value in options.items():
            words += [option, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        (folder / "bin").mkdir(exist_ok=True)
        if shutil.which("ffmpeg") is None:  # looked for, but not called, where single images are rendered
            (folder / "bin" / "ffmpeg").write_text("#!/bin/sh\nexit 1\n")
            (folder / "bin" / "ffmpeg").chmod(0o755)
        path = {"PATH": f"{os.environ['PATH']}:{folder / 'bin'}"}
        return commands.start(words, folder, path, is_new=is_new, is_one_output=True)

    return begin


@pytest.fixture(scope="session")
def finish() -> Finish:
    """Wait for a command that has to succeed; what it printed."""

    def wait(process: Any) -> str:
        output, _ = process.communicate()
        assert process.returncode == 0, output[-6000:]
        return output

    return wait


@pytest.fixture(scope="session")
def run(start: Start, finish: Finish) -> Callable[..., str]:
    """The same in one: start a command and wait for it."""
    return lambda folder, command, options, is_new=False: finish(start(folder, command, options, is_new))
