"""The README's Python runs as it stands there, and the flags of its commands exist."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from eugen3d.cli.main import main

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
COMMANDS = {"eugen3d", "ns-train", "ns-eval", "ns-render", "ns-export", "ns-viewer"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The README's calls of our commands, without environment variables and shell syntax around them."""
    calls = []
    for block in blocks("(?:bash|sh|shell|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\|?|;", line):
                words = shlex.split(part.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words and words[0] in COMMANDS:
                    calls.append(words)
    return calls


def subcommand(words: list[str]) -> list[str]:
    """The command and the subcommands before its first flag."""
    names = [words[0]]
    for word in words[1:]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", word):
            break
        names.append(word)
    return names


@cache
def help_of(*names: str) -> str:
    """The help of a command, unwrapped: tyro breaks long flags in two. Ours are asked here, which is quicker."""
    if names[0] == "eugen3d":
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setenv("COLUMNS", "400")
            with pytest.raises(SystemExit, match="0"):
                main([*names[1:], "--help"])
        return printed.getvalue()
    executable = Path(sys.executable).parent / names[0]
    environment = {"COLUMNS": "400", "PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(
        [executable, *names[1:], "--help"], capture_output=True, text=True, env=environment, cwd=PROJECT, timeout=600
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_blocks = blocks("python")
    assert python_blocks, "README.md has no python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(python_blocks):
        exec(compile(block, f"README.md, python block {number}", "exec"), namespace)
    assert any(name in namespace for name in ("eugen3d", "EUGenLinear", "convert", "fold")), "they show the library"


@pytest.mark.slow
@pytest.mark.xdist_group("readme")  # one process, which asks each command once
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_have_the_flags_that_the_readme_gives_them(words: list[str]) -> None:
    names = subcommand(words)
    known = set(re.findall(r"--[a-z0-9][\w.-]*", help_of(*names)))
    used = {word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    unknown = sorted(used - known - {"--help"})
    assert not unknown, f"`{' '.join(names)} --help` knows no {', '.join(unknown)}"
