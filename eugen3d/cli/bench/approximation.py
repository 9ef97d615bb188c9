"""`eugen3d bench approximation`: how well each layer kind stands for trained layers, against parameters and FLOPs."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from eugen3d.cli.bench.approximation_progress import ApproximationProgress
from eugen3d.cli.bench.approximation_statements import statements
from eugen3d.cli.bench.approximation_targets import TargetConfig, TargetName, activations_of
from eugen3d.cli.bench.approximation_view import plots, tables
from eugen3d.cli.bench.report import write_bench_report
from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.teacher_rows import SamplingConfig
from eugen3d.distill.approximation import (
    ApproximationProblem,
    Candidate,
    CandidateKind,
    Setting,
    Source,
    Start,
    layer_cost,
)
from eugen3d.layers.features import Phi

Row = dict[str, Any]
BASE_ORDERS = (1, 2)
"""Orders at which the norm and the distribution of the projections are varied."""
HELD_OUT_PART = 4
"""Rows to fit on for every held-out one."""


@dataclass
class BenchApproximation:
    """Measure how well EUGen, low-rank, SNNK and plain narrow layers approximate the layers of trained networks.

    One thing at a time is varied about an EUGen layer with ReLU, orthogonal projections and no norm. With Φ = identity
    the projections are those of reduced-rank regression. With an output, an interrupted call is continued.
    """

    load_config: Path = Path("data/still_life/teacher/config.yml")
    """The teacher's config.yml, for the target nerf."""
    layers: tuple[int, ...] = (2, 5)
    """Trunk layers of the teacher."""
    targets: tuple[TargetName, ...] = ("nerf", "sdf", "siren", "synthetic-relu")
    """Whose activations: nerf is the teacher, the others are made here."""
    kinds: tuple[CandidateKind, ...] = get_args(CandidateKind)
    """Layer kinds."""
    num_features: tuple[int, ...] = (16, 32, 64, 128)
    """Features in all, shared out among the degrees; ranks, too, with those that cost as little in a chain."""
    orders: tuple[int, ...] = (1, 2, 3)
    """k of EUGen layers."""
    phis: tuple[Phi, ...] = ("relu", "identity", "softplus", "sine")
    """Φ of EUGen layers of order 1; the first that is not identity is varied otherwise, too."""
    projections: tuple[Start, ...] = ("orthogonal", "gaussian", "picked")
    """Draws of the projections, and picked: the trained layer's own neurons, with its own Φ."""
    seeds: int = 10
    """Draws of layers with fixed projections."""
    trained_seeds: int = 10
    """Draws of layers with trained projections, and of narrow pairs; 0 for none."""
    steps: int = 200
    """Gradient steps of these; a narrow pair, which has no closed form to start from, takes five times as many."""
    num_rows: int = 10240
    """Rows of every target, a fifth of them held out."""
    width: int = 256
    """Width of the networks that are made here."""
    train_steps: int = 300
    """Gradient steps that these are fitted with."""
    seed: int = 0
    """Seed of targets and rows."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(num_rays=2048))
    """Where the teacher's rows come from."""
    output: Path | None = None
    """A JSON file for the result."""
    report: Path | None = None
    """An HTML file for the result."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        grid = ("targets", "kinds", "num_features", "orders", "phis", "projections")  # these change no error
        used = {key: value for key, value in self._settings().items() if key not in grid}
        progress = ApproximationProgress.open(self.output, used)
        result = self._measure(progress)
        if self.output:
            write_whole(self.output, json.dumps(result, indent=2, default=str) + "\n")
        progress.remove()
        console, notes = Console(), statements(result["rows"])
        for table in tables(result["rows"]):
            console.print(table)
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        if self.report:
            conditions = {
                "hardware": result["hardware"],
                "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
                "date": result["date"],
                "seeds": f"{self.seeds}, of what is trained {self.trained_seeds}",
                "rows": f"{self.num_rows}, a fifth of them held out",
            }
            title = "Layers that stand for trained ones"
            plots_title = "Error against cost: the best of each kind"
            write_bench_report(
                self.report, title, conditions, notes, plots_title, plots(result["rows"]), result["rows"]
            )
        for path in filter(None, (self.output, self.report)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        for name in ("targets", "kinds", "num_features", "orders", "phis", "projections"):
            flag = f"--{name.replace('_', '-')}"
            if not (values := getattr(self, name)):
                raise UsageError(f"{flag}: names none, expected at least one")
            for value in values:
                if isinstance(value, int) and value < 1:
                    raise UsageError(f"{flag} {value}: expected at least 1")
        for name, least in (("seeds", 1), ("trained_seeds", 0), ("steps", 1), ("width", 1), ("train_steps", 0)):
            if (value := getattr(self, name)) < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
        needed = 4 * (max(max(self.num_features), self.width) + 1) * (HELD_OUT_PART + 1) // HELD_OUT_PART
        if self.num_rows < needed:
            raise UsageError(f"--num-rows {self.num_rows}: expected at least {needed}, four a feature to fit on")
        if "nerf" in self.targets and not self.layers:
            raise UsageError("--layers: names none, expected at least one for the target nerf")
        if not list(self._candidates(self.width, "relu")):
            raise UsageError("--trained-seeds 0: leaves nothing to measure of these kinds")
        for name in ("output", "report"):
            if (path := getattr(self, name)) is not None and path.is_dir():
                raise UsageError(f"--{name} {path}: is a folder, expected a file's name")

    def _measure(self, progress: ApproximationProgress) -> dict[str, Any]:
        rows: list[Row] = []
        config = TargetConfig(
            self.load_config, self.layers, self.sampling, self.num_rows, self.width, self.train_steps, self.seed
        )
        targets = {name: found for target in self.targets for name, found in activations_of(target, config).items()}
        grids = {name: list(self._candidates(found.inputs.shape[1], found.phi)) for name, found in targets.items()}
        with progress_bar() as bar:
            total = sum(self._draws(candidate) for grid in grids.values() for candidate in grid)
            task = bar.add_task("approximation", total=total)
            for name, found in targets.items():
                bar.update(task, description=name)
                problem = ApproximationProblem(*found.split(len(found.inputs) * HELD_OUT_PART // (HELD_OUT_PART + 1)))
                for candidate in grids[name]:
                    errors = progress.get(name, candidate)
                    if errors is None:
                        errors = problem.relative_errors(candidate, range(self._draws(candidate)), self.steps)
                        progress.add(name, candidate, errors)
                    bar.advance(task, len(errors))
                    width = found.inputs.shape[1]
                    rows += [row_of(name, candidate, errors, width, setting) for setting in get_args(Setting)]
        return {
            "date": now(),
            "hardware": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "versions": versions(torch.device("cpu")),
            "settings": self._settings(),
            "rows": rows,
        }

    def _settings(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("output", "report")}

    def _draws(self, candidate: Candidate) -> int:
        if not candidate.is_random:
            return 1
        return self.trained_seeds if candidate.trained else self.seeds

    def _candidates(self, width: int, own_phi: Phi) -> Iterator[Candidate]:
        """What is measured on a layer of that width and activation, every one once."""
        seen: set[Candidate] = set()
        for candidate in self._all_candidates(width, own_phi):
            for one in (candidate, replace(candidate, trained=True)):
                if one not in seen and self._draws(one):
                    seen.add(one)
                    yield one

    def _all_candidates(self, width: int, own_phi: Phi) -> Iterator[Candidate]:
        chained = {m * m // (2 * width) for m in self.num_features} - {0}
        ranks = sorted({min(m, width) for m in self.num_features} | chained)
        if "low-rank" in self.kinds:
            yield from (Candidate("low-rank", rank) for rank in ranks)
        for m in self.num_features:
            if "snnk" in self.kinds:
                yield Candidate("snnk", m, projection="gaussian", phi="relu")
            if "narrow" in self.kinds:
                yield Candidate("narrow", m, projection="gaussian", trained=True, phi="relu")
            if "eugen" in self.kinds:
                yield from self._eugens(m, own_phi)
        if "eugen" in self.kinds and "identity" in self.phis and 1 in self.orders:
            yield from (Candidate("eugen", rank, projection="regression") for rank in ranks)

    def _eugens(self, count: int, own_phi: Phi) -> Iterator[Candidate]:
        """EUGen layers of that many features in all."""
        phis: list[Phi] = [phi for phi in self.phis if phi != "identity"]
        drawn: list[Source] = [projection for projection in self.projections if projection != "picked"]
        for order in (order for order in self.orders if order <= count) if phis and drawn else ():
            base = Candidate("eugen", count // order, order, drawn[0], phi=phis[0])
            yield base
            if order in BASE_ORDERS:
                yield from (replace(base, projection=other) for other in drawn[1:])
                yield replace(base, use_norm=True)
            if order == 1:
                yield from (replace(base, phi=other) for other in phis[1:])
        if "picked" in self.projections and 1 in self.orders:
            yield Candidate("eugen", count, projection="picked", phi=own_phi)


def row_of(target: str, candidate: Candidate, errors: list[float], width: int, setting: Setting) -> Row:
    """A row of the result file; the standard error is None where there is but one of several possible draws."""
    num_parameters, flops = layer_cost(candidate.config, width, setting)
    error = statistics.stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else None
    return {
        "target": target,
        "kind": candidate.kind,
        "num_features": candidate.num_features,
        "order": candidate.order,
        "projection": candidate.projection,
        "trained": candidate.trained,
        "phi": candidate.phi,
        "use_norm": candidate.use_norm,
        "num_parameters": num_parameters,
        "flops": flops,
        "relative_error": statistics.fmean(errors),
        "standard_error": error if candidate.is_random else 0.0,
        "setting": setting,
    }
