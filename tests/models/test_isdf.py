"""eugen-isdf: what cameras see of a field, and the pipeline that trains it from a stream."""

import copy
import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager
from nerfstudio.engine.callbacks import TrainingCallbackAttributes
from torch import Tensor, nn

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.mapping import RaySamplingConfig, SdfMapperConfig, SdfQuery, TraceConfig, trace_rays
from eugen3d.models.isdf import EUGenIsdfModel, EUGenIsdfModelConfig
from eugen3d.models.isdf_pipeline import SdfPipeline, SdfPipelineConfig

LAYER = LayerConfig("eugen", EUGenConfig(4, phi="softplus-100"))
MODEL = EUGenIsdfModelConfig(
    layer=LAYER, replaced_layers=(1,), num_layers=2, layer_width=8, num_frequencies=2, trace=TraceConfig(far_plane=6.0)
)
RAYS = RaySamplingConfig(num_rays=20, num_surface_samples=2, num_stratified_samples=4)
MAPPER = SdfMapperConfig(RAYS, num_first_steps=4, num_frame_steps=2, num_keyframe_steps=3)


class Wall(nn.Module):
    """The distance to the plane z = −2 from above, and a sphere of radius 0.5 around (0, 0, −1)."""

    def __init__(self) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        sphere = (x - torch.tensor([0.0, 0.0, -1.0])).norm(dim=-1) - self.radius
        return torch.minimum(x[:, 2] + 2, sphere)


class Source(DataManager):
    """Frames in memory, before a wall at z = −2 that the camera looks at; number 1 has no measurement."""

    def __init__(self, count: int, stream: bool = True) -> None:
        super().__init__()
        self.count, self.is_stream, self.position, self.rays_per_batch = count, stream, 0, 0
        self.num_skipped = 0

    @property
    def is_over(self) -> bool:
        return self.position >= self.count

    def frame(self, index: int) -> DepthFrame:
        pose = torch.eye(3, 4)
        pose[0, 3] = 0.1 * index
        depth = torch.full((16, 16), 2.0) if index != 1 else torch.zeros(16, 16)
        return DepthFrame(str(index), depth, pose, (8.0, 8.0, 8.0, 8.0))

    def next_frame(self) -> DepthFrame | None:
        self.position += 1
        return self.frame(self.position - 1)

    def all_frames(self) -> list[DepthFrame]:
        return [self.frame(index) for index in range(self.count)]

    def eval_frames(self) -> list[DepthFrame]:
        return []

    def get_datapath(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "frames"


class SourceConfig:
    """What sets up a source."""

    def __init__(self, *settings: Any) -> None:
        self.settings = settings

    def setup(self, **_: Any) -> Source:
        return Source(*self.settings)


class Trainer:
    """What the pipeline asks of nerfstudio's trainer."""

    stop_training = False

    def __init__(self, pipeline: SdfPipeline) -> None:
        self.pipeline, self.saved, self.rates = pipeline, [], []
        (parameters,) = pipeline.get_param_groups().values()
        self.optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        self.optimizers = SimpleNamespace(optimizers={"fields": self.optimizer})
        self.config = SimpleNamespace(optimizers={"fields": {"optimizer": SimpleNamespace(lr=3e-3)}})
        attributes = TrainingCallbackAttributes({}, None, pipeline, self)  # pyright: ignore[reportArgumentType]
        self.callback, _ = pipeline.get_training_callbacks(attributes)

    def save_checkpoint(self, step: int) -> None:
        self.saved.append(step)

    def train(self, limit: int = 1000, start: int = 0) -> int:
        for step in range(start, limit):
            self.optimizer.zero_grad()
            _, losses, self.metrics = self.pipeline.get_train_loss_dict(step)
            torch.stack(list(losses.values())).sum().backward()
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.callback.run_callback(step)
            if self.stop_training:
                return step + 1
        return limit


def pipeline_of(count: int, stream: bool = True, **changes: Any) -> SdfPipeline:
    torch.manual_seed(0)
    settings = {"mapper": MAPPER, "num_final_steps": 5, "num_batch_steps": 7, **changes}
    config = SdfPipelineConfig(model=copy.deepcopy(MODEL), **settings)
    config.datamanager = SourceConfig(count, stream)  # pyright: ignore[reportAttributeAccessIssue]
    return SdfPipeline(config, "cpu")


def weights(pipeline: SdfPipeline) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in pipeline.model.parameters()])


def test_rays_end_on_the_first_surface() -> None:
    origins = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    distance, is_hit = trace_rays(SdfQuery(Wall()), origins, directions, TraceConfig(far_plane=6.0, tolerance=1e-4))
    assert is_hit.tolist() == [True, True, False]
    torch.testing.assert_close(distance, torch.tensor([1.5, 3.0, 6.0]), rtol=0, atol=2e-4)


def test_a_slanted_ray_ends_where_it_meets_the_wall() -> None:
    direction = torch.tensor([[0.6, 0.0, -0.8]])
    origin = torch.tensor([[2.0, 0.0, 0.0]])
    distance, _ = trace_rays(SdfQuery(Wall()), origin, direction, TraceConfig(num_steps=200, tolerance=1e-4))
    assert float(distance) == pytest.approx(2.5, abs=2e-4)


def test_a_ray_whose_steps_run_out_ends_where_it_came_to() -> None:
    """From (0.6, 0, 0) down, past the sphere at 0.1 m: steps are as long as the distance to it."""
    origin, direction = torch.tensor([[0.6, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    distance, is_hit = trace_rays(SdfQuery(Wall()), origin, direction, TraceConfig(near_plane=0.0, num_steps=2))
    first = (0.36 + 1.0) ** 0.5 - 0.5
    second = first + (0.36 + (1 - first) ** 2) ** 0.5 - 0.5
    assert not bool(is_hit) and float(distance) == pytest.approx(second, abs=1e-5)


def test_a_camera_sees_depth_normals_and_light() -> None:
    model = MODEL.setup(scene_box=None, num_train_data=1)
    assert isinstance(model, EUGenIsdfModel)
    model.field = Wall()  # pyright: ignore[reportAttributeAccessIssue]
    origins = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    bundle = RayBundle(origins, directions, torch.ones(3, 1))
    outputs = model(bundle)
    torch.testing.assert_close(outputs["depth"], torch.tensor([[1.5], [3.0], [6.0]]), rtol=0, atol=4e-3)
    assert outputs["accumulation"].flatten().tolist() == [1.0, 1.0, 0.0]
    torch.testing.assert_close(outputs["normals"][:2], torch.tensor([[0.5, 0.5, 1.0]] * 2))
    torch.testing.assert_close(outputs["rgb"], torch.tensor([[1.0] * 3, [1.0] * 3, [0.0] * 3]))


def test_rendering_sees_a_field_that_has_changed() -> None:
    model = MODEL.setup(scene_box=None, num_train_data=1)
    first = model.query()
    assert model.query() is first
    with torch.no_grad():
        model.field.head[0].bias += 1
    assert model.query() is not first


@pytest.mark.filterwarnings("ignore:1. skipped")
def test_training_ends_with_the_stream(capsys: pytest.CaptureFixture) -> None:
    pipeline = pipeline_of(4)
    before, trainer = weights(pipeline), Trainer(pipeline)
    steps = trainer.train()
    keyframes = [entry.frame.name for entry in pipeline.mapper.keyframes.entries]
    assert (pipeline.mapper.num_frames, pipeline.mapper.num_skipped) == (3, 1)
    assert steps == pipeline.mapper.num_steps <= 4 + 2 * (2 + 3) + 5
    assert steps > 4 + 2 * 2 + 3
    assert trainer.saved[0] == 3, "after the first frame, which is a keyframe, of four steps"
    assert keyframes[0] == "0" and keyframes[-1] == "3"
    assert {name: float(value) for name, value in trainer.metrics.items()}["num_skipped"] == 1
    assert not torch.equal(weights(pipeline), before)


@pytest.mark.filterwarnings("ignore:1. skipped")
def test_a_set_of_frames_is_trained_on_for_as_many_steps_as_set() -> None:
    pipeline = pipeline_of(4, stream=False)
    assert Trainer(pipeline).train() == 7
    assert len(pipeline.mapper.keyframes) == 3 and pipeline.mapper.num_steps == 7


@pytest.mark.filterwarnings("ignore:1. skipped")
@pytest.mark.parametrize("stream", [True, False])
def test_the_learning_rate_decays_over_the_final_steps(stream: bool) -> None:
    trainer = Trainer(pipeline_of(4, stream=stream, num_batch_steps=5))
    trainer.train()
    shares = [0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * left / 5)) for left in (5, 4, 3, 2, 1)]
    assert trainer.rates[-5:] == pytest.approx([3e-3 * share for share in shares])
    assert set(trainer.rates[:-5]) == ({3e-3} if stream else set())


@pytest.mark.filterwarnings("ignore:1. skipped")
@pytest.mark.parametrize("stop", [2, 4, 7])
def test_a_stream_goes_on_where_its_checkpoint_is(stop: int) -> None:
    whole = pipeline_of(5)
    steps = Trainer(whole).train()

    first = pipeline_of(5)
    trainer = Trainer(first)
    trainer.train(stop)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())

    resumed = pipeline_of(5, seed=9)
    again = Trainer(resumed)
    resumed.load_pipeline(state, stop - 1)
    again.optimizer.load_state_dict(trainer.optimizer.state_dict())
    assert again.train(start=stop) == steps
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "reason"),
    [("_model.field.head.0.bias", "Missing key(s)"), ("mapper_progress", "no progress of a mapper")],
)
def test_a_checkpoint_of_another_model_is_refused(key: str, reason: str, capsys: pytest.CaptureFixture) -> None:
    state = pipeline_of(2).state_dict()
    del state[key]
    with pytest.raises(SystemExit, match="2"):
        pipeline_of(2).load_pipeline(state, 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --load-dir: its checkpoint is of another model") and reason in line


@pytest.mark.filterwarnings("ignore:1. skipped")
def test_frames_without_a_usable_one_end_the_process_with_one_line(capsys: pytest.CaptureFixture) -> None:
    pipeline = pipeline_of(2)
    pipeline.source.position = 1
    with pytest.raises(SystemExit) as error:
        pipeline.get_train_loss_dict(0)
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: frames: none of its frames can be used, 1 were skipped\n"


def test_several_processes_are_refused() -> None:
    config = SdfPipelineConfig(model=copy.deepcopy(MODEL))
    config.datamanager = SourceConfig(2)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="world_size is 2, expected 1"):
        SdfPipeline(config, "cpu", world_size=2)
