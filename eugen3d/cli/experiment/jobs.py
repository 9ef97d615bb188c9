"""An experiment's jobs: its file spelled out into commands, in the order that they need each other."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eugen3d.cli.errors import UsageError
from eugen3d.cli.experiment.flags import parse_distill, parse_score, parse_train, to_arguments
from eugen3d.cli.experiment.job import Conditions, Job
from eugen3d.cli.experiment.specification import TEACHER, JobEntry, Scene, Specification
from eugen3d.cli.renders import file_hash, fingerprint
from eugen3d.cli.runs import find_checkpoint, load_config

EUGEN3D = (sys.executable, "-m", "eugen3d.cli.main")
NS_TRAIN = (sys.executable, "-m", "nerfstudio.scripts.train")


def make_jobs(specification: Specification, conditions: Conditions) -> list[Job]:
    """All runs of all scenes, inputs before what starts from them; a given teacher is a job that is done.

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
        groups = dict.fromkeys(job.group for job in own)
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
        ready = [name for name in remaining if specification.jobs[name].distill in {None, TEACHER, *ordered}]
        ready = [name for name in ready if specification.jobs[name].distill not in remaining]
        if not ready:
            name = remaining[0]
            raise UsageError(
                f"{specification.path}: jobs.{name}.distill: starts from itself by way of "
                f"{specification.jobs[name].distill}, expected an order"
            )
        ordered += ready
    return ordered


def _given(specification: Specification, scene: str, conditions: Conditions) -> Job:
    config = specification.scenes[scene].teacher
    assert config is not None
    try:
        model_dir = load_config(config).relative_model_dir
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
    sources: list[Job | None] = [*made[entry.distill]] if entry.distill else [None]
    for source in sources:
        # what tells an input from its siblings tells this from its own
        inherited = source.group.removeprefix(entry.distill or "") if source else ""
        seeds = (source.seed,) if source and source.name != source.group else (None,)
        if seeds != (None,) and entry.seeds:
            raise UsageError(
                f"{specification.path}: jobs.{name}.seeds: {entry.distill} has seeds already, expected them once"
            )
        for point in itertools.product(*entry.grid.values()):
            chosen = dict(zip(entry.grid, point, strict=True))
            group = f"{name}{inherited}" + "".join(f"_{_short(flag)}={_slug(v)}" for flag, v in chosen.items())
            for seed in entry.seeds or seeds:
                try:
                    yield _job(specification.scenes[scene], scene, group, entry, chosen, seed, source, conditions)
                except UsageError as error:
                    raise UsageError(f"{specification.path}: jobs.{name}: {error}") from None


def _job(
    scene: Scene,
    scene_name: str,
    group: str,
    entry: JobEntry,
    chosen: dict[str, Any],
    seed: int | None,
    source: Job | None,
    conditions: Conditions,
) -> Job:
    settings = entry.flags | chosen
    name = group if seed is None else f"{group}_seed={seed}"
    if source is None:
        assert entry.train is not None
        flags = to_arguments("train", scene.train | settings)
        if seed is not None:
            flags += ["--machine.seed", str(seed)]
        parsed = parse_train(entry.train, flags)
        used_seed, steps = parsed.machine.seed, parsed.max_num_iterations
        key = fingerprint(["train", entry.train, flags, str(scene.data), conditions.device])
        folder = _folder(conditions, scene_name, name, key)
        place = ("--output-dir", str(folder.parent), "--experiment-name", folder.name, "--timestamp", "run")
        quiet = ("--vis", "tensorboard", "--logging.local-writer.enable", "False", "--logging.profiler", "none")
        shared = ("--data", str(scene.data), "--machine.device-type", conditions.device.partition(":")[0])
        command, kind = (*NS_TRAIN, entry.train, *place, *quiet, *shared, *flags), "train"
        product = folder / entry.train / "run" / "config.yml"
    else:
        flags = to_arguments("distill", settings)
        if seed is not None:
            flags += ["--seed", str(seed)]
        used_seed, steps = parse_distill(flags).seed, 0
        key = fingerprint(["distill", flags, source.fingerprint, conditions.device])
        folder = _folder(conditions, scene_name, name, key)
        place = ("--load-config", str(source.product), "--output-dir", str(folder / "run"))
        command, kind = (*EUGEN3D, "distill", *place, "--device", conditions.device, *flags), "distill"
        product = folder / "run" / "config.yml"
    return Job(
        *(scene_name, group, name, kind, command, folder, product, key),
        **{"threads": conditions.threads, "device": conditions.device, "seed": used_seed, "steps": steps},
        **{"input": source, "settings": settings},
    )


def _folder(conditions: Conditions, scene: str, name: str, key: str) -> Path:
    return conditions.output_dir / scene / f"{name}-{key[:8]}"


def _short(flag: str) -> str:
    return flag.rpartition(".")[2]


def _slug(value: Any) -> str:
    text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(character if character.isalnum() or character in "-.+" else "-" for character in text)
