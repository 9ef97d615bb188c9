"""The pipeline of eugen-siren: points of one signal, and the losses of its kind."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipelineConfig
from torch import Tensor
from torch.nn import Parameter

from eugen3d.datasets.signal_datamanager import SignalDataManager, SignalDataManagerConfig
from eugen3d.datasets.signals import ShapeFormat
from eugen3d.datasets.stop import stop
from eugen3d.models.siren import EUGenSirenModel, EUGenSirenModelConfig
from eugen3d.models.siren_evaluation import SirenEvaluationConfig, evaluate, fitted_images
from eugen3d.models.siren_losses import ShapeLossConfig, shape_losses, signal_losses
from eugen3d.models.whole_checkpoints import WholeCheckpointTrainerConfig, load_weights


@dataclass
class SirenPipelineConfig(VanillaPipelineConfig):
    """A signal, an eugen-siren model, and what it is trained for."""

    _target: type = field(default_factory=lambda: SirenPipeline)
    """Target class to instantiate."""
    losses: ShapeLossConfig = field(default_factory=ShapeLossConfig)
    """Weights of the losses of a shape."""
    final_rate: float = 0.01
    """What the learning rate has been multiplied by at the last step, along a cosine; 1: it stays."""
    evaluation: SirenEvaluationConfig = field(default_factory=SirenEvaluationConfig)
    """How `ns-eval` measures shapes."""

    def __post_init__(self) -> None:
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate is {self.final_rate}, expected 0 to 1")


@dataclass
class SirenTrainerConfig(WholeCheckpointTrainerConfig):
    """A trainer's settings; config.yml holds the format of the signal."""

    def check(self) -> None:
        """Refuse what cannot be fitted, and put the signal's format into the model's settings."""
        manager, model = self.pipeline.datamanager, self.pipeline.model
        assert isinstance(manager, SignalDataManagerConfig) and isinstance(model, EUGenSirenModelConfig)
        model.signal = manager.open_or_exit().format
        try:
            model.field_config()
        except ValueError as error:
            stop(str(error))
        if self.is_viewer_enabled() or self.is_viewer_legacy_enabled():
            stop(f"--vis {self.vis}: a signal has no cameras to view it by, expected tensorboard")


class SirenPipeline(Pipeline):
    """Fits a model to a signal."""

    config: SirenPipelineConfig

    def __init__(
        self,
        config: SirenPipelineConfig,
        device: str | torch.device,
        test_mode: str = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__()
        if world_size > 1:
            raise ValueError(f"world_size is {world_size}, expected 1: a signal is fitted by one process")
        self.config, self.world_size = config, world_size
        self.datamanager = config.datamanager.setup(device=device, test_mode=test_mode)
        box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        self._model = config.model.setup(scene_box=box, num_train_data=1, device=device)
        self.model.to(device)

    @property
    def signal_manager(self) -> SignalDataManager:
        """The datamanager."""
        assert isinstance(self.datamanager, SignalDataManager)
        return self.datamanager

    @property
    def siren(self) -> EUGenSirenModel:
        """The model."""
        assert isinstance(self.model, EUGenSirenModel)
        return self.model

    def forward(self) -> None:
        """A pipeline is no function."""
        raise NotImplementedError

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a step; of values the PSNR, too, where 1 is half of the range."""
        manager, field_ = self.signal_manager, self.siren.field
        batch = manager.next_batch(step)
        if isinstance(self.siren.config.signal, ShapeFormat):
            return {}, shape_losses(field_, batch, self.config.losses), {}
        losses = signal_losses(field_, batch, manager.config.supervision)
        metrics = {}
        if "value_loss" in losses:
            metrics["psnr"] = -10 * torch.log10(losses["value_loss"].detach() / 4)
        return {}, losses, metrics

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """How far the fitted signal is from the file's, by the measures of its kind (see `siren_evaluation`).

        Args:
            output_path: where pictures of images and videos go.
        """
        signal = self.signal_manager.signal
        assert signal is not None
        return evaluate(self.siren, signal, self.config.evaluation, output_path)

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The same, and a picture (height, width, 3) of an image or of a video's first frame, beside the file's."""
        signal = self.signal_manager.signal
        assert signal is not None
        metrics = evaluate(self.siren, signal, self.config.evaluation)
        known = {name: value for name, value in metrics.items() if value is not None}
        return known | {"num_rays": self.datamanager.get_train_rays_per_batch()}, fitted_images(self.siren, signal)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The model's."""
        return self.model.get_param_groups()

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """What lets the learning rate decay."""
        before = TrainingCallbackLocation.BEFORE_TRAIN_ITERATION
        return [TrainingCallback([before], self._set_rate, update_every_num_iters=1, args=[attributes.trainer])]

    def load_pipeline(self, loaded_state: Mapping[str, Any], step: int) -> None:
        """Go on from a checkpoint; strict. One of another model ends the process with one line and exit code 2."""
        load_weights(self.model, loaded_state)

    def _set_rate(self, trainer: Any, step: int) -> None:
        total = trainer._start_step + trainer.config.max_num_iterations
        factor = self.config.final_rate
        factor += (1 - factor) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        for name, optimizer in trainer.optimizers.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * trainer.config.optimizers[name]["optimizer"].lr
