"""`eugen3d bench layers`: what chains of each layer kind cost, in time, memory and share of the machine's peak."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console

from eugen3d.cli.bench.chains import ChainKind, Direction, chains_for
from eugen3d.cli.bench.contest import TRAINING_BACKENDS, Contest, Measured, Shape
from eugen3d.cli.bench.layers_view import plots, remarks, tables
from eugen3d.cli.bench.measured import MeasuredSoFar
from eugen3d.cli.bench.report import write_bench_report
from eugen3d.cli.bench.timing import SQUARES, copy_bytes_per_second, matmul_flops_per_second
from eugen3d.cli.conditions import device_name, load_average, now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import resolve_device
from eugen3d.runtime import Backend

DTypeName = Literal["float32", "bfloat16"]
Row = dict[str, Any]


@dataclass
class BenchLayers:
    """Time chains of dense layers against folded EUGen, low-rank, SNNK and plain narrow ones, on random rows.

    All contestants of a comparison are warmed up and then take turns; a time is the median of the rounds. Compiling
    takes far longer than measuring: leave out "compiled" for a quick look.
    """

    widths: tuple[int, ...] = (256, 1024)
    """Widths of the dense chain."""
    depth: int = 8
    """Hidden layers, each with its ReLU."""
    batches: tuple[int, ...] = (4096, 16384)
    """Rows of a call."""
    dtypes: tuple[DTypeName, ...] = get_args(DTypeName)
    """Precisions, of parameters and rows alike."""
    directions: tuple[Direction, ...] = get_args(Direction)
    """Inference without gradients, and a training step's forward and backward pass without its optimizer."""
    backends: tuple[Backend, ...] = tuple(name for name in get_args(Backend) if name != "auto")
    """What evaluates the chains; gradients come from eager and compiled alone."""
    kinds: tuple[ChainKind, ...] = get_args(ChainKind)
    """Layer kinds. narrow is the plain network of a folded EUGen chain's cost; eugen-merged the folded chain, trained
    as it is. eugen and snnk are trained in two forms on the same parameters: factored, layer after layer, and merged,
    through products of neighbouring matrices that every step forms."""
    num_features: tuple[int, ...] = (32, 64, 128)
    """m of EUGen and SNNK chains, ranks of low-rank ones."""
    orders: tuple[int, ...] = (1, 2)
    """k of EUGen chains."""
    use_norm: bool = False
    """Project the input's norm in EUGen layers, too."""
    rounds: int = 5
    """Turns of every contestant."""
    device: str = "cpu"
    """cpu or cuda."""
    output: Path | None = None
    """A JSON file for the result. What is measured is kept beside it until it is written: interrupted, the same call on
    the same machine goes on from there."""
    report: Path | None = None
    """An HTML file for the result."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        device = resolve_device(self.device)
        console = Console()
        measured = MeasuredSoFar.open(self.output, self._conditions(device))
        if len(measured):
            console.print(f"going on from {measured.path}", highlight=False, soft_wrap=True)
        result = self._measure(device, measured)
        if self.output:
            write_whole(self.output, json.dumps(result, indent=2) + "\n")
        measured.remove()
        notes = remarks(result)
        for table in tables(result["rows"]):
            console.print(table)
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        if self.report:
            conditions = {
                "hardware": result["hardware"],
                "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
                "date": result["date"],
                "rounds": str(self.rounds),
            }
            title = f"Chains of {self.depth} layers: dense, EUGen, low rank, SNNK"
            write_bench_report(
                self.report, title, conditions, notes, "Speed against cost", plots(result["rows"]), result["rows"]
            )
        for path in filter(None, (self.output, self.report)):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is built."""
        for name in ("widths", "batches", "dtypes", "directions", "backends", "kinds", "num_features", "orders"):
            flag = f"--{name.replace('_', '-')}"
            if not (values := getattr(self, name)):
                raise UsageError(f"{flag}: names none, expected at least one")
            for value in values:
                if isinstance(value, int) and value < 1:
                    raise UsageError(f"{flag} {value}: expected at least 1")
        for name in ("depth", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected at least 1")
        if "auto" in self.backends:
            raise UsageError("--backends auto: chooses among the others, expected those to measure")
        if not any(self._backends(direction) for direction in self.directions):
            names = " ".join(self.backends)
            raise UsageError(f"--backends {names}: evaluate without gradients, expected eager or compiled among them")
        if not any(self._chains(width, direction) for width in self.widths for direction in self.directions):
            raise UsageError(f"--kinds {' '.join(self.kinds)}: expected forward+backward among --directions")
        for name in ("output", "report"):
            if (path := getattr(self, name)) is not None and path.is_dir():
                raise UsageError(f"--{name} {path}: is a folder, expected a file's name")

    def _conditions(self, device: torch.device) -> dict[str, Any]:
        """What the measurements depend on."""
        return {
            "hardware": device_name(device),
            "threads": torch.get_num_threads(),
            "versions": versions(device),
            "settings": {key: value for key, value in asdict(self).items() if key not in ("output", "report")},
        }

    def _measure(self, device: torch.device, measured: MeasuredSoFar) -> dict[str, Any]:
        rows: list[Row] = []
        load = load_average()
        peaks = {dtype: measured.take(f"peak {dtype}", partial(self._peak, dtype, device)) for dtype in self.dtypes}
        bandwidth = measured.take("bandwidth", lambda: copy_bytes_per_second(self.rounds, device))
        unavailable: dict[str, str] = {}
        contests = list(self._contests(device))
        with progress_bar() as bar, _many_compilations("compiled" in self.backends):
            task = bar.add_task("layers", total=sum(c.turns for c in contests) * len(self.batches) * self.rounds)
            for contest in contests:
                contest.unavailable = unavailable
                for batch in self.batches:
                    name = f"{_name(contest.shape)}, {batch} rows"
                    bar.update(task, description=name, advance=contest.turns * self.rounds if name in measured else 0)
                    found = measured.take(name, partial(self._compare, contest, batch, lambda: bar.advance(task)))
                    rows += found["rows"]
                    unavailable |= found["unavailable"]
                contest.forget()
                if "compiled" in self.backends:
                    torch._dynamo.reset()
        for row in rows:
            row["speedup"] = speedup(row, rows)
            at_peak = row["flops"] * row["batch"] / peaks[row["dtype"]]
            row["peak_fraction"] = at_peak / row["seconds"]
            row["roofline_fraction"] = max(at_peak, row["bytes"] / bandwidth) / row["seconds"]
        return {
            "date": now(),
            "load_average": load,
            **self._conditions(device),
            "peak_flops_per_second": peaks,
            "bandwidth_bytes_per_second": bandwidth,
            "unavailable": unavailable,
            "rows": rows,
        }

    def _compare(self, contest: Contest, batch: int, on_turn: Callable[[], None]) -> dict[str, Any]:
        """The rows of one comparison, and what could not take part in it."""
        rows = [self._row(contest.shape, batch, one) for one in contest.measure(batch, self.rounds, on_turn)]
        return {"rows": rows, "unavailable": dict(contest.unavailable)}

    def _contests(self, device: torch.device) -> Iterator[Contest]:
        for width in self.widths:
            for dtype in self.dtypes:
                for direction in self.directions:
                    shape = Shape(width, self.depth, getattr(torch, dtype), direction, self.use_norm, device)
                    yield Contest(shape, self._chains(width, direction), self._backends(direction))

    def _chains(self, width: int, direction: Direction):
        return chains_for(self.kinds, self.num_features, self.orders, width, self.depth, direction, self.use_norm)

    def _backends(self, direction: Direction) -> list[Backend]:
        return [name for name in self.backends if direction == "forward" or name in TRAINING_BACKENDS]

    def _peak(self, dtype: DTypeName, device: torch.device) -> float:
        """Operations a second in the best of square products and of those that the dense chain takes."""
        squares = [(size, size, size) for size in SQUARES]
        batched = [(batch, width, width) for batch in self.batches for width in self.widths]
        return matmul_flops_per_second(squares + batched, getattr(torch, dtype), self.rounds, device)

    def _row(self, shape: Shape, batch: int, measured: Measured) -> Row:
        return {
            "kind": measured.chain.kind,
            "num_features": measured.chain.num_features,
            "order": measured.chain.order,
            "form": measured.chain.form,
            "width": shape.width,
            "depth": shape.depth,
            "batch": batch,
            "dtype": str(shape.dtype).removeprefix("torch."),
            "backend": measured.backend,
            "direction": shape.direction,
            "seconds": measured.seconds,
            "speedup": None,
            "peak_fraction": None,
            "roofline_fraction": None,
            "num_parameters": measured.num_parameters,
            "peak_memory_bytes": measured.peak_memory_bytes,
            "flops": measured.flops,
            "bytes": bytes_moved(shape, batch, measured.num_parameters),
        }


def speedup(row: Row, rows: list[Row]) -> float | None:
    """How many times faster than the dense chain's best backend on the same rows; None where none was measured."""
    same = ("width", "depth", "batch", "dtype", "direction")
    dense = [r["seconds"] for r in rows if r["kind"] == "linear" and all(r[key] == row[key] for key in same)]
    return min(dense) / row["seconds"] if dense else None


def bytes_moved(shape: Shape, batch: int, num_parameters: int) -> int:
    """What a call has to move at least: parameters and rows in, rows out; in training gradients of both, too.

    The input takes no gradient. What passes between layers is not counted: it may stay in a cache.
    """
    rows, parameters = (2, 1) if shape.direction == "forward" else (3, 2)
    return (rows * batch * shape.width + parameters * num_parameters) * shape.dtype.itemsize


def _name(shape: Shape) -> str:
    return f"{shape.depth}x{shape.width} {str(shape.dtype).removeprefix('torch.')} {shape.direction}"


def _many_compilations(compiles: bool) -> AbstractContextManager[Any]:
    """Every chain is a compilation of the same function: beyond torch's limit it would be evaluated eagerly unsaid."""
    if not compiles:
        return nullcontext()
    patch: Callable[..., AbstractContextManager[Any]] = torch._dynamo.config.patch  # pyright: ignore
    return patch(recompile_limit=10_000, accumulated_recompile_limit=100_000)
