"""From an experiment's flags to the commands' arguments, checked by the commands' own parsers before anything runs."""

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro
from nerfstudio.engine.trainer import TrainerConfig

from eugen3d.cli.distill import Distill
from eugen3d.cli.errors import UsageError, first_line
from eugen3d.cli.methods import known_methods
from eugen3d.cli.plan import PlanCommand
from eugen3d.cli.score import Score

OWNED = {
    "train": (
        *("data", "output-dir", "experiment-name", "timestamp", "load-dir", "load-checkpoint", "load-config"),
        *("machine.device-type", "machine.seed", "vis", "logging.local-writer.enable", "logging.profiler"),
    ),
    "distill": ("load-config", "output-dir", "plan", "seed", "device"),
    "plan": ("load-config", "output-dir", "seed", "device"),
    "score": ("load-config", "names", "output", "report", "device", "threads"),
}
"""Flags that the experiment sets itself."""

Parsed = TypeVar("Parsed")


def to_arguments(command: str, flags: Mapping[str, Any]) -> list[str]:
    """Flags as a command's arguments: a list's items stand one after the other, a boolean as the command spells it.

    Args:
        command: train, distill, plan or score; `ns-train` writes booleans as values, the others as --flag, --no-flag.

    Raises:
        UsageError: a flag is the experiment's own; the message begins with the flag.
    """
    arguments = []
    for name, value in flags.items():
        if name in OWNED[command]:
            raise UsageError(f"{name}: is set by the experiment, expected it to be left out")
        if isinstance(value, bool) and command != "train":
            group, dot, last = name.rpartition(".")
            arguments.append(f"--{name}" if value else f"--{group}{dot}no-{last}")
        else:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def parse_train(method: str, arguments: list[str]) -> TrainerConfig:
    """The configuration that `ns-train` would train with, or a `UsageError`."""
    methods = known_methods()
    if method not in methods:
        raise UsageError(f"the method {method!r} is unknown, expected one that ns-train lists")
    kind = tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[TrainerConfig]]
    return _parse(kind, arguments, default=copy.deepcopy(methods[method]))


def parse_distill(arguments: list[str]) -> Distill:
    """The settings of `eugen3d distill`, or a `UsageError`; input and output are the experiment's own."""
    return _parse(Distill, ["--load-config", "teacher", "--output-dir", "student", *arguments])


def parse_plan(arguments: list[str]) -> PlanCommand:
    """The settings of `eugen3d plan`, or a `UsageError`; input and output are the experiment's own."""
    settings = _parse(PlanCommand, ["--load-config", "teacher", "--output-dir", "plan", *arguments])
    settings.check()
    return settings


def parse_score(arguments: list[str]) -> Score:
    """The settings of `eugen3d score`, or a `UsageError`."""
    settings = _parse(Score, ["--load-config", str(Path("run") / "config.yml"), *arguments])
    settings.check()
    return settings


def _parse(kind: type[Parsed], arguments: list[str], **defaults: Any) -> Parsed:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nerfstudio's union of dataparsers does not name those of plugins
            return tyro.cli(kind, args=arguments, **defaults)
    except SystemExit:
        raise UsageError(_problem(errors.getvalue())) from None
    except ValueError as error:
        raise UsageError(first_line(error)) from None


def _problem(message: str) -> str:
    """What tyro found, on one line: the paragraph below its heading, without the frame and the help around it."""
    text = re.sub(r"[─-╿]", "-", message)
    paragraphs = [re.sub(r"^[\s|-]+|[\s|-]+$", "", part) for part in re.split(r"-{8,}", text)]
    found = [part for part in paragraphs if part]
    problem = found[1] if len(found) > 1 else found[0] if found else "cannot be parsed"
    return re.sub(r"[\s|]*\n[\s|]*", " ", problem)
