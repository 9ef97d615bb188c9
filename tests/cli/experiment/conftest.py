"""Jobs whose commands are small programs, and experiments in files."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eugen3d.cli.experiment.job import Job

MakeJob = Callable[..., Job]
Write = Callable[..., Path]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A function that makes a job of a Python program; `{product}` in it is the file that it has to write."""

    def make(name: str, program: str, source: Job | None = None, kind: str = "distill", **more: Any) -> Job:
        folder = tmp_path / "jobs" / name
        product = folder / "run" / "config.yml"
        command = (sys.executable, "-c", program.replace("{product}", str(product)))
        return Job(
            *("disc", name, name, kind, command, folder, product, name),  # type: ignore[arg-type]
            input=source,
            **more,
        )

    return make


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that writes an experiment's file, of text or of content; the working folder has `scene` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene").mkdir()

    def make(content: str | dict[str, Any]) -> Path:
        Path("try.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return Path("try.yaml")

    return make
