"""`eugen3d distill`: a trained run in, a run of EUGen layers out, that every nerfstudio command loads."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.models.base_model import Model, ModelConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from eugen3d.cli.distill_layers import Chosen, choose_layers, needed_rows
from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.narrow import narrow_config, train_narrow
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.refinement import refine_student
from eugen3d.cli.runs import Run, load_run, save_run
from eugen3d.cli.teacher_rows import hash_seed, sample_rows
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.distill import Distiller, FieldLoss, FitConfig, LayerReport, LayerTask, Network
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
        run = load_run(self.load_config, device, test_mode="test")
        teacher = teacher_of(run)
        networks = teacher.networks()
        layers = choose_layers(self, run, networks)
        progress = DistillProgress.open(self.output_dir, self.of_call(run))
        try:
            self._distil(run, teacher, networks, layers, progress)
        except KeyboardInterrupt:
            CONSOLE.print(f"interrupted; what is done is kept in {progress.path}, the same command continues from it")
            raise
        progress.remove()

    def _distil(
        self, run: Run, teacher: NerfTeacher, networks: dict[str, Network], layers: Chosen, progress: DistillProgress
    ) -> None:
        if self.kind == "narrow" and layers:
            self._distil_narrow(run, teacher, networks, progress)
            return
        config = _distilled_config(run)
        if layers:
            config.layers = {
                f"{teacher.paths[part]}.{site}": one.layer
                for part, chosen in layers.items()
                for site, one in chosen.items()
            }
        students = self._solve(run, teacher, networks, layers, progress)
        counts = {"teacher": _count(networks), "student": _count(students)}
        student = self._student(run, config, teacher, students)
        if self.refine_steps:
            config.merged = True
            refine_student(self, run, type(teacher)(student), progress)
        counts["folded"] = _count(type(teacher)(student).folded())
        self._save(run, config, student, progress, counts)

    def _distil_narrow(
        self, run: Run, teacher: NerfTeacher, networks: dict[str, Network], progress: DistillProgress
    ) -> None:
        """A thinner network in the teacher's place, no layer of which comes from it."""
        config = narrow_config(self, run)
        torch.manual_seed(hash_seed(self.seed, "narrow"))
        student = self._set_up(run, config)
        students = type(teacher)(student).networks()
        start = time.perf_counter()
        rows = sample_rows(_manager(run), teacher, self.sampling, 1, self.seed)
        progress.seconds["sample"] += time.perf_counter() - start
        train_narrow(self, networks, students, rows, progress)
        counts = {"teacher": _count(networks), "student": _count(students)}
        if self.refine_steps:
            config.merged = True
            refine_student(self, run, type(teacher)(student), progress)
        counts["folded"] = _count(type(teacher)(student).folded())
        self._save(run, config, student, progress, counts)

    def _solve(
        self, run: Run, teacher: NerfTeacher, networks: dict[str, Network], layers: Chosen, progress: DistillProgress
    ) -> dict[str, Network]:
        """The networks with their layers replaced, one after the other; what is done comes from the progress file."""
        if not layers:
            return networks
        kinds = {part: {site: one.layer for site, one in chosen.items()} for part, chosen in layers.items()}
        students = progress.restore_layers(networks, kinds)
        if progress.reports:
            return students
        start = time.perf_counter()
        rows = sample_rows(_manager(run), teacher, self.sampling, needed_rows(networks, layers), self.seed)
        progress.seconds["sample"] += time.perf_counter() - start
        fit = FitConfig(self.fit_steps, self.fit_sweeps, self.fit_target)
        if self.fit_learning_rate is not None:
            fit = replace(fit, learning_rate=self.fit_learning_rate)
        distillers = {
            part: Distiller(networks[part], students[part], layers[part], rows[part], fit, FieldLoss)
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

    def _student(
        self, run: Run, config: DistilledModelConfig, teacher: NerfTeacher, networks: dict[str, Network]
    ) -> Model:
        """A model of the student's configuration with these fields, and all else as the teacher has it."""
        student = self._set_up(run, config)
        state = teacher.model.state_dict()
        for part, path in teacher.paths.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
            state |= networks[part].module.state_dict(prefix=f"{path}.")
        student.load_state_dict(state)
        return student

    def _set_up(self, run: Run, config: ModelConfig) -> Model:
        """A freshly drawn model for the run's scene."""
        dataset, device = _manager(run).train_dataset, run.pipeline.model.device
        kwargs = {"num_train_data": len(dataset), "metadata": dataset.metadata, "device": device}
        model = config.setup(scene_box=dataset.scene_box, **kwargs)
        model.update_to_step(run.step)
        return model.to(device).eval()

    def _save(
        self,
        run: Run,
        config: ModelConfig,
        student: Model,
        progress: DistillProgress,
        counts: dict[str, int],
    ) -> None:
        if not is_main():
            return
        run.config.pipeline.model = config
        state = {f"_model.{key}": value for key, value in student.state_dict().items()}
        save_run(run.config, state, run.step, self.output_dir)
        result = {"layers": progress.reports, "num_parameters": counts, "seconds": dict(progress.seconds)}
        write_whole(self.output_dir / "distill.json", json.dumps(result, indent=2) + "\n")
        _print_result(result)
        CONSOLE.print(f"wrote {self.output_dir}/config.yml and distill.json", soft_wrap=True)


def _distilled_config(run: Run) -> DistilledModelConfig:
    """What a student's configuration starts from: the teacher's model with no layer replaced, or the student's own."""
    model = run.config.pipeline.model
    if isinstance(model, DistilledModelConfig):
        return replace(model)
    return DistilledModelConfig.of(model)


def _manager(run: Run) -> VanillaDataManager:
    manager = run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    return manager


def _count(networks: Mapping[str, Network | nn.Module]) -> int:
    """Parameters of the networks' layers; hash grids and embeddings are none."""
    modules = (part.module if isinstance(part, Network) else part for part in networks.values())
    return sum(p.numel() for module in modules for p in dense_parameters(module))


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
