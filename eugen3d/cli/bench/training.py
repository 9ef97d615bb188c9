"""`eugen3d bench training`: how well, how fast and in how much memory EUGen networks train, factored and merged."""

import copy
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from eugen3d.cli.bench.timing import peak_allocation, time_in_turn
from eugen3d.cli.bench.training_networks import ContestantName, NetworkShape, evaluate, make_network
from eugen3d.cli.bench.training_tasks import Task, TaskName, make_task
from eugen3d.cli.conditions import device_name, load_average, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.formats import si
from eugen3d.cli.progress import progress_bar
from eugen3d.layers import fold_sequential
from eugen3d.metrics.cost import flops_per_row
from eugen3d.training import Muon

CPU = torch.device("cpu")
OptimizerName = Literal["adam", "muon"]
Row = dict[str, Any]


@dataclass
class BenchTraining:
    """Train one network with dense, narrow, EUGen and merged EUGen layers from scratch, with the same steps and seeds.

    Every contestant is trained at every learning rate, which falls to zero over the steps; the table shows the rate
    with the least mean error. An error is the root of the mean squared error on held-out rows, over that of their mean.
    """

    tasks: tuple[TaskName, ...] = get_args(TaskName)
    """What is learned: an analytic signed distance, and a teacher's opacity and colour."""
    contestants: tuple[ContestantName, ...] = get_args(ContestantName)
    """narrow costs what eugen does, folded. eugen trains the layers' matrices, eugen-merged the products of
    neighbouring ones, from the same start; eugen-norm projects the input's norm, too."""
    load_config: Path = Path("data/still_life/teacher/config.yml")
    """The teacher's config.yml, for the task nerf."""
    width: int = 256
    """Width of the network."""
    depth: int = 8
    """Hidden layers; all but the first are replaced."""
    num_features: int = 64
    """m of EUGen layers of order 1 with ReLU."""
    optimizer: OptimizerName = "adam"
    """What takes the steps."""
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    """Rates to try, each with all seeds."""
    steps: int = 1000
    """Gradient steps."""
    batch: int = 1024
    """Rows of a step."""
    num_rows: int = 40960
    """Rows of a task, a fifth of them held out."""
    seeds: int = 3
    """Starts, and orders of the rows."""
    rounds: int = 5
    """Turns in which the steps of all contestants are timed."""
    output: Path | None = None
    """A JSON file for the result."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        result = self._measure()
        if self.output:
            write_whole(self.output, json.dumps(result, indent=2, default=str) + "\n")
        console = Console()
        for name in self.tasks:
            console.print(_table(name, [row for row in result["rows"] if row["task"] == name]))
        if self.output:
            console.print(f"wrote {self.output}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is loaded."""
        for name in ("tasks", "contestants", "learning_rates"):
            if not getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')}: names none, expected at least one")
        for rate in self.learning_rates:
            if not (math.isfinite(rate) and rate > 0):
                raise UsageError(f"--learning-rates {rate}: expected more than 0")
        least = {
            "width": 1,
            "depth": 2,
            "num_features": 1,
            "steps": 1,
            "batch": 1,
            "num_rows": 10,
            "seeds": 1,
            "rounds": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least {bound}")
        if self.output is not None and self.output.is_dir():
            raise UsageError(f"--output {self.output}: is a folder, expected a file's name")

    def _measure(self) -> dict[str, Any]:
        rows: list[Row] = []
        load = load_average()
        runs = len(self.tasks) * len(self.contestants) * len(self.learning_rates) * self.seeds
        with progress_bar() as bar:
            progress = bar.add_task("training", total=runs)
            for name in self.tasks:
                bar.update(progress, description=f"{name}: rows, and seconds of a step")
                task = make_task(name, self.load_config, self.num_rows, seed=0)
                costs = self._costs(task)
                for contestant, rate in self._entries():
                    bar.update(progress, description=f"{name}: {contestant}, {rate:g}")
                    errors = []
                    for seed in range(self.seeds):
                        errors.append(self._train(contestant, task, rate, seed))
                        bar.advance(progress)
                    rows.append({"task": name, "contestant": contestant} | costs[contestant] | _spread(rate, errors))
        return {
            "date": now(),
            "hardware": device_name(CPU),
            "threads": torch.get_num_threads(),
            "load_average": load,
            "versions": versions(CPU),
            "settings": {key: value for key, value in asdict(self).items() if key != "output"},
            "rows": rows,
        }

    def _entries(self) -> Iterator[tuple[ContestantName, float]]:
        return ((contestant, rate) for contestant in self.contestants for rate in self.learning_rates)

    def _shape(self, task: Task) -> NetworkShape:
        return NetworkShape(task.inputs.shape[1], task.outputs.shape[1], self.width, self.depth, self.num_features)

    def _train(self, name: ContestantName, task: Task, rate: float, seed: int) -> float:
        """The held-out error of a network trained from scratch."""
        network = make_network(name, self._shape(task), seed)
        step = self._step(network, task, rate, seed)
        for _ in range(self.steps):
            step()
        with torch.no_grad():
            residual = evaluate(network, task.held_out_inputs) - task.held_out_outputs
            spread = task.held_out_outputs - task.held_out_outputs.mean(dim=0)
            return (residual.square().sum() / spread.square().sum()).sqrt().item()

    def _step(self, network: nn.Sequential, task: Task, rate: float, seed: int) -> "Step":
        make = torch.optim.Adam if self.optimizer == "adam" else Muon
        return Step(network, task, make(network.parameters(), lr=rate), rate, self.steps, self.batch, seed)

    def _costs(self, task: Task) -> dict[str, Row]:
        """What a step of each contestant costs, its optimizer included, and its size once folded."""
        steps = {
            name: self._step(make_network(name, self._shape(task), 0), task, self.learning_rates[0], 0)
            for name in self.contestants
        }
        seconds = time_in_turn(steps, self.rounds, CPU)
        return {
            name: {
                "seconds_per_step": seconds[name],
                "peak_memory_bytes": step.held_bytes() + peak_allocation(step, CPU),
                "num_trained": sum(parameter.numel() for parameter in step.network.parameters()),
                "flops": flops_per_row(fold_sequential(copy.deepcopy(step.network))),
            }
            for name, step in steps.items()
        }


@dataclass
class Step:
    """A training step on rows drawn at random: mean squared error, and a rate that falls as a half cosine."""

    network: nn.Sequential
    task: Task
    optimizer: torch.optim.Optimizer
    rate: float
    steps: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        self._generator, self._taken = torch.Generator().manual_seed(self.seed), 0

    def __call__(self) -> None:
        task = self.task
        chosen = torch.randint(len(task.inputs), (self.batch,), generator=self._generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (1 + math.cos(math.pi * min(1, self._taken / self.steps))) / 2
        self.optimizer.zero_grad()
        loss = (evaluate(self.network, task.inputs[chosen]) - task.outputs[chosen]).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._taken += 1

    def held_bytes(self) -> int:
        """Bytes of the parameters and of what the optimizer keeps for each."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.network.parameters(), *(value for value in kept if isinstance(value, torch.Tensor))]
        return sum(tensor.nbytes for tensor in tensors)


def _spread(rate: float, errors: list[float]) -> Row:
    """Errors over the seeds; the deviation is None of a single one."""
    deviation = statistics.stdev(errors) if len(errors) > 1 else None
    return {
        "learning_rate": rate,
        "error": statistics.fmean(errors),
        "standard_deviation": deviation,
        "errors": errors,
    }


def _table(task: TaskName, rows: list[Row]) -> Table:
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["error"]):
        best.setdefault(row["contestant"], row)
    caption = "parameters as trained, FLOPs of one row once folded"
    table = Table(
        title=f"{task}: held-out relative error", caption=caption, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    table.add_column("network", no_wrap=True)
    for heading in ("error", "± sd", "rate", "ms/step", "memory", "trained", "FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(row["contestant"] for row in rows):
        row, deviation = best[name], best[name]["standard_deviation"]
        table.add_row(
            name,
            f"{row['error']:.4f}",
            "–" if deviation is None else f"{deviation:.4f}",
            f"{row['learning_rate']:g}",
            f"{1000 * row['seconds_per_step']:.3g}",
            si(row["peak_memory_bytes"], "B"),
            si(row["num_trained"]),
            si(row["flops"]),
        )
    return table
