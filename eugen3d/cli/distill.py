"""`eugen3d distill`: a trained run in, a run of EUGen layers out, that every nerfstudio command loads."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from nerfstudio.models.base_model import Model, ModelConfig
from rich.console import Console
from rich.table import Table

from eugen3d.cli.distill_layers import Chosen, choose_layers, needed_rows
from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.distill_sources import DistillSource, NerfSource
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.narrow import narrow_config, train_narrow
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import load_run, save_run
from eugen3d.cli.sdf_distillation import SdfSource
from eugen3d.cli.sdf_runs import is_sdf_run
from eugen3d.cli.siren_distillation import SirenSource
from eugen3d.cli.siren_runs import is_siren_run
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.distill import Distiller, LayerReport, LayerTask, Network
from eugen3d.metrics.cost import dense_parameters
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.training.distributed import is_main, process_group

CONSOLE = Console()


@dataclass
class Distill(DistillSettings):
    """Distil a trained scene into EUGen layers."""

    def main(self) -> None:
        """Run the command; interrupted, it keeps what is done and continues when called again.

        Started by torchrun, all processes share the rows and the gradient steps, and the first prints and writes.
        """
        with process_group(self.device) as device:
            self._run(device)

    def _run(self, device: str) -> None:
        self.check()
        random.seed(self.seed)  # the order in which nerfstudio keeps the images decides which rays a batch has
        source = open_source(self, device)
        networks = source.networks_of(source.model)
        layers = choose_layers(self, source.config.pipeline.model, source.checkpoint, networks)
        progress = DistillProgress.open(self.output_dir, self.of_call(source.checkpoint))
        try:
            self._distil(source, networks, layers, progress)
        except KeyboardInterrupt:
            CONSOLE.print(
                f"interrupted; what is done is kept in {progress.file.path}, the same command continues from it"
            )
            raise
        progress.remove()

    def _distil(
        self, source: DistillSource, networks: dict[str, Network], layers: Chosen, progress: DistillProgress
    ) -> None:
        if self.kind == "narrow" and layers:
            config = narrow_config(self, source.config)
            torch.manual_seed(hash_seed(self.seed, "narrow"))
            student = source.set_up(config)
            students = source.networks_of(student)
            train_narrow(self, networks, students, source.rows(1, progress), source.make_loss, progress)
        else:
            config = _distilled_config(source.config.pipeline.model)
            if layers:
                config.layers = {
                    f"{source.paths[part]}.{site}": one.layer
                    for part, chosen in layers.items()
                    for site, one in chosen.items()
                }
            students = self._solve(source, networks, layers, progress)
            student = _student(source, config, students)
        counts = {"teacher": _count(networks), "student": _count(students)}
        if self.refine_steps:
            config.merged = True
            source.refine(student, progress)
        counts["folded"] = source.count_folded(student)
        self._save(source, config, student, progress, counts)

    def _solve(
        self, source: DistillSource, networks: dict[str, Network], layers: Chosen, progress: DistillProgress
    ) -> dict[str, Network]:
        """The networks with their layers replaced, one after the other; what is done comes from the progress file."""
        if not layers:
            return networks
        kinds = {part: {site: one.layer for site, one in chosen.items()} for part, chosen in layers.items()}
        students = progress.restore_layers(networks, kinds)
        if progress.reports:
            return students
        rows = source.rows(needed_rows(networks, layers), progress)
        fit = self.fit_config()
        distillers = {
            part: Distiller(networks[part], students[part], layers[part], rows[part], fit, source.make_loss)
            for part in networks
        }
        with progress_bar(CONSOLE, transient=False) as bar:
            total = sum(self._effort(task) for distiller in distillers.values() for task in distiller.tasks)
            shown = bar.add_task("solving", total=total)
            for name, distiller in distillers.items():
                for task in distiller.tasks:
                    reached = bar.tasks[shown].completed + self._effort(task)
                    bar.update(shown, description=f"{name}.{task}")
                    try:
                        self._carry_out(name, task, distiller, progress, lambda: bar.advance(shown))
                    except ValueError as error:
                        raise UsageError(f"{self.load_config}: {name}: {error}") from None
                    bar.update(shown, completed=reached)
        progress.reports = [
            self._entry(name, distiller, report, progress)
            for name, distiller in distillers.items()
            for report in distiller.reports()
        ]
        return students

    def _carry_out(
        self,
        part: str,
        task: LayerTask,
        distiller: Distiller,
        progress: DistillProgress,
        on_step: Callable[[], None],
    ) -> None:
        """Do what is to be done to one layer, unless it was done before, and keep the layer."""
        name = f"{part}.{task}"
        if name in progress.done:
            return
        start = time.perf_counter()
        found = distiller.run(task, torch.Generator().manual_seed(hash_seed(self.seed, name)), on_step)
        progress.seconds["fit" if task.action == "fit" else "solve"] += time.perf_counter() - start
        progress.add(name, f"{part}.{task.layer}", distiller.student.layer(task.layer), found)

    def _effort(self, task: LayerTask) -> int:
        return self.fit_steps if task.action == "fit" else 1

    def _entry(self, part: str, distiller: Distiller, report: LayerReport, progress: DistillProgress) -> dict[str, Any]:
        """A layer's row in `distill.json`."""
        name = f"{part}.{report.name}"
        return {
            "name": name,
            "num_features": distiller.layers[report.name].layer.inner_width // self.order,
            "order": self.order,
            "rows": distiller.num_rows,
            "relative_error": report.relative_error,
        } | progress.conditioning[name]

    def _save(
        self,
        source: DistillSource,
        config: ModelConfig,
        student: Model,
        progress: DistillProgress,
        counts: dict[str, int],
    ) -> None:
        if not is_main():
            return
        source.config.pipeline.model = config
        save_run(source.config, source.state(student), source.step, self.output_dir)
        result = {"layers": progress.reports, "num_parameters": counts, "seconds": dict(progress.seconds)}
        write_whole(self.output_dir / "distill.json", json.dumps(result, indent=2) + "\n")
        _print_result(result)
        CONSOLE.print(f"wrote {self.output_dir}/config.yml and distill.json", soft_wrap=True)


def open_source(settings: DistillSettings, device: str) -> DistillSource:
    """The run that `--load-config` names, whichever method it is of.

    Raises:
        UsageError: it cannot be loaded, or is of a method that is not known.
    """
    if is_sdf_run(settings.load_config):
        return SdfSource(settings, device)
    if is_siren_run(settings.load_config):
        return SirenSource(settings, device)
    return NerfSource(settings, load_run(settings.load_config, device, test_mode="test"))


def _student(source: DistillSource, config: DistilledModelConfig, networks: Mapping[str, Network]) -> Model:
    """A model of the student's configuration with these networks, and all else as the teacher has it."""
    student = source.set_up(config)
    for part, path in source.paths.items():
        student.get_submodule(path).load_state_dict(networks[part].module.state_dict())
    return student


def _distilled_config(model: ModelConfig) -> DistilledModelConfig:
    """What a student's configuration starts from: the teacher's model with no layer replaced, or the student's own."""
    return replace(model) if isinstance(model, DistilledModelConfig) else DistilledModelConfig.of(model)


def _count(networks: Mapping[str, Network]) -> int:
    """Parameters of the networks' layers; hash grids and embeddings are none."""
    return sum(p.numel() for network in networks.values() for p in dense_parameters(network.module))


def _print_result(result: dict[str, Any]) -> None:
    table = Table("layer", "m", "k", "rows", "ridge", "condition", "relative error", title="distilled layers")
    for layer in result["layers"]:
        table.add_row(
            layer["name"],
            str(layer["num_features"]),
            str(layer["order"]),
            f"{layer['rows']:,}",
            f"{layer['ridge']:.0e}",
            f"{layer['condition']:.1e}",
            f"{layer['relative_error']:.4f}",
        )
    CONSOLE.print(table)
    counts = result["num_parameters"]
    CONSOLE.print(
        f"parameters of the layers: teacher {counts['teacher']:,}, student {counts['student']:,}, "
        f"folded {counts['folded']:,} ({counts['folded'] / counts['teacher']:.3f} of the teacher's)"
    )
    CONSOLE.print("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["seconds"].items()))
