"""The pipeline of eugen-isdf: frames from a datamanager, and a mapper that steps as nerfstudio's trainer does."""

import io
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipelineConfig
from torch import Tensor
from torch.nn import Parameter

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.mapping import SdfMapper, SdfMapperConfig, trace_rays
from eugen3d.mapping.keyframes import frame_to
from eugen3d.models.isdf import EUGenIsdfModel
from eugen3d.models.isdf_evaluation import SdfEvaluationConfig, depth_error, evaluate, frame_views
from eugen3d.models.isdf_viewer import SdfScene
from eugen3d.models.whole_checkpoints import (
    WholeCheckpointTrainerConfig,
    load_weights,
    refuse_checkpoint,
    stop,
)

PROGRESS = "mapper_progress"
"""Name of the mapper's progress in a checkpoint: one tensor of bytes, so that a checkpoint is tensors alone."""

IDLE = 0.05
"""Seconds between two looks for the first frame that can be used."""


def pack_progress(progress: Mapping[str, Any]) -> Tensor:
    """A mapper's progress, tensors and plain values, as one tensor of bytes."""
    buffer = io.BytesIO()
    torch.save(dict(progress), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def unpack_progress(packed: Tensor) -> dict[str, Any]:
    """What was packed; nothing that it names is run."""
    return torch.load(io.BytesIO(packed.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


class FrameSource(Protocol):
    """What a datamanager of depth frames has beside nerfstudio's own methods."""

    position: int
    """The frame of the sequence that comes next; set it to go on from there."""
    rays_per_batch: int
    """Rays that are drawn of the frames in a step."""
    is_stream: bool
    """Whether frames come one after the other, or all at once."""
    is_over: bool
    """Whether the stream has ended."""
    num_skipped: int
    """Frames that could not be read."""

    def next_frame(self) -> DepthFrame | None:
        """The frame that is due, or None where none is yet, or the stream has ended."""
        ...

    def all_frames(self) -> list[DepthFrame]:
        """All frames at once."""
        ...

    def eval_frames(self) -> Iterable[DepthFrame]:
        """Frames that are not trained on."""
        ...


@dataclass
class SdfPipelineConfig(VanillaPipelineConfig):
    """A datamanager of depth frames, an eugen-isdf model, and how it is trained."""

    _target: type = field(default_factory=lambda: SdfPipeline)
    """Target class to instantiate."""
    mapper: SdfMapperConfig = field(default_factory=SdfMapperConfig)
    """Rays, losses, keyframes and steps. The learning rate is the optimizer's, `--optimizers.fields`."""
    num_final_steps: int = 400
    """Steps after the last frame of a stream, on its keyframes, by which the learning rate decays along a cosine;
    training ends then."""
    num_batch_steps: int = 4000
    """Steps where frames do not stream, by which the learning rate decays along a cosine; training ends then."""
    seed: int = 0
    """Of the rays and samples."""
    evaluation: SdfEvaluationConfig = field(default_factory=SdfEvaluationConfig)
    """Where `ns-eval` measures."""

    def __post_init__(self) -> None:
        if self.num_final_steps < 0 or self.num_batch_steps < 1:
            raise ValueError("num_final_steps is at least 0, num_batch_steps at least 1")


@dataclass
class SdfTrainerConfig(WholeCheckpointTrainerConfig):
    """A trainer's settings; training ends with the stream."""

    def check(self) -> None:
        """Refuse data that cannot be used."""
        self.pipeline.datamanager.open_or_exit()  # pyright: ignore[reportAttributeAccessIssue]


class SdfPipeline(Pipeline):
    """Trains a model's field on depth frames.

    A checkpoint holds the model's weights and the mapper's progress, keyframes included: a stream that was stopped goes
    on from there, and one is written whenever a keyframe is done.
    """

    config: SdfPipelineConfig

    def __init__(
        self,
        config: SdfPipelineConfig,
        device: str | torch.device,
        test_mode: str = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__()
        if world_size > 1:
            raise ValueError(f"world_size is {world_size}, expected 1: a stream is trained on by one process")
        self.config, self.world_size = config, world_size
        self.datamanager = config.datamanager.setup(device=device, test_mode=test_mode)
        box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))  # of no matter: rays have planes of their own
        self._model = config.model.setup(scene_box=box, num_train_data=1, device=device)
        self.model.to(device)
        assert isinstance(self.model, EUGenIsdfModel)
        self.mapper = SdfMapper(self.model.field, config.mapper, config.seed)
        self.scene = SdfScene(lambda: self.mapper.keyframes, self.model.query)
        self.source.rays_per_batch = config.mapper.rays.num_rays * config.mapper.keyframes.window_size
        self._final_steps_left = config.num_final_steps if self.source.is_stream else config.num_batch_steps
        self._num_images_shown = 0

    @property
    def source(self) -> FrameSource:
        """The datamanager, as where frames come from."""
        return self.datamanager  # pyright: ignore[reportReturnType]

    def forward(self) -> None:
        """A pipeline is no function."""
        raise NotImplementedError

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a step, after the frames that were due have been taken.

        Nothing can be trained on where no frame is usable: that ends the process with one line and exit code 2.
        """
        self._take_due_frames()
        if not len(self.mapper.keyframes):
            path, count = self.datamanager.get_datapath(), self._num_skipped()
            stop(f"{path}: none of its frames can be used, {count} were skipped")
        is_replay = not self.source.is_stream or (self.source.is_over and self.mapper.wants_frame())
        losses = self.mapper.losses(num_recent=0) if is_replay else self.mapper.losses()
        counts = {
            "num_frames": self.mapper.num_frames,
            "num_skipped": self._num_skipped(),
            "num_keyframes": len(self.mapper.keyframes),
        }
        return {}, losses, {name: torch.tensor(float(count)) for name, count in counts.items()}

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float | None]:
        """The field's errors on the frames that were not trained on, and against the data's mesh where there is one.

        What cannot be measured ends the process with one line and exit code 2.

        Args:
            step: of training; not used.
            output_path: where pictures of these frames' views go; None: none are made.
            get_std: whether the standard deviation of the depth error between frames is wanted, too.
        """
        assert isinstance(self.model, EUGenIsdfModel)
        path = self.datamanager.get_datapath()
        try:
            return evaluate(self.model, path, self.source.eval_frames(), self.config.evaluation, output_path, get_std)
        except (SceneError, ValueError) as error:
            stop(str(error))

    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """One of the frames that were not trained on, the next one at every call: depth_error and hit_rate of its
        measured pixels, and what its camera sees of the field.

        Where there is none, that ends the process with one line and exit code 2.
        """
        assert isinstance(self.model, EUGenIsdfModel)
        frames = list(self.source.eval_frames())
        if not frames:
            stop(f"{self.datamanager.get_datapath()}: has no frame for evaluation, expected --steps-per-eval-image 0")
        frame = frame_to(frames[self._num_images_shown % len(frames)], self.model.device)
        self._num_images_shown += 1
        trace = partial(trace_rays, self.model.query(), config=self.model.config.trace)
        error, hit_rate = depth_error(trace, frame, self.config.evaluation)
        metrics = {"hit_rate": hit_rate, "num_rays": frame.depth.numel()}
        return metrics if error is None else metrics | {"depth_error": error}, frame_views(self.model, frame)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The model's."""
        return self.model.get_param_groups()

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """What ends training with the stream, writes a checkpoint at keyframes, and draws the viewer's scene:
        after every step, and once at the end."""
        step, end = TrainingCallbackLocation.AFTER_TRAIN_ITERATION, TrainingCallbackLocation.AFTER_TRAIN
        return [
            TrainingCallback([step], self._after_step, update_every_num_iters=1, args=[attributes.trainer]),
            TrainingCallback([end], lambda step: self.scene.draw()),
        ]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The model's weights, and the mapper's progress as bytes."""
        progress = {"position": self.source.position, "final_steps_left": self._final_steps_left}
        packed = pack_progress({**progress, **self.mapper.progress()})
        return {**super().state_dict(*args, **kwargs), PROGRESS: packed}

    def load_pipeline(self, loaded_state: Mapping[str, Any], step: int) -> None:
        """Go on from a checkpoint; strict. One of another model ends the process with one line and exit code 2."""
        load_weights(self.model, loaded_state)
        if PROGRESS not in loaded_state:
            refuse_checkpoint("no progress of a mapper")
        progress = unpack_progress(loaded_state[PROGRESS])
        self.source.position = progress["position"]
        self._final_steps_left = progress["final_steps_left"]
        self.mapper.load_progress(progress)

    def _num_skipped(self) -> int:
        """Frames that could not be read, or that nothing could be learned from."""
        return self.source.num_skipped + self.mapper.num_skipped

    def _take_due_frames(self) -> None:
        if not self.source.is_stream:
            if not len(self.mapper.keyframes):
                self.mapper.add_keyframes(self.source.all_frames())
            return
        while self.mapper.wants_frame() and not self.source.is_over:
            position = self.source.position
            frame = self.source.next_frame()
            if frame is not None:
                self.mapper.begin(frame)
            elif len(self.mapper.keyframes):
                return  # nothing is due: the steps until then go into what there is
            elif self.source.position == position:
                time.sleep(IDLE)

    def _final_rate(self) -> float:
        """What the learning rate is multiplied by in the final steps: with large ones distances would end as noise."""
        config = self.config
        total = config.num_final_steps if self.source.is_stream else config.num_batch_steps
        left = max(self._final_steps_left, 0) / max(total, 1)
        return 0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * left))

    def _after_step(self, trainer: Any, step: int) -> None:
        self.scene.refresh()
        if not self.mapper.wants_frame():
            return
        if self.source.is_over or not self.source.is_stream:
            self._final_steps_left -= 1
            trainer.stop_training = self._final_steps_left <= 0
            for name, optimizer in trainer.optimizers.optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = self._final_rate() * trainer.config.optimizers[name]["optimizer"].lr
        elif self.mapper.keyframes.last_is_keyframe:
            trainer.save_checkpoint(step)
