"""`eugen3d experiment`: the runs of a YAML file, made and compared on this machine or a cluster."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from tyro.conf import Positional

from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.engines import Engine, EngineName, open_engine
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.jobs import check_score_flags, make_jobs, make_score_job
from eugen3d.cli.experiment.result import describe_failures, describe_score, make_rows, read_score, summarize
from eugen3d.cli.experiment.schedule import Outcome, Phase, run_jobs
from eugen3d.cli.experiment.specification import Specification, read_specification
from eugen3d.cli.experiment.view import describe_failure, remarks, table, write_experiment_page
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import resolve_device

Outcomes = dict[tuple[str, str], Outcome]


@dataclass
class Experiment:
    """Train, distil and score what a YAML file lists; called again, it goes on from what is done."""

    file: Positional[Path]
    """The experiment, such as configs/smoke.yaml."""
    engine: EngineName = "local"
    """local: one job after the other; slurm: a cluster by submitit; ray: this machine, or the cluster that RAY_ADDRESS
    names. Nodes share this folder and this Python environment."""
    slurm: tuple[str, ...] = ()
    """NAME=VALUE options of sbatch, such as partition=gpu time=02:00:00."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Threads of each job on a CPU; ray and slurm run as many jobs at once as there are processors for."""
    device: str = "cpu"
    """cpu or cuda; with cuda each job has a GPU to itself."""
    retries: int = 1
    """How often a job that fails is tried again."""
    output_dir: Path | None = None
    """Folder for runs, logs, result.json and report.html; by default outputs/ and the file's name."""
    output: Path | None = None
    """A further place for the result, such as configs/results/smoke.json."""

    def main(self) -> None:
        """Run the command; it exits with 1 where a job failed."""
        self.check()
        specification = read_specification(self.file)
        output_dir = self.output_dir or Path("outputs") / self.file.stem
        conditions = Conditions(output_dir, self.device, self.threads)
        check_score_flags(specification)
        jobs = make_jobs(specification, conditions)
        # What ends this ends the jobs, too, also where a background shell has SIGINT ignored.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        engine = open_engine(self.engine, conditions, self.slurm)
        console = Console(highlight=False)
        try:
            outcomes, scores = self._run(specification, jobs, conditions, engine, console)
        finally:
            engine.close()
        result = self._result(specification, outcomes, scores)
        pages = {outcome.job.scene: outcome.job.folder / "report.html" for outcome in scores if outcome.is_done}
        for path in filter(None, (output_dir / "result.json", self.output)):
            write_whole(path, json.dumps(result, indent=2) + "\n")
        write_experiment_page(output_dir / "report.html", result, pages)
        self._show(result, output_dir, console)
        if result["failures"]:
            sys.exit(1)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is read."""
        resolve_device(self.device)
        for flag, value, least in (("threads", self.threads, 1), ("retries", self.retries, 0)):
            if value < least:
                raise UsageError(f"--{flag} {value}: expected at least {least}")
        if self.output_dir and self.output_dir.exists() and not self.output_dir.is_dir():
            raise UsageError(f"--output-dir {self.output_dir}: is a file, expected a folder")
        if self.output and self.output.is_dir():
            raise UsageError(f"--output {self.output}: is a folder, expected a file's name")

    def _run(
        self,
        specification: Specification,
        jobs: Sequence[Job],
        conditions: Conditions,
        engine: Engine,
        console: Console,
    ) -> tuple[list[Outcome], list[Outcome]]:
        """Make all runs, then compare those of each scene; the ends of both."""
        with progress_bar(console) as bar:
            outcomes = run_jobs(jobs, engine, self.retries, _Reporter(bar, "runs", jobs))
            score_jobs, unscored = [], []
            for scene in specification.scenes:
                own = [o for o in outcomes.values() if o.job.scene == scene and o.job.kind != "plan"]
                missing = [o for o in own if o.job.group == specification.compare_with and not o.is_done]
                runs = [outcome.job for outcome in own if missing or outcome.is_done]
                score_job = make_score_job(specification, runs, conditions)
                if missing:
                    unscored.append(Outcome(score_job, "not run", f"{missing[0].job.name} is missing"))
                else:
                    score_jobs.append(score_job)
            scores = run_jobs(score_jobs, engine, self.retries, _Reporter(bar, "scores", score_jobs))
        return list(outcomes.values()), [*scores.values(), *unscored]

    def _result(
        self, specification: Specification, outcomes: Sequence[Outcome], scores: Sequence[Outcome]
    ) -> dict[str, Any]:
        device = torch.device(self.device)
        rows, costs, devices, found = [], [], [], versions(device)
        for outcome in scores:
            if outcome.is_done:
                runs = {o.job.name: o.job for o in outcomes if o.job.scene == outcome.job.scene}
                score = read_score(outcome.job)
                rows += make_rows(specification, runs, score)
                costs.append(describe_score(outcome.job))
                devices.append(score["device"])
                found = score["versions"]
        return {
            "device": "; ".join(dict.fromkeys(devices)) or device_name(device),
            "versions": found,
            "date": now(),
            "rows": rows,
            "summary": summarize(specification, rows),
            "scores": costs,
            "failures": describe_failures([*outcomes, *scores]),
            "settings": {
                "name": specification.path.stem,
                "compare_with": specification.compare_with,
                "engine": self.engine,
                "threads": self.threads,
                "device": self.device,
                "retries": self.retries,
                "experiment": specification.raw,
            },
        }

    def _show(self, result: dict[str, Any], output_dir: Path, console: Console) -> None:
        if result["summary"]:
            console.print(table(result))
        for note in remarks(result):
            console.print(note, soft_wrap=True, markup=False)
        for failure in result["failures"]:
            for line in describe_failure(failure):
                console.print(line, style="red", soft_wrap=True, markup=False)
        for path in filter(None, (output_dir / "result.json", output_dir / "report.html", self.output)):
            console.print(f"wrote {path}", soft_wrap=True, markup=False)


class _Reporter:
    """A line for every step of a job, and a bar of the jobs that have ended."""

    def __init__(self, bar: Progress, title: str, jobs: Sequence[Job]) -> None:
        self._bar, self._started = bar, dict[tuple[str, str], float]()
        self._task = bar.add_task(title, total=len(jobs))

    def __call__(self, job: Job, phase: Phase, reason: str) -> None:
        if phase in ("submitted", "running"):
            self._started[job.key] = time.monotonic()
        if phase in ("done", "found", "failed", "not run"):
            self._bar.advance(self._task)
        if job.kind == "given" or phase == "submitted":
            return
        text = {"again": "failed, is tried again", "found": "done by an earlier call"}.get(phase, phase)
        if phase == "done":
            text = f"done after {time.monotonic() - self._started[job.key]:.0f} s"
        why = f" ({reason})" if reason else ""
        self._bar.console.print(f"{job.scene}/{job.name}: {text}{why}", soft_wrap=True, markup=False)
