"""`eugen3d bench parameters`: how large whole models are before and after, beside the paper's figures."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from eugen3d.cli.bench.cases import CASES, Case, PaperFigure
from eugen3d.cli.bench.models import ModelName, UnavailableError, build_model, optional_versions
from eugen3d.cli.conditions import now, versions
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.formats import si
from eugen3d.layers import EUGenConfig, convert, fold
from eugen3d.metrics.cost import flops_per_row

STATES = ("dense", "converted", "folded")
BYTES_PER_PARAMETER = 4  # float32
AGREEMENT = 0.03
"""Relative difference up to which a figure of the paper counts as met."""


@dataclass
class BenchParameters:
    """Count parameters and FLOPs of whole models before, after and folded, beside the paper's figures.

    The models are built without weights: nothing is downloaded, and no layer is fitted.
    """

    models: tuple[ModelName, ...] = get_args(ModelName)
    """Which models."""
    num_features: int | None = None
    """m of the replaced layers; by default the paper's for each model. With another m nothing is compared."""
    output: Path | None = None
    """A JSON file for the result."""

    def main(self) -> None:
        """Run the command."""
        self.check()
        console = Console()
        with console.status("counting"):
            rows = [measure(case) for case in self._cases()]
        result = {"date": now(), "versions": versions(torch.device("cpu")) | optional_versions(), "rows": rows}
        if self.output:
            write_whole(self.output, json.dumps(result, indent=2) + "\n")
        console.print(_table(rows))
        for row in rows:
            for line in _remarks(row):
                console.print(
                    f"{row['model']}, m = {row['num_features']}: {line}", highlight=False, markup=False, soft_wrap=True
                )
        if self.output:
            console.print(f"wrote {self.output}", highlight=False, soft_wrap=True)

    def check(self) -> None:
        """Refuse settings that cannot be used, before anything is built."""
        if self.num_features is not None and self.num_features < 1:
            raise UsageError(f"--num-features {self.num_features}: expected at least 1")
        if not self.models:
            raise UsageError(f"--models: names none, expected some of {', '.join(get_args(ModelName))}")
        if self.output is not None and self.output.is_dir():
            raise UsageError(f"--output {self.output}: is a folder, expected a file's name")

    def _cases(self) -> list[Case]:
        """The cases of the chosen models with the number of features that was asked for, every one once.

        With features other than the paper's there is nothing to compare.
        """
        cases: dict[tuple[str, str, int], Case] = {}
        for case in CASES:
            if case.model in self.models:
                changed = self.num_features not in (None, case.num_features)
                adapted = replace(case, num_features=self.num_features, paper=None) if changed else case
                key = (adapted.model, adapted.layers, adapted.num_features)
                if not changed or key not in cases:
                    cases[key] = adapted
        return list(cases.values())


def measure(case: Case) -> dict[str, Any]:
    """Count one case: a row of the result file."""
    # How projections are drawn does not change their number, and Gaussian ones need no orthogonalisation.
    config = EUGenConfig(case.num_features, phi=case.phi, projection="gaussian")
    row = {"model": case.model, "layers": case.layers, "kind": "eugen"}
    row |= {"num_features": case.num_features, "order": config.order}
    try:
        model = build_model(case.model)
    except UnavailableError as error:
        return row | {"num_parameters": None, "bytes": None, "flops": None, "paper": None, "skipped": str(error)}
    counts = {"dense": _count(model)}
    model = convert(model, config, lambda _, name: re.fullmatch(case.names, name) is not None, patterns=case.patterns)
    counts["converted"] = _count(model)
    counts["folded"] = _count(fold(model))
    parameters = {state: counts[state][0] for state in STATES}
    return row | {
        "num_parameters": parameters,
        "bytes": {state: BYTES_PER_PARAMETER * count for state, count in parameters.items()},
        "flops": {state: counts[state][1] for state in STATES},
        "paper": None if case.paper is None else _compare(case.paper, parameters),
        "skipped": None,
    }


def _count(model: nn.Module) -> tuple[int, int]:
    """Parameters, shared ones once, and FLOPs of one row in every dense layer."""
    return sum(parameter.numel() for parameter in model.parameters()), flops_per_row(model)


def _compare(paper: PaperFigure, parameters: dict[str, int]) -> dict[str, Any]:
    """The paper's number beside ours, and their relative difference."""
    dense, left = parameters["dense"], parameters[paper.state]
    ours = {
        "megabytes": BYTES_PER_PARAMETER * left / 1e6,
        "parameters": left,
        "saved_bytes": BYTES_PER_PARAMETER * (dense - left),
        "saved_share": 1 - left / dense,
        "share": left / dense,
    }[paper.quantity]
    difference = (ours - paper.value) / paper.value
    return {
        "figure": paper.figure,
        "value": paper.value,
        "ours": ours,
        "difference": difference,
        "assumption": paper.assumption,
        "state": paper.state,
        "remark": paper.remark,
    }


def _remarks(row: dict[str, Any]) -> list[str]:
    """What there is to say of a row beside its numbers."""
    if row["skipped"]:
        return [f"skipped: {row['skipped']}"]
    if row["paper"] is None:
        return []
    paper = row["paper"]
    verdict = (
        "gives the paper's figure" if abs(paper["difference"]) <= AGREEMENT else "does not give the paper's figure"
    )
    return [f"{verdict} ({paper['figure']}: {paper['assumption']}); {paper['remark']}"]


def _table(rows: list[dict[str, Any]]) -> Table:
    caption = "float32; FLOPs of one row (token, sample) in the dense layers; the paper is EUGens (2025)"
    table = Table(title="Parameters", caption=caption, box=SIMPLE_HEAD, padding=(0, 0, 1, 1), pad_edge=False)
    table.add_column("model, replaced layers")
    table.add_column("")
    for heading in ("params", "size", "FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("paper, ours")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    """One row of the table: three lines, for the model as it was, converted and folded."""
    first = f"{row['model']}, m = {row['num_features']}\n{row['layers']}"
    if row["skipped"]:
        return [first, "skipped"]
    numbers = [
        "\n".join(si(row[key][state], unit) for state in STATES)
        for key, unit in (("num_parameters", ""), ("bytes", "B"), ("flops", ""))
    ]
    return [first, "\n".join(STATES), *numbers, "" if row["paper"] is None else _paper_cell(row["paper"])]


def _paper_cell(paper: dict[str, Any]) -> str:
    ours = f"{_short(paper['ours'])} ({paper['difference']:+.1%}), {paper['state']}"
    return f"{_short(paper['value'])} {paper['figure']}\n{paper['assumption']}\n{ours}"


def _short(value: float) -> str:
    return si(value) if value >= 1000 else f"{value:.4g}"
