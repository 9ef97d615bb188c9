"""`eugen3d distill`: a trained run in, a run of EUGen layers out, that every nerfstudio command loads."""

import copy
import dataclasses
import json
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.runs import Run, load_run, save_run
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.distill import (
    FieldDistiller,
    FitConfig,
    LayerReport,
    LayerTask,
    LayerwiseConfig,
    RefineConfig,
    RefineState,
    chosen_layers,
    refine,
    rows_needed,
)
from eugen3d.distill.layerwise import Start
from eugen3d.fields import NerfField
from eugen3d.layers import EUGenConfig, LayerConfig, fold
from eugen3d.layers.features import Phi
from eugen3d.models.nerf import EUGenNerfModel, EUGenNerfModelConfig

CONSOLE = Console()
VALIDATION_RAYS = 2048


@dataclass
class Distill:
    """Distil a trained scene into EUGen layers."""

    load_config: Path
    """The teacher's config.yml."""
    output_dir: Path
    """Run folder to make for the student."""
    num_features: int = 64
    """m: features per degree of every new layer; with phi identity its rank."""
    order: int = 1
    """k: highest degree of the products of projections."""
    layers: tuple[str, ...] = ("auto",)
    """Trunk layers to replace, by index or name. auto takes all but the first and the one after the skip connection;
    none takes none, to refine what was distilled before."""
    coarse_layers: tuple[str, ...] = ("same",)
    """Those of the coarse field, which only says where the fine one looks and can do with less."""
    phi: Phi = "relu"
    """Map of the features; identity keeps the ReLU outside, which is activation-aware low rank."""
    projection: Start = "picked"
    """Where projections start: the teacher's own neurons that span the others best, or a random draw."""
    use_norm: bool = False
    """Project the input's norm too."""
    fit_steps: int = 0
    """Gradient steps on every layer alone, for the field's opacity and colour at the rows; 0 for the closed form."""
    fit_sweeps: int = 2
    """Further rounds of as many steps over all layers, replaced or dense, one at a time."""
    fit_learning_rate: float = 3e-3
    """Learning rate of these, Muon's."""
    refine_steps: int = 0
    """Gradient steps end to end on the photographs' rays, over the folded student."""
    refine_num_rays: int = 512
    """Rays per such step."""
    refine_learning_rate: float = 4e-4
    """Learning rate of these, Muon's."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Where the rows come from."""
    seed: int = 0
    """Seed of rays, draws and batches."""
    device: str = "cpu"
    """cpu or cuda."""

    def main(self) -> None:
        """Run the command; interrupted, it keeps what is done and continues when called again."""
        if self.output_dir.exists():
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")
        layerwise = self._layerwise_config()
        random.seed(self.seed)  # the order in which nerfstudio keeps the images decides which rays a batch has
        run = load_run(self.load_config, self.device, test_mode="test")
        teacher = run.pipeline.model
        if not isinstance(teacher, EUGenNerfModel):
            raise UsageError(f"{self.load_config}: method {run.config.method_name!r}, expected an eugen-nerf teacher")
        indices = self._chosen_layers(teacher)
        progress = DistillProgress.open(self.output_dir, self._settings(run))
        try:
            self._distil(run, teacher, indices, layerwise, progress)
        except KeyboardInterrupt:
            CONSOLE.print(f"interrupted; what is done is kept in {progress.path}, the same command continues from it")
            raise
        progress.remove()

    def _distil(
        self,
        run: Run,
        teacher: EUGenNerfModel,
        indices: dict[str, tuple[int, ...]],
        layerwise: LayerwiseConfig,
        progress: "DistillProgress",
    ) -> None:
        model = run.config.pipeline.model
        assert isinstance(model, EUGenNerfModelConfig)
        config = dataclasses.replace(model)
        if indices:
            config.layer, config.replaced_layers = LayerConfig("eugen", layerwise.layer), indices["fine"]
            config.coarse_replaced_layers = indices["coarse"] if indices["coarse"] != indices["fine"] else None
        fields = self._solve(run, teacher, indices, layerwise, progress)
        counts = {"teacher": _count(teacher.fields), "student": _count(fields)}
        student = self._student(run, config, fields)
        if self.refine_steps:
            config.merged = True
            self._refine(run, student, progress)
        counts["folded"] = _count(fold(copy.deepcopy(student.fields)))
        self._save(run, config, student, progress, counts)

    def _solve(
        self,
        run: Run,
        teacher: EUGenNerfModel,
        indices: dict[str, tuple[int, ...]],
        layerwise: LayerwiseConfig,
        progress: "DistillProgress",
    ) -> nn.ModuleDict:
        """The fields with their layers replaced, one after the other; what is done comes from the progress file."""
        if not indices:
            return teacher.fields
        fields = progress.restore_layers(teacher.fields, indices, layerwise.layer)
        if progress.reports:
            return fields
        start = time.perf_counter()
        needed = max(_rows_needed(_field(teacher.fields, name), indices[name], layerwise) for name in fields)
        rows = sample_rows(_manager(run), teacher, self.sampling, needed, self.seed)
        progress.seconds["sample"] += time.perf_counter() - start
        fit = FitConfig(self.fit_steps, self.fit_sweeps, learning_rate=self.fit_learning_rate)
        distillers = {
            name: FieldDistiller(
                _field(teacher.fields, name), _field(fields, name), indices[name], rows[name], layerwise, fit
            )
            for name in fields
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
            self._entry(name, report) for name, distiller in distillers.items() for report in distiller.reports()
        ]
        return fields

    def _carry_out(
        self,
        field: str,
        task: LayerTask,
        distiller: FieldDistiller,
        progress: DistillProgress,
        on_step: Callable[[], None],
    ) -> None:
        """Do what is to be done to one layer, unless it was done before, and keep the layer."""
        name = f"{field}.{task}"
        if name in progress.done:
            return
        start = time.perf_counter()
        distiller.run(task, torch.Generator().manual_seed(hash_seed(self.seed, name)), on_step)
        progress.seconds["fit" if task.action == "fit" else "solve"] += time.perf_counter() - start
        progress.add(name, f"{field}.{task.layer}", distiller.student.chains[task.layer])

    def _effort(self, task: LayerTask) -> int:
        return self.fit_steps if task.action == "fit" else 1

    def _entry(self, field: str, report: LayerReport) -> dict[str, Any]:
        """A layer's row in `distill.json`."""
        return {
            "name": f"{field}.trunk.{report.index}",
            "num_features": self.num_features,
            "order": self.order,
            "rows": report.rows,
            "relative_error": report.relative_error,
        }

    def _refine(self, run: Run, student: EUGenNerfModel, progress: "DistillProgress") -> None:
        """Polish the folded student on the photographs' rays, in place."""
        fold(student.fields)
        manager = _manager(run)
        validation = self._batch(manager, 1, VALIDATION_RAYS)

        def train_loss(step: int) -> Tensor:
            rays, batch = self._batch(manager, 2 + step, self.refine_num_rays)
            torch.manual_seed(hash_seed(self.seed, "jitter", step))
            return sum(student.train().get_loss_dict(student(rays), batch).values(), torch.zeros(()))

        def validation_loss() -> float:
            rays, batch = validation
            with torch.no_grad():
                return float(student.eval().get_loss_dict(student(rays), batch)["rgb_loss_fine"])

        state = progress.restore_refine(student)
        config = RefineConfig(steps=self.refine_steps, learning_rate=self.refine_learning_rate)
        with progress_bar(CONSOLE, transient=False) as bar:
            task = bar.add_task("refining end to end", total=self.refine_steps, completed=state.step)
            start = time.perf_counter()

            def on_step(state: RefineState) -> None:
                nonlocal start
                bar.update(task, completed=state.step)
                if state.step % config.check_every == 0:
                    progress.seconds["refine"] += time.perf_counter() - start
                    start = time.perf_counter()
                    progress.save_refine(student, state)

            try:
                refine(student, train_loss, validation_loss, config, state, on_step)
            except ValueError as error:
                raise UsageError(f"{self.load_config}: --refine-steps: {error}") from None
            progress.seconds["refine"] += time.perf_counter() - start

    def _batch(self, manager: VanillaDataManager, number: int, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Training batch `number`: the same rays whenever it is asked for."""
        torch.manual_seed(hash_seed(self.seed, "batch", number))
        assert manager.train_pixel_sampler is not None
        manager.train_pixel_sampler.set_num_rays_per_batch(num_rays)
        return manager.next_train(number)

    def _student(self, run: Run, config: EUGenNerfModelConfig, fields: nn.ModuleDict) -> EUGenNerfModel:
        """A model of the student's configuration with these fields."""
        dataset = _manager(run).train_dataset
        student = config.setup(scene_box=dataset.scene_box, num_train_data=len(dataset), metadata=dataset.metadata)
        student.fields.load_state_dict(fields.state_dict())
        return student.to(run.pipeline.model.device).eval()

    def _save(
        self,
        run: Run,
        config: EUGenNerfModelConfig,
        student: EUGenNerfModel,
        progress: "DistillProgress",
        counts: dict[str, int],
    ) -> None:
        run.config.pipeline.model = config
        state = {f"_model.{key}": value for key, value in student.state_dict().items()}
        save_run(run.config, state, run.step, self.output_dir)
        result = {"layers": progress.reports, "num_parameters": counts, "seconds": dict(progress.seconds)}
        write_whole(self.output_dir / "distill.json", json.dumps(result, indent=2) + "\n")
        _print_result(result)
        CONSOLE.print(f"wrote {self.output_dir}/config.yml and distill.json", soft_wrap=True)

    def _chosen_layers(self, teacher: EUGenNerfModel) -> dict[str, tuple[int, ...]]:
        """Trunk layers to replace, for every field; none at all for a refinement alone."""
        if self.layers == ("none",):
            if not self.refine_steps:
                raise UsageError("--layers none: found no --refine-steps, expected some: there is nothing to do")
            return {}
        if teacher.config.layer.kind != "linear":
            raise UsageError(
                f"{self.load_config}: its layers are {teacher.config.layer.kind!r} already, expected 'linear' "
                "ones; --layers none refines it"
            )
        coarse = self.layers if self.coarse_layers == ("same",) else self.coarse_layers
        indices = {}
        for name, flag, layers in (("fine", "--layers", self.layers), ("coarse", "--coarse-layers", coarse)):
            field = _field(teacher.fields, name)
            try:
                indices[name] = chosen_layers(field, None if layers == ("auto",) else layers)
            except ValueError as error:
                raise UsageError(f"{flag}: {error}") from None
            if not indices[name]:
                raise UsageError(f"{self.load_config}: {name} has no dense layer to replace, expected at least one")
        return indices

    def _layerwise_config(self) -> LayerwiseConfig:
        for name in ("fit_steps", "fit_sweeps", "refine_steps"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')}: is {getattr(self, name)}, expected 0 or more")
        try:
            layer = EUGenConfig(num_features=self.num_features, order=self.order, phi=self.phi, use_norm=self.use_norm)
        except ValueError as error:
            raise UsageError(f"--{str(error).replace('_', '-')}") from None
        return LayerwiseConfig(layer, self.projection)

    def _settings(self, run: Run) -> dict[str, Any]:
        """What has to be the same for an interrupted run to be continued."""
        settings = dataclasses.asdict(self)
        for key in ("load_config", "output_dir", "device"):
            settings.pop(key)
        stat = run.checkpoint.stat()
        return settings | {"layers": list(self.layers), "teacher": [run.checkpoint.name, stat.st_size, stat.st_mtime]}


def hash_seed(*parts: Any) -> int:
    """A seed for each thing that is drawn, the same in every process."""
    return zlib.crc32(repr(parts).encode())


def _rows_needed(field: NerfField, indices: tuple[int, ...], config: LayerwiseConfig) -> int:
    widths = [field.get_parameter(f"trunk.{index}.0.weight").shape[1] for index in indices]
    return max(rows_needed(config.layer, width) for width in widths)


def _field(fields: nn.ModuleDict, name: str) -> NerfField:
    field = fields[name]
    assert isinstance(field, NerfField)
    return field


def _manager(run: Run) -> VanillaDataManager:
    manager = run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    return manager


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _print_result(result: dict[str, Any]) -> None:
    table = Table("layer", "m", "k", "rows", "relative error", title="distilled layers")
    for layer in result["layers"]:
        table.add_row(
            layer["name"],
            str(layer["num_features"]),
            str(layer["order"]),
            f"{layer['rows']:,}",
            f"{layer['relative_error']:.4f}",
        )
    CONSOLE.print(table)
    counts = result["num_parameters"]
    CONSOLE.print(
        f"parameters: teacher {counts['teacher']:,}, student {counts['student']:,}, "
        f"folded {counts['folded']:,} ({counts['folded'] / counts['teacher']:.3f} of the teacher's)"
    )
    CONSOLE.print("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["seconds"].items()))
