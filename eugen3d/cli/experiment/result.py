"""An experiment's result: one row for every run that was scored, and what the seeds' spread says of the differences."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from eugen3d.cli.config_file import read_config
from eugen3d.cli.experiment.job import Job
from eugen3d.cli.experiment.measure import Measure, measure_of, scale_keys, seconds_of
from eugen3d.cli.experiment.schedule import Outcome
from eugen3d.cli.experiment.specification import Specification
from eugen3d.cli.experiment.worker import log_path, read_seconds
from eugen3d.cli.methods import known_methods
from eugen3d.layers import EUGenConfig, KindConfig, LayerConfig
from eugen3d.layers.registry import REGISTRY
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.models.siren import EUGenSirenModelConfig
from eugen3d.models.zipnerf import EUGenZipNerfModelConfig

Row = dict[str, Any]


def make_rows(specification: Specification, runs: Mapping[str, Job], score: Mapping[str, Any]) -> list[Row]:
    """The rows of a scene.

    Args:
        runs: the scene's runs by name.
        score: what `eugen3d score` wrote of them.
    """
    scored = [(runs[entry["name"]], entry) for entry in score["runs"]]
    key = measure_of(score["runs"][0]).key
    reference = _mean(entry[key] for job, entry in scored if job.group == specification.compare_with)
    return [_row(specification, job, entry, reference) for job, entry in scored]


def summarize(specification: Specification, rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds of every run, and whether it differs from what it is compared with.

    The noise floor of a difference of means is twice its standard error, 2 √(s₁²/n₁ + s₂²/n₂), with s the standard
    deviation of n seeds; that of a given run, which is one and the same, is 0. A difference that does not exceed it is
    none. With one seed there is no floor, and no verdict.
    """
    summary = []
    for scene, of_scene in groupby(rows, key=lambda row: row["scene"]):
        groups: dict[str, list[Row]] = {}
        for row in of_scene:
            groups.setdefault(row["group"], []).append(row)
        reference = groups[specification.compare_with]
        for name, own in groups.items():
            summary.append({"scene": scene, "name": name} | _compare(own, reference))
    return summary


def describe_failures(outcomes: Iterable[Outcome]) -> list[Row]:
    """What did not come to an end, and why."""
    return [
        {
            "scene": outcome.job.scene,
            "name": outcome.job.name,
            "state": outcome.end,
            "reason": outcome.reason,
            "attempts": outcome.attempts,
            "log": str(log_path(outcome.job)) if outcome.end == "failed" else None,
            "log_tail": list(outcome.log_tail),
        }
        for outcome in outcomes
        if not outcome.is_done
    ]


def describe_score(job: Job) -> Row:
    """What a scene's comparison cost."""
    seconds, cpu_seconds = read_seconds(job)
    return {
        "scene": job.scene,
        "job_seconds": seconds,
        "job_cpu_seconds": cpu_seconds,
        "folder_bytes": _folder_bytes(job.folder),
        "folder": str(job.folder),
    }


def read_score(job: Job) -> dict[str, Any]:
    """What a finished comparison wrote."""
    return json.loads(job.product.read_text())


def _row(specification: Specification, job: Job, entry: Mapping[str, Any], reference: float | None) -> Row:
    measure, (seconds, cpu_seconds) = measure_of(entry), read_seconds(job)
    value = entry[measure.key]
    return {
        "scene": job.scene,
        "teacher": _teacher(job),
        "method": entry["method"],
        **_describe_layers(job),
        measure.key: value,
        f"delta_{measure.key}": None if value is None or reference is None else value - reference,
        **{key: entry.get(key) for key in measure.others},
        **{f"psnr_scale_{of_scale['scale']}": of_scale["psnr"] for of_scale in entry.get("scales", ())[1:]},
        "num_parameters": entry["num_parameters"],
        "flops_per_sample": entry["flops_per_sample"],
        "speedup": entry["speedup"],
        "seconds": seconds_of(entry),
        "seed": job.seed,
        "group": job.group,
        "name": job.name,
        "checkpoint_bytes": entry["checkpoint_bytes"],
        "folder_bytes": _folder_bytes(job.product.parent),
        "job_seconds": seconds,
        "job_cpu_seconds": cpu_seconds,
        "config": str(job.product),
        "flags": job.settings,
    }


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _teacher(job: Job) -> str | None:
    """The run that the first distillation of a chain started from."""
    root = job
    while root.input:
        root = root.input
    if root is job:
        return None
    return str(root.product) if root.kind == "given" else root.name


def _describe_layers(job: Job) -> Row:
    """Kind and size of a run's replaced layers, and how they were found; None where they differ among each other."""
    config = read_config(job.product)
    replaced = _replaced_layers(config.pipeline.model)
    kinds = {_kind_of(one) for one in replaced.values()} or {_dense_kind(config)}
    steps = [one for one in _chain(job) if one.kind == "distill"]
    return {
        "kind": next(iter(kinds)) if len(kinds) == 1 else "mixed",
        "solver": _solver(job, steps),
        "layers": list(replaced),
        "num_features": _same(getattr(one, "num_features", one.inner_width) for one in replaced.values()),
        "order": _same(getattr(one, "order", None) for one in replaced.values()),
        "refined": any(one.settings.get("refine-steps", 0) for one in steps),
    }


def _replaced_layers(model: Any) -> dict[str, KindConfig]:
    """What stands in the place of a model's dense layers, by name."""
    if isinstance(model, DistilledModelConfig):
        return model.layers
    layer = getattr(model, "layer", LayerConfig("linear"))
    if layer.kind == "linear":
        return {}
    if isinstance(model, EUGenSirenModelConfig):
        return {f"layers.{index}": layer.chosen for index in model.field_config().replaced}
    if isinstance(model, EUGenZipNerfModelConfig):
        return dict.fromkeys(model.replaced_layers, layer.chosen)
    return {f"trunk.{index}": layer.chosen for index in model.replaced_layers}


def _kind_of(config: KindConfig) -> str:
    """The kind as result files spell it; Φ = identity with the activation outside is low rank."""
    if isinstance(config, EUGenConfig) and (config.phi, config.order, config.use_norm) == ("identity", 1, False):
        return "low-rank"
    return next(kind for kind, entry in REGISTRY.items() if type(config) is entry.config)


def _dense_kind(config: Any) -> str:
    """narrow where a network is thinner than its method's own."""
    method: Any = known_methods()[config.method_name].pipeline.model
    own, usual = _width(config.pipeline.model), _width(method)
    return "narrow" if own < usual else "linear"


def _width(model: Any) -> int:
    """Of the hidden layers; 0 where that is no setting."""
    return model.widths[-1] if isinstance(model, EUGenZipNerfModelConfig) else getattr(model, "layer_width", 0)


def _same(values: Iterable[int | None]) -> int | None:
    """The one value that all have, None otherwise."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _solver(job: Job, steps: Sequence[Job]) -> str | None:
    """scratch for what was trained, closed-form or layerwise for what was distilled, None for what was given."""
    replaced = [one for one in steps if one.settings.get("layers") not in ("none", ["none"])]
    if replaced:
        return "layerwise" if any(one.settings.get("fit-steps", 0) for one in replaced) else "closed-form"
    return "scratch" if job.kind == "train" or (job.input and _chain(job)[-1].kind == "train") else None


def _chain(job: Job) -> list[Job]:
    """A job and what it came from, the first last."""
    return [job, *(_chain(job.input) if job.input else [])]


def _compare(own: Sequence[Row], reference: Sequence[Row]) -> Row:
    measure = measure_of(own[0])
    key = measure.key
    values, others = ([row[key] for row in rows if row[key] is not None] for rows in (own, reference))
    mean, other = _mean(values), _mean(others)
    at_scales = {scale: [row[scale] for row in own if row[scale] is not None] for scale in scale_keys(own[0])}
    difference = None if mean is None or other is None or own is reference else mean - other
    errors = [_squared_error(values, own), _squared_error(others, reference)]
    floor = None if None in errors else 2 * math.sqrt(sum(error for error in errors if error is not None))
    first = own[0]
    return {
        "seeds": len(own),
        key: mean,
        f"{key}_std": _deviation(values),
        f"delta_{key}": difference,
        "noise_floor": floor,
        "verdict": _verdict(difference, floor, measure),
        **{other: _mean(row[other] for row in own) for other in measure.others},
        **{scale: _mean(found) for scale, found in at_scales.items()},
        **{f"{scale}_std": _deviation(found) for scale, found in at_scales.items()},
        **{name: first[name] for name in ("kind", "num_parameters", "flops_per_sample", "checkpoint_bytes")},
        "speedup": statistics.median(row["speedup"] for row in own),
        "seconds": statistics.median(row["seconds"] for row in own),
    }


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _squared_error(values: Sequence[float], rows: Sequence[Row]) -> float | None:
    """The squared standard error of a mean over seeds; None where one seed says nothing of it."""
    if rows[0]["solver"] is None and rows[0]["teacher"] is None:
        return 0.0
    return statistics.variance(values) / len(values) if len(values) > 1 else None


def _verdict(difference: float | None, floor: float | None, measure: Measure) -> str | None:
    if difference is None or floor is None:
        return None
    if abs(difference) <= floor:
        return "no difference"
    return "better" if (difference > 0) == measure.larger_is_better else "worse"


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None
