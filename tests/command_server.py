"""A process that has imported what the commands import, and runs each of them in a fork of its own.

A request is a line of JSON: the words of an installed command with its folder, environment and files, or a process to
ask after. So is the answer: the process, or its exit code, null while it runs.
"""

import json
import os
import sys
from importlib.metadata import entry_points
from typing import Any

import nerfstudio.scripts.eval
import nerfstudio.scripts.render
import nerfstudio.scripts.train  # noqa: F401
import numpy as np

import eugen3d.cli.main  # noqa: F401


def serve() -> dict[str, Any]:
    """Answer requests until there are no more; in a new process, return the one that it is there for."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        while line := sys.stdin.readline():
            request = json.loads(line)
            if "poll" in request:
                pid, status = os.waitpid(request["poll"], os.WNOHANG)
                print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), file=answers)
            elif pid := os.fork():
                print(pid, file=answers)
            else:
                return request
    sys.exit()


def run(words: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Become the command, with a random state of its own as a new interpreter has."""
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()
    sys.argv = words
    (command,) = entry_points(group="console_scripts", name=words[0])
    sys.exit(command.load()())


if __name__ == "__main__":
    run(**serve())
