"""What `eugen3d distill` has to know of a run, whichever method it is of."""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.errors import UsageError
from eugen3d.cli.refinement import refine_student
from eugen3d.cli.runs import Run
from eugen3d.cli.sdf_runs import set_up_model
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.distill import FieldLoss, Loss, Network, Rows
from eugen3d.metrics.cost import dense_parameters
from eugen3d.models.distilled import settings_of
from eugen3d.models.occupancy import NO_OCCUPANCY


class DistillSource(ABC):
    """A trained run, seen as networks to distil at rows."""

    config: TrainerConfig
    """What rebuilds it."""
    checkpoint: Path
    step: int
    model: Model
    """In evaluation mode."""
    paths: Mapping[str, str]
    """Where each network stands in the model."""
    make_loss: Callable[[Network, Rows], Loss]
    """What students are fitted for: how far they are from a teacher at rows."""

    @abstractmethod
    def networks_of(self, model: Model) -> dict[str, Network]:
        """The networks of this model, or of one that is like it."""

    @abstractmethod
    def rows(self, needed: int, progress: DistillProgress) -> dict[str, Rows]:
        """Where the networks are compared; at least so many for each."""

    @abstractmethod
    def make_model(self, config: ModelConfig) -> Model:
        """A freshly drawn model for the run's scene."""

    @abstractmethod
    def refine(self, student: Model, progress: DistillProgress) -> None:
        """Polish a student end to end, in place; it ends folded. Interrupted, it goes on from its last check."""

    @abstractmethod
    def folded_of(self, model: Model) -> dict[str, nn.Module]:
        """Folded copies of a model's networks."""

    def state(self, student: Model) -> dict[str, Tensor]:
        """What a student's checkpoint holds."""
        return {f"_model.{key}": value for key, value in student.state_dict().items()}

    def set_up(self, config: ModelConfig) -> Model:
        """A model for the run's scene, in evaluation mode on the run's device.

        Its networks are freshly drawn; what is beside them, grids, proposals and appearances, is the run's own.
        """
        model = self.make_model(config)
        model.update_to_step(self.step)
        networks = tuple(f"{path}." for path in self.paths.values())
        rest = {key: value for key, value in self.model.state_dict().items() if not key.startswith(networks)}
        model.load_state_dict(model.state_dict() | rest)
        return model.to(self.model.device).eval()

    def count_folded(self, model: Model) -> int:
        """Parameters of a model's folded networks."""
        return sum(p.numel() for module in self.folded_of(model).values() for p in dense_parameters(module))


class SingleFieldSource(DistillSource):
    """A run of one field, which depends on no scene and whose rows are drawn once."""

    paths = MappingProxyType({"field": "field"})
    _rows: dict[str, Rows] | None = None

    def rows(self, needed: int, progress: DistillProgress) -> dict[str, Rows]:
        if self._rows is None:
            start = time.perf_counter()
            self._rows = {"field": self._draw_rows(needed)}
            progress.seconds["sample"] += time.perf_counter() - start
        return self._rows

    def make_model(self, config: ModelConfig) -> Model:
        return set_up_model(config)

    @abstractmethod
    def _draw_rows(self, needed: int) -> Rows:
        """This process's rows; those of all processes are the same ones for the same seed."""


class NerfSource(DistillSource):
    """A run that renders fields along rays (see `eugen3d.cli.teachers`).

    Raises:
        UsageError: its model is of a class that is not known.
    """

    make_loss = FieldLoss

    def __init__(self, settings: DistillSettings, run: Run) -> None:
        self.settings, self.run, self.teacher = settings, run, teacher_of(run)
        self.config, self.checkpoint, self.step = run.config, run.checkpoint, run.step
        self.model, self.paths = run.pipeline.model, self.teacher.paths
        self.teacher.drop_grid()  # of a student it would not know
        model = settings_of(self.config.pipeline.model)
        if hasattr(model, "occupancy"):
            model.occupancy = NO_OCCUPANCY
        manager = run.pipeline.datamanager
        assert isinstance(manager, VanillaDataManager)
        self.manager = manager

    def networks_of(self, model: Model) -> dict[str, Network]:
        return self._like(model).networks()

    def rows(self, needed: int, progress: DistillProgress) -> dict[str, Rows]:
        start = time.perf_counter()
        rows = sample_rows(self.manager, self.teacher, self.settings.sampling, needed, self.settings.seed)
        progress.seconds["sample"] += time.perf_counter() - start
        return rows

    def make_model(self, config: ModelConfig) -> Model:
        dataset = self.manager.train_dataset
        kwargs = {"num_train_data": len(dataset), "metadata": dataset.metadata, "device": self.model.device}
        return config.setup(scene_box=dataset.scene_box, **kwargs)

    def refine(self, student: Model, progress: DistillProgress) -> None:
        refine_student(self.settings, self.run, self._like(student), progress)

    def folded_of(self, model: Model) -> dict[str, nn.Module]:
        return self._like(model).folded()

    def _like(self, model: Model) -> NerfTeacher:
        return self.teacher if model is self.model else type(self.teacher)(model)


def refuse_flags_of_pictures(settings: DistillSettings, sampling: Collection[str], why: str) -> None:
    """Refuse what only fields that are rendered have a use for.

    Args:
        sampling: what of the sampling's settings is of use.
        why: what there is to say of the run.

    Raises:
        UsageError: such a flag is given.
    """
    found = [
        flag
        for flag, value, default in (
            ("coarse-layers", settings.coarse_layers, DistillSettings.coarse_layers),
            ("plan", settings.plan, None),
            ("refine-teacher", settings.refine_teacher, None),
            ("refine-novel-poses", settings.refine_novel_poses, DistillSettings.refine_novel_poses),
        )
        if value != default
    ]
    for own in dataclasses.fields(SamplingConfig):
        if own.name not in sampling and getattr(settings.sampling, own.name) != own.default:
            found.append(f"sampling.{own.name.replace('_', '-')}")
    if found:
        raise UsageError(f"--{found[0]}: found for {settings.load_config}, {why}; expected it to be left out")
