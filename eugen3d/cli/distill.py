"""`eugen3d distill`: a trained run in, a run of EUGen layers out, that every nerfstudio command loads."""

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.models.base_model import Model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.errors import UsageError
from eugen3d.cli.files import write_whole
from eugen3d.cli.plan_file import read_plan
from eugen3d.cli.progress import progress_bar
from eugen3d.cli.renders import file_hash
from eugen3d.cli.runs import Run, load_run, save_run
from eugen3d.cli.teacher_rows import SamplingConfig, hash_seed, sample_rows
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.distill import (
    HELD_OUT,
    Distiller,
    FieldLoss,
    FitConfig,
    LayerReport,
    LayerTask,
    LayerwiseConfig,
    Network,
    RefineConfig,
    RefineState,
    Start,
    refine,
    rows_needed,
)
from eugen3d.layers import EUGenConfig, KindConfig, LayerConfig, fold
from eugen3d.layers.features import Phi
from eugen3d.metrics.cost import dense_parameters
from eugen3d.models.distilled import DistilledModelConfig
from eugen3d.training.distributed import all_reduce_sum, is_main, process_group, rank, world_size

Chosen = dict[str, dict[str, LayerwiseConfig]]
"""How layers are replaced, by network and site."""

CONSOLE = Console()
PLANNED_FLAGS = ("num_features", "order", "layers", "coarse_layers", "phi", "use_norm")
VALIDATION_RAYS = 2048


@dataclass
class Distill:
    """Distil a trained scene into EUGen layers."""

    load_config: Path
    """The teacher's config.yml."""
    output_dir: Path
    """Run folder to make for the student."""
    num_features: int | None = None
    """m: features per degree of every new layer; with phi identity its rank. By default a quarter of a layer's width:
    64 where it has 256 neurons."""
    order: int = 1
    """k: highest degree of the products of projections."""
    layers: tuple[str, ...] = ("auto",)
    """Hidden layers to replace, by index or name. auto takes those as wide as their inputs, that is all but the first
    and the one after a skip connection, and every hidden layer of a field that has fewer than two such; none takes
    none, to refine what was distilled before."""
    coarse_layers: tuple[str, ...] = ("same",)
    """Those of the coarse field, which only says where the fine one looks and can do with less."""
    plan: Path | None = None
    """A plan.json of `eugen3d plan`, which says what to replace, by what and how large, in the place of these flags."""
    phi: Phi = "relu"
    """Map of the features; identity keeps the ReLU outside, which is activation-aware low rank."""
    projection: Start = "picked"
    """Where projections start: the teacher's own neurons that tell most of what is read from them, or a random draw."""
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
        """Run the command; interrupted, it keeps what is done and continues when called again.

        Started by torchrun, all processes share the rows and the gradient steps, and the first prints and writes.
        """
        with process_group(self.device) as device:
            self._run(device)

    def _run(self, device: str) -> None:
        if self.output_dir.exists():
            raise UsageError(f"--output-dir {self.output_dir}: exists already, expected a folder to be made")
        self._refuse_beside_plan()
        layerwise = self._layerwise_config()
        random.seed(self.seed)  # the order in which nerfstudio keeps the images decides which rays a batch has
        run = load_run(self.load_config, device, test_mode="test")
        teacher = teacher_of(run)
        networks = teacher.networks()
        layers = self._chosen_layers(run, networks, layerwise)
        progress = DistillProgress.open(self.output_dir, self._settings(run))
        try:
            self._distil(run, teacher, networks, layers, progress)
        except KeyboardInterrupt:
            CONSOLE.print(f"interrupted; what is done is kept in {progress.path}, the same command continues from it")
            raise
        progress.remove()

    def _distil(
        self, run: Run, teacher: NerfTeacher, networks: dict[str, Network], layers: Chosen, progress: DistillProgress
    ) -> None:
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
            self._refine(run, type(teacher)(student), progress)
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
        rows = sample_rows(_manager(run), teacher, self.sampling, _rows_needed(networks, kinds), self.seed)
        progress.seconds["sample"] += time.perf_counter() - start
        fit = FitConfig(self.fit_steps, self.fit_sweeps, learning_rate=self.fit_learning_rate)
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

    def _refine(self, run: Run, teacher: NerfTeacher, progress: "DistillProgress") -> None:
        """Polish the folded student on the photographs' rays, in place."""
        student = teacher.model
        fold(student)
        teacher.train_dense_alone()
        manager = _manager(run)
        validation = self._batch(manager, 1, VALIDATION_RAYS)

        def train_loss(step: int) -> Tensor:
            rays, batch = self._batch(manager, 2 + step, self.refine_num_rays)
            torch.manual_seed(hash_seed(self.seed, "jitter", step, rank()))
            student.train()
            losses = teacher.losses(rays, batch).values()
            return sum(losses, torch.zeros(())) * (len(rays) * world_size() / self.refine_num_rays)

        def validation_loss() -> float:
            rays, batch = validation
            student.eval()
            with torch.no_grad():
                loss = teacher.color_loss(rays, batch)
            return float(all_reduce_sum(loss.double() * len(rays) / VALIDATION_RAYS))

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
        """This process's part of training batch `number`: the same rays whenever it is asked for."""
        torch.manual_seed(hash_seed(self.seed, "batch", number))
        assert manager.train_pixel_sampler is not None
        manager.train_pixel_sampler.set_num_rays_per_batch(num_rays)
        rays, batch = manager.next_train(number)
        part = slice(rank(), None, world_size())
        return rays[part], {name: value[part] for name, value in batch.items()}

    def _student(
        self, run: Run, config: DistilledModelConfig, teacher: NerfTeacher, networks: dict[str, Network]
    ) -> Model:
        """A model of the student's configuration with these fields, and all else as the teacher has it."""
        dataset = _manager(run).train_dataset
        kwargs = {"num_train_data": len(dataset), "metadata": dataset.metadata, "device": teacher.model.device}
        student = config.setup(scene_box=dataset.scene_box, **kwargs)
        student.update_to_step(run.step)
        state = teacher.model.state_dict()
        for part, path in teacher.paths.items():
            state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
            state |= networks[part].module.state_dict(prefix=f"{path}.")
        student.load_state_dict(state)
        return student.to(run.pipeline.model.device).eval()

    def _save(
        self,
        run: Run,
        config: DistilledModelConfig,
        student: Model,
        progress: "DistillProgress",
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

    def _chosen_layers(self, run: Run, networks: dict[str, Network], layerwise: LayerwiseConfig) -> Chosen:
        """Layers to replace, for every network; none at all for a refinement alone."""
        if self.layers == ("none",):
            if not self.refine_steps:
                raise UsageError("--layers none: found no --refine-steps, expected some: there is nothing to do")
            return {}
        kind = replaced_kind(run)
        if kind is not None:
            raise UsageError(
                f"{self.load_config}: its layers are {kind!r} already, expected 'linear' ones; --layers none refines it"
            )
        if self.plan is not None:
            return self._planned_layers(self.plan, run, networks, layerwise)
        chosen: Chosen = {}
        for part, network in networks.items():
            flag, layers = "--layers", self.layers
            if part == "coarse" and self.coarse_layers != ("same",):
                flag, layers = "--coarse-layers", self.coarse_layers
            try:
                names = network.chosen(None if layers == ("auto",) else layers)
            except ValueError as error:
                raise UsageError(f"{flag}: {error}") from None
            if not names:
                raise UsageError(f"{self.load_config}: {part} has no dense layer to replace, expected at least one")
            chosen[part] = {name: self._sized(layerwise, network.dense(name).out_features) for name in names}
        return chosen

    def _planned_layers(self, path: Path, run: Run, networks: dict[str, Network], layerwise: LayerwiseConfig) -> Chosen:
        """Layers to replace as a plan has them."""
        plan, teacher = read_plan(path, networks)
        if teacher != file_hash(run.checkpoint):
            CONSOLE.print(f"{path}: was made for another checkpoint of such layers", style="yellow", soft_wrap=True)
        return {
            part: {
                site: dataclasses.replace(layerwise, layer=plan[part][site])
                for site in network.sites
                if site in plan.get(part, {})
            }
            for part, network in networks.items()
        }

    def _refuse_beside_plan(self) -> None:
        """Refuse flags that say what a plan says."""
        if self.plan is None:
            return
        for name in PLANNED_FLAGS:
            default = next(field.default for field in dataclasses.fields(self) if field.name == name)
            if (value := getattr(self, name)) != default:
                found = " ".join(value) if isinstance(value, tuple) else str(value)
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} {found}: found beside --plan, which says it already; expected one of the two")

    def _layerwise_config(self) -> LayerwiseConfig:
        for name, least in (
            ("fit_steps", 0),
            ("fit_sweeps", 0),
            ("refine_steps", 0),
            ("refine_num_rays", world_size()),
        ):
            if getattr(self, name) < least:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag}: is {getattr(self, name)}, expected {least} or more")
        try:
            num_features = 1 if self.num_features is None else self.num_features
            layer = EUGenConfig(num_features=num_features, order=self.order, phi=self.phi, use_norm=self.use_norm)
        except ValueError as error:
            raise UsageError(f"--{str(error).replace('_', '-')}") from None
        return LayerwiseConfig(layer, self.projection)

    def _sized(self, layerwise: LayerwiseConfig, width: int) -> LayerwiseConfig:
        """A layer's configuration with as many features as it is to have."""
        if self.num_features is not None:
            return layerwise
        assert isinstance(layerwise.layer, EUGenConfig)
        return replace(layerwise, layer=replace(layerwise.layer, num_features=max(1, width // 4)))

    def _settings(self, run: Run) -> dict[str, Any]:
        """What has to be the same for an interrupted run to be continued."""
        settings = dataclasses.asdict(self)
        for key in ("load_config", "output_dir", "device"):
            settings.pop(key)
        settings["plan"] = None if self.plan is None else file_hash(self.plan)
        stat = run.checkpoint.stat()
        settings["processes"] = world_size()
        return settings | {"layers": list(self.layers), "teacher": [run.checkpoint.name, stat.st_size, stat.st_mtime]}


def _rows_needed(networks: dict[str, Network], kinds: dict[str, dict[str, KindConfig]]) -> int:
    """Rows of a network that no solve can do without, those that are held out included."""
    most = max(
        rows_needed(kind, networks[part].dense(site).in_features)
        for part, layers in kinds.items()
        for site, kind in layers.items()
    )
    return math.ceil(most * HELD_OUT / (HELD_OUT - 1))


def _distilled_config(run: Run) -> DistilledModelConfig:
    """What a student's configuration starts from: the teacher's model with no layer replaced, or the student's own."""
    model = run.config.pipeline.model
    if isinstance(model, DistilledModelConfig):
        return replace(model)
    return DistilledModelConfig.of(model)


def replaced_kind(run: Run) -> str | None:
    """The kind of the layers that stand where dense ones would; None where all are dense."""
    model = run.config.pipeline.model
    if isinstance(model, DistilledModelConfig):
        return "distilled"
    layer = getattr(model, "layer", None)
    return layer.kind if isinstance(layer, LayerConfig) and layer.kind != "linear" else None


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
