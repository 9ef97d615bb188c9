"""An experiment's jobs: its file spelled out into commands, in the order that they need each other."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eugen3d.cli.config_file import read_config
from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.flags import parse_distill, parse_plan, parse_score, parse_train, to_arguments
from eugen3d.cli.experiment.job import Conditions, Job, Kind
from eugen3d.cli.experiment.specification import TEACHER, Flags, Scene, Specification
from eugen3d.cli.renders import file_hash, fingerprint
from eugen3d.cli.runs import find_checkpoint, load_config
from eugen3d.cli.sdf_runs import is_sdf_run
from eugen3d.cli.siren_runs import is_siren_run
from eugen3d.models.isdf_pipeline import SdfTrainerConfig
from eugen3d.models.whole_checkpoints import ENDED

EUGEN3D = (sys.executable, "-m", "eugen3d.cli.main")
NS_TRAIN = (sys.executable, "-m", "nerfstudio.scripts.train")


def make_jobs(specification: Specification, conditions: Conditions) -> list[Job]:
    """All runs and plans of all scenes, inputs before what starts from them; a given teacher is a job that is done.

    Raises:
        UsageError: a flag, a teacher or an order of jobs that cannot be; the message names file and key.
    """
    order = _ordered(specification)
    jobs = []
    for scene in specification.scenes:
        made: dict[str, list[Job]] = {}
        if specification.scenes[scene].teacher:
            made[TEACHER] = [_given(specification, scene, conditions)]
        for name in order:
            made[name] = list(_expand(specification, scene, name, made, conditions))
        own = list(itertools.chain(*made.values()))
        for job in own:
            if [other.name for other in own].count(job.name) > 1:
                raise UsageError(f"{specification.path}: jobs: two are called {job.name}, expected names that differ")
        groups = dict.fromkeys(job.group for job in own if job.kind != "plan")
        if specification.compare_with not in groups:
            raise UsageError(
                f"{specification.path}: compare-with: found {specification.compare_with!r}, expected one of "
                f"{', '.join(groups)}"
            )
        jobs += own
    return jobs


def make_score_job(specification: Specification, runs: Sequence[Job], conditions: Conditions) -> Job:
    """The comparison of a scene's runs, the one that the others are compared with first.

    Raises:
        UsageError: a flag of the score cannot be used; the message names file and key.
    """
    runs = sorted(runs, key=lambda run: run.group != specification.compare_with)
    scene = runs[0].scene
    flags = _checked_score_flags(specification)
    shared = ("--device", conditions.device, "--threads", str(conditions.threads))
    key = fingerprint([flags, shared, [[run.name, run.fingerprint] for run in runs]])
    folder = conditions.output_dir / scene / f"score-{key[:8]}"
    output = ("--output", str(folder / "score.json"), "--report", str(folder / "report.html"))
    named = ("--names", *(run.name for run in runs), "--load-config", *(str(run.product) for run in runs))
    command = (*EUGEN3D, "score", *flags, *shared, *output, *named)
    product = folder / "score.json"
    return Job(
        *(scene, "score", "score", "score", command, folder, product, key),
        threads=conditions.threads,
        device=conditions.device,
    )


def check_score_flags(specification: Specification) -> None:
    """Refuse flags that `eugen3d score` would refuse."""
    _checked_score_flags(specification)


def _checked_score_flags(specification: Specification) -> list[str]:
    try:
        flags = to_arguments("score", specification.score)
        parse_score(flags)
    except UsageError as error:
        raise UsageError(f"{specification.path}: score: {error}") from None
    return flags


def _ordered(specification: Specification) -> list[str]:
    """The names of the file's jobs, each after the one that it starts from."""
    ordered: list[str] = []
    while remaining := [name for name in specification.jobs if name not in ordered]:
        ready = [name for name in remaining if specification.jobs[name].source in {None, TEACHER, *ordered}]
        ready = [name for name in ready if specification.jobs[name].source not in remaining]
        if not ready:
            entry = specification.jobs[remaining[0]]
            raise UsageError(
                f"{specification.path}: jobs.{remaining[0]}.{entry.action}: starts from itself by way of "
                f"{entry.source}, expected an order"
            )
        ordered += ready
    return ordered


def _given(specification: Specification, scene: str, conditions: Conditions) -> Job:
    config = specification.scenes[scene].teacher
    assert config is not None
    try:
        is_of_pictures = not (is_sdf_run(config) or is_siren_run(config))
        model_dir = (load_config(config) if is_of_pictures else read_config(config)).relative_model_dir
        checkpoint, _ = find_checkpoint(config.parent / model_dir)
    except UsageError as error:
        raise UsageError(f"{specification.path}: scenes.{scene}.teacher: {error}") from None
    key = fingerprint([file_hash(config), file_hash(checkpoint)])
    return Job(scene, TEACHER, TEACHER, "given", (), config.parent, config, key, device=conditions.device)


def _expand(
    specification: Specification, scene: str, name: str, made: dict[str, list[Job]], conditions: Conditions
) -> Iterator[Job]:
    """The jobs of one entry on one scene: for each of its inputs, each point of its grid, each seed."""
    entry = specification.jobs[name]
    sources: list[Job | None] = [*made[entry.source]] if entry.source else [None]
    for source in sources:
        # what tells an input from its siblings tells this from its own
        inherited = source.group.removeprefix(entry.source or "") if source else ""
        seeds = (source.seed,) if source and source.name != source.group else (None,)
        if seeds != (None,) and entry.seeds:
            raise UsageError(
                f"{specification.path}: jobs.{name}.seeds: {entry.source} has seeds already, expected them once"
            )
        for point in itertools.product(*entry.grid.values()):
            chosen = dict(zip(entry.grid, point, strict=True))
            group = f"{name}{inherited}" + "".join(f"_{_short(flag)}={_slug(v)}" for flag, v in chosen.items())
            for seed in entry.seeds or seeds:
                own = _Own(scene, group, seed, entry.flags | chosen, conditions)
                try:
                    if source is None:
                        yield _train(own, entry.train, specification.scenes[scene])
                    else:
                        yield _plan(own, source) if entry.plan else _distill(own, source)
                except UsageError as error:
                    raise UsageError(f"{specification.path}: jobs.{name}: {error}") from None


@dataclass(frozen=True)
class _Own:
    """What tells a job of an entry from the others."""

    scene: str
    group: str
    seed: int | None
    settings: Flags
    conditions: Conditions

    @property
    def name(self) -> str:
        return self.group if self.seed is None else f"{self.group}_seed={self.seed}"

    def flags(self, command: str, seed_flag: str, shared: Flags) -> list[str]:
        seed = [] if self.seed is None else [f"--{seed_flag}", str(self.seed)]
        return [*to_arguments(command, shared | self.settings), *seed]

    def job(self, kind: Kind, key: str, command: tuple[str, ...], product: Path, seed: int, **more: Any) -> Job:
        shared = {"threads": self.conditions.threads, "device": self.conditions.device, "settings": self.settings}
        folder = self.folder(key)
        return Job(self.scene, self.group, self.name, kind, command, folder, product, key, seed=seed, **shared, **more)

    def folder(self, key: str) -> Path:
        return self.conditions.output_dir / self.scene / f"{self.name}-{key[:8]}"


def _train(own: _Own, method: str | None, scene: Scene) -> Job:
    assert method is not None
    device = own.conditions.device
    flags = own.flags("train", "machine.seed", scene.train)
    parsed = parse_train(method, flags)
    key = fingerprint(["train", method, flags, str(scene.data), device])
    folder = own.folder(key)
    place = ("--output-dir", str(folder.parent), "--experiment-name", folder.name, "--timestamp", "run")
    quiet = ("--vis", "tensorboard", "--logging.local-writer.enable", "False", "--logging.profiler", "none")
    shared = ("--data", str(scene.data), "--machine.device-type", device.partition(":")[0])
    command = (*NS_TRAIN, method, *place, *quiet, *shared, *flags)
    product = folder / method / "run" / "config.yml"
    end = product.with_name(ENDED) if isinstance(parsed, SdfTrainerConfig) else None  # how long streams take, they say
    return own.job("train", key, command, product, parsed.machine.seed, steps=parsed.max_num_iterations, end=end)


def _distill(own: _Own, source: Job) -> Job:
    seed = parse_distill(own.flags("distill", "seed", {})).seed
    if source.kind == "plan" and source.input is not None:  # by the plan, what was planned
        place = ("--load-config", str(source.input.product), "--plan", str(source.product))
    else:
        place = ("--load-config", str(source.product))
    return _derived(own, "distill", source, seed, place, "run/config.yml")


def _plan(own: _Own, source: Job) -> Job:
    seed = parse_plan(own.flags("plan", "seed", {})).seed
    return _derived(own, "plan", source, seed, ("--load-config", str(source.product)), "plan/plan.json")


def _derived(own: _Own, kind: Kind, source: Job, seed: int, place: tuple[str, ...], product_name: str) -> Job:
    """A command of ours that starts from another job's product."""
    device, flags = own.conditions.device, own.flags(kind, "seed", {})
    key = fingerprint([kind, flags, source.fingerprint, device])
    product = own.folder(key) / product_name
    command = (*EUGEN3D, kind, *place, "--output-dir", str(product.parent), "--device", device, *flags)
    return own.job(kind, key, command, product, seed, input=source)


def _short(flag: str) -> str:
    return flag.rpartition(".")[2]


def _slug(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isalnum() or character in "-.+" else "-" for character in text)
