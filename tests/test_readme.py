"""The README's Python runs as it stands there, and the flags of its commands exist."""

import contextlib
import io
import re
import shlex
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

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
    """The help of a command, unwrapped: tyro breaks long flags in two. It is asked here, which is quicker."""
    (command,) = entry_points(group="console_scripts", name=names[0])
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "400")
        patch.setattr(sys, "argv", [*names, "--help"])
        with pytest.raises(SystemExit, match="0"):
            command.load()()
    return printed.getvalue()


def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_blocks = blocks("python")
    assert python_blocks, "README.md has no python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(python_blocks):
        exec(compile(block, f"README.md, python block {number}", "exec"), namespace)
    assert any(name in namespace for name in ("eugen3d", "EUGenLinear", "convert", "fold")), "they show the library"


@pytest.mark.slow
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_have_the_flags_that_the_readme_gives_them(words: list[str]) -> None:
    names = subcommand(words)
    known = set(re.findall(r"--[a-z0-9][\w.-]*", help_of(*names)))
    used = {word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    unknown = sorted(used - known - {"--help"})
    assert not unknown, f"`{' '.join(names)} --help` knows no {', '.join(unknown)}"
