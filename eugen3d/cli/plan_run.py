"""One call of `eugen3d plan`: sensitivities, trials, the search, and what is written."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from rich.console import Console

from eugen3d.cli.conditions import device_name, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.plan_budget import Budget, BudgetKind, parse_amount
from eugen3d.cli.plan_file import layers_entry
from eugen3d.cli.plan_progress import PlanProgress
from eugen3d.cli.plan_search import Candidate, PlanSearch
from eugen3d.cli.plan_settings import PlanSettings
from eugen3d.cli.plan_trials import Trial, Trials
from eugen3d.cli.plan_view import print_plan, write_result
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.renders import file_hash
from eugen3d.cli.runs import Run
from eugen3d.cli.teacher_rows import sample_rows
from eugen3d.cli.teachers import NerfTeacher
from eugen3d.cli.views import choose_evenly, load_views
from eugen3d.distill import (
    HELD_OUT,
    FieldLoss,
    FoldedCost,
    FoldedWidths,
    Part,
    Plan,
    Planner,
    Rows,
    layer_losses,
    layer_options,
    rows_needed,
    uniform_plan,
)
from eugen3d.layers import KindConfig

CONSOLE = Console()
LEAST_WEIGHT = 1e-3
"""Of a network whose layers cost the picture next to nothing, beside the network that matters most."""
ANCHOR = 4
"""The hidden layers of one network alone are replaced by a quarter of their features to see what it matters."""

Options = dict[str, dict[str, list[KindConfig]]]
Losses = dict[str, dict[str, dict[KindConfig, float]]]


class PlanRun:
    """One call of the command, loaded and checked."""

    def __init__(
        self, command: PlanSettings, run: Run, teacher: NerfTeacher, kind: BudgetKind, progress: PlanProgress
    ) -> None:
        self.command, self.run, self.teacher, self.progress = command, run, teacher, progress
        self.networks = teacher.networks()
        self.widths = {part: FoldedWidths(network) for part, network in self.networks.items()}
        self.teacher_cost = self.cost({})
        self.budget = self._budget(kind)
        self.options: Options = {
            part: {name: found for name in network.sites if (found := layer_options(network, name, command.sizes))}
            for part, network in self.networks.items()
        }
        if not any(self.options.values()):
            raise UsageError(f"{command.load_config}: has no layer that could be replaced, expected at least one")

    def main(self) -> None:
        """Measure, search, and write what was found."""
        rows = self._rows()
        losses = self._losses(rows)
        trials = self._trials(rows)
        weights = self._loss_weights(losses, trials)
        planner = Planner(
            {
                part: Part(widths, losses[part], weights[part], *self._prices(part))
                for part, widths in self.widths.items()
            }
        )
        search = PlanSearch(
            planner,
            self.networks,
            lambda origin, plan: self._measured(trials, origin, plan),
            self.budget,
            self.command.front_shares,
            self.command.max_steps,
        )
        try:
            chosen = search.run()
        except LookupError as error:
            raise UsageError(self._refusal(search, error.args[0])) from None
        plan, front = self._plan_entry(chosen), self._front_entry(search, chosen, losses, weights)
        write_result(self.command.output_dir, plan, front)
        print_plan(CONSOLE, plan, front, self.command.output_dir)

    def cost(self, plan: Plan) -> dict[str, float]:
        """Parameters and operations per sample of a plan, folded."""
        each = {part: widths.cost(plan.get(part, {})) for part, widths in self.widths.items()}
        samples = self.teacher.samples_per_ray
        flops = sum(2 * cost.products * samples[part] for part, cost in each.items()) / sum(samples.values())
        return {"num_parameters": sum(each.values(), FoldedCost()).parameters, "flops_per_sample": flops}

    def _budget(self, kind: BudgetKind) -> Budget:
        command = self.command
        if kind == "max-parameters":
            assert command.max_parameters is not None
            return Budget(kind, parse_amount(kind, command.max_parameters, self.teacher_cost["num_parameters"]))
        if kind == "max-flops":
            assert command.max_flops is not None
            return Budget(kind, parse_amount(kind, command.max_flops, self.teacher_cost["flops_per_sample"]))
        value = command.max_psnr_drop if kind == "max-psnr-drop" else command.min_speedup
        assert value is not None
        return Budget(kind, value)

    def _prices(self, part: str) -> tuple[float, float]:
        """What a product and a parameter of a network cost, in the unit of the budget or in operations per sample."""
        if self.budget.kind == "max-parameters":
            return 0.0, 1.0
        samples = self.teacher.samples_per_ray
        return 2 * samples[part] / sum(samples.values()), 0.0

    def _rows(self) -> dict[str, Rows]:
        """Those of every network, as many as the largest option needs at the least."""
        start = time.perf_counter()
        most = max(
            rows_needed(option, self.networks[part].dense(site).in_features)
            for part, found in self.options.items()
            for site, options in found.items()
            for option in options
        )
        needed = math.ceil(most * HELD_OUT / (HELD_OUT - 1))
        manager = self.run.pipeline.datamanager
        assert isinstance(manager, VanillaDataManager)
        rows = sample_rows(manager, self.teacher, self.command.sampling, needed, self.command.seed)
        self.progress.seconds["sample"] += time.perf_counter() - start
        return rows

    def _losses(self, rows: Mapping[str, Rows]) -> Losses:
        """What each network loses by each option, where no other layer is replaced."""
        found: Losses = {part: {} for part in self.options}
        with progress_bar(CONSOLE) as bar:
            task = bar.add_task("sensitivities", total=sum(map(len, self.options.values())))
            for part, sites in self.options.items():
                training, held_out = rows[part].split()
                loss: FieldLoss | None = None
                for site, options in sites.items():
                    name = f"{part}.{site}"
                    bar.update(task, description=f"sensitivity of {name}")
                    if name not in self.progress.losses:
                        start = time.perf_counter()
                        loss = loss or FieldLoss(self.networks[part], held_out)
                        try:
                            lost = layer_losses(self.networks[part], site, training.batches(), options, loss)
                        except ValueError as error:
                            raise UsageError(f"{self.command.load_config}: {name}: {error}") from None
                        self.progress.losses[name] = [lost[option] for option in options]
                        self.progress.seconds["sensitivity"] += time.perf_counter() - start
                        self.progress.save()
                    found[part][site] = dict(zip(options, self.progress.losses[name], strict=True))
                    bar.advance(task)
        return found

    def _trials(self, rows: Mapping[str, Rows]) -> Trials:
        command = self.command
        views = load_views(self.run, "train", command.downscale_factor)
        indices = choose_evenly(len(views.files), command.num_views)
        with_speed = self.budget.kind == "min-speedup"
        return Trials(self.teacher, self.networks, rows, (views, indices), command.seed, with_speed)

    def _measured(self, trials: Trials, origin: str, plan: Plan) -> Trial:
        """A trial, or what an interrupted call measured on the same plan."""
        key = ("timed " if trials.with_speed else "") + json.dumps(layers_entry(plan), sort_keys=True)
        if key not in self.progress.trials:
            share = self.cost(plan)["flops_per_sample"] / self.teacher_cost["flops_per_sample"]
            start = time.perf_counter()
            with CONSOLE.status(f"trial {len(self.progress.trials) + 1}: {origin}, ×{share:.3f} operations"):
                try:
                    trial = trials.measure(plan)
                except ValueError as error:
                    raise UsageError(f"{self.command.load_config}: {error}") from None
            self.progress.trials[key] = dataclasses.asdict(trial)
            self.progress.seconds["trials"] += time.perf_counter() - start
            self.progress.save()
            speed = "" if trial.speedup is None else f", {trial.speedup:.2f}× the speed"
            CONSOLE.print(f"{origin}, ×{share:.3f} operations: {trial.psnr_drop:.2f} dB lost{speed}", highlight=False)
        return Trial(**self.progress.trials[key])

    def _loss_weights(self, losses: Losses, trials: Trials) -> dict[str, float]:
        """How much of the picture's error a unit of each network's loss makes: measured on one network at a time."""
        if len(self.networks) == 1:
            return dict.fromkeys(self.networks, 1.0)
        weights = {}
        for part, network in self.networks.items():
            size = max(dense.out_features for dense in self.widths[part].sites.values()) // ANCHOR
            layers = uniform_plan({part: network}, "features", max(1, size))[part]
            drop = self._measured(trials, f"{part} alone", {part: layers}).psnr_drop
            lost = sum(_nearest_loss(losses[part][site], size) for site in layers)
            weights[part] = (10 ** (drop / 10) - 1) / max(lost, 1e-12)
        most = max(*weights.values(), 1e-12)
        return {part: max(weight / most, LEAST_WEIGHT) for part, weight in weights.items()}

    def _refusal(self, search: PlanSearch, candidate: Candidate | None) -> str:
        """Why the budget cannot be met, and what comes nearest."""
        budget, unit = self.budget, {"max-psnr-drop": " dB", "min-speedup": "×"}.get(self.budget.kind, "")
        flag = f"--{budget.kind} {budget.value:g}"
        if budget.is_cost:
            return f"{flag}: no plan is as small, the smallest has {search.hull[0].price:,.0f}; give smaller --sizes"
        if candidate is None:
            return f"{flag}: no layer could be replaced, expected at least one"
        share = self.cost(candidate.plan)["flops_per_sample"] / self.teacher_cost["flops_per_sample"]
        return (
            f"{flag}: no plan meets it, the nearest has {candidate.value(budget):.3g}{unit} "
            f"with ×{share:.3f} of the teacher's operations"
        )

    def _in_order(self, plan: Plan) -> Plan:
        """The same plan with its layers in the order in which they are evaluated."""
        sites = {
            part: [site for site in network.sites if site in plan[part]] for part, network in self.networks.items()
        }
        return {part: {site: plan[part][site] for site in names} for part, names in sites.items()}

    def _plan_entry(self, chosen: Candidate) -> dict[str, Any]:
        """What stands in plan.json."""
        return {
            "teacher": file_hash(self.run.checkpoint),
            "budget": dataclasses.asdict(self.budget),
            "cost": self.cost(chosen.plan),
            "measured": dataclasses.asdict(chosen.trial),
            "layers": layers_entry(self._in_order(chosen.plan)),
        }

    def _front_entry(
        self, search: PlanSearch, chosen: Candidate, losses: Losses, weights: Mapping[str, float]
    ) -> dict[str, Any]:
        """What stands in front.json."""
        device, front = torch.device(self.teacher.model.device), search.front()
        points = [
            {
                "origin": each.origin,
                "is_on_front": each in front,
                "is_chosen": each is chosen,
                **self.cost(each.plan),
                **dataclasses.asdict(each.trial),
                "layers": layers_entry(self._in_order(each.plan)),
            }
            for each in sorted(search.candidates, key=lambda each: each.price)
        ]
        data = Path(self.run.config.data or "").resolve()
        return {
            "scene": data.name if data.is_dir() else data.parent.name,
            "split": "train",
            "num_views": self.command.num_views,
            "downscale_factor": self.command.downscale_factor,
            "device": device_name(device),
            "versions": versions(device),
            "date": now(),
            "budget": dataclasses.asdict(self.budget),
            "teacher": self.teacher_cost,
            "seconds": self.progress.seconds,
            "loss_weights": dict(weights),
            "sensitivities": {
                f"{part}.{site}": [
                    layers_entry({part: {site: option}})[f"{part}.{site}"] | {"loss": loss}
                    for option, loss in each.items()
                ]
                for part, sites in losses.items()
                for site, each in sites.items()
            },
            "points": points,
        }


def _nearest_loss(losses: Mapping[KindConfig, float], size: int) -> float:
    """Of the features whose number is nearest to a size."""
    features = [option for option in losses if option.includes_activation]
    return losses[min(features, key=lambda option: abs(option.inner_width - size))]
