"""eugen-siren: what a signal makes of the field, the losses by hand, training, evaluation, and what is refused."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import soundfile
import torch
import trimesh
from torch import Tensor, nn

from eugen3d.datasets.signal_datamanager import SignalBatch, SignalDataManagerConfig
from eugen3d.datasets.signals import SampledSignal, ShapeFormat, SignalFormat
from eugen3d.layers import EUGenConfig, LayerConfig
from eugen3d.methods.eugen_siren import eugen_siren
from eugen3d.models.siren import EUGenSirenModelConfig
from eugen3d.models.siren_evaluation import SirenEvaluationConfig, surface_of, values_of
from eugen3d.models.siren_losses import ShapeLossConfig, shape_losses, signal_losses
from eugen3d.models.siren_pipeline import SirenPipeline, SirenPipelineConfig, SirenTrainerConfig

SMALL = EUGenSirenModelConfig(
    layer=LayerConfig("eugen", EUGenConfig(16, phi="sine", use_norm=False)), num_layers=3, layer_width=32
)


def write_image(path: Path, size: tuple[int, int] = (12, 16)) -> Path:
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    iio.imwrite(path, np.stack([255 * rows, 255 * columns, 128 + 100 * np.sin(9 * rows)], axis=-1).astype(np.uint8))
    return path


def write_sound(path: Path, samples: int = 2000) -> Path:
    soundfile.write(path, 0.5 * np.sin(np.arange(samples) / 7), 8000, subtype="PCM_16")
    return path


def pipeline_of(data: Path, **model: Any) -> SirenPipeline:
    """A pipeline as training sets it up: the trainer puts the signal's format into the model's configuration."""
    manager = SignalDataManagerConfig(data=data, num_points=512)
    config = SirenPipelineConfig(model=copy.deepcopy(SMALL), datamanager=manager)
    config.evaluation = SirenEvaluationConfig(resolution=16, num_samples=500)
    assert isinstance(config.model, EUGenSirenModelConfig)
    for name, value in model.items():
        setattr(config.model, name, value)
    config.model.signal = manager.open_or_exit().format
    torch.manual_seed(0)
    return SirenPipeline(config, "cpu")


def train(pipeline: SirenPipeline, steps: int, rate: float = 3e-3) -> list[float]:
    groups = pipeline.get_param_groups()
    assert set(groups) == {"fields", "head"}
    assert sum(map(len, groups.values())) == len(list(pipeline.siren.field.parameters()))
    optimizer = torch.optim.Adam([p for group in groups.values() for p in group], rate)
    found = []
    for step in range(steps):
        _, losses, _ = pipeline.get_train_loss_dict(step)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(
    ("signal", "shape"),
    [
        (SignalFormat("image", (4, 5), 3, ".png", "uint8", 0, 255), (2, 3, 30.0)),
        (SignalFormat("sound", (100,), 2, ".wav", "int16", -1, 1, 8000.0), (1, 2, 3000.0)),
        (SignalFormat("video", (3, 4, 5), 3, ".mp4", "uint8", 0, 255, 25.0), (3, 3, 30.0)),
        (ShapeFormat((0.0, 0.0, 0.0), 1.0, True, ".obj"), (3, 1, 30.0)),
        (None, (2, 1, 30.0)),
    ],
)
def test_the_signal_says_what_the_field_takes_and_gives(signal, shape: tuple[int, int, float]) -> None:
    config = EUGenSirenModelConfig(signal=signal).field_config()
    assert (config.in_dim, config.out_dim, config.omega_0) == shape
    assert EUGenSirenModelConfig(signal=signal, omega_0=7.0).field_config().omega_0 == 7.0


def test_the_papers_dense_network_has_198401_parameters() -> None:
    from eugen3d.fields import SirenField

    field = SirenField(EUGenSirenModelConfig(layer=LayerConfig("linear")).field_config())
    assert sum(p.numel() for p in field.parameters()) == 198_401


def test_an_image_is_fitted_and_evaluated(tmp_path: Path) -> None:
    pipeline = pipeline_of(write_image(tmp_path / "a.png"))
    before = pipeline.get_average_eval_image_metrics()
    losses = train(pipeline, 150)
    after = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "views")
    assert losses[-1] < 0.05 * losses[0] and after["psnr"] > before["psnr"] + 10 and after["ssim"] > before["ssim"]
    signal = pipeline.signal_manager.signal
    assert isinstance(signal, SampledSignal)
    fitted = values_of(pipeline.siren, (12, 16)).clamp(-1, 1)
    error = float((fitted - signal.values).square().mean()) / 4
    assert after["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    for name in ("file", "fitted"):
        assert iio.imread(tmp_path / "views" / f"{name}.png").shape == (12, 16, 3)
    assert np.array_equal(iio.imread(tmp_path / "views" / "file.png"), iio.imread(tmp_path / "a.png"))
    metrics, images = pipeline.get_eval_image_metrics_and_images(0)
    assert metrics["psnr"] == after["psnr"] and set(images) == {"file", "fitted"}


def test_a_sound_is_fitted_and_evaluated(tmp_path: Path) -> None:
    pipeline = pipeline_of(write_sound(tmp_path / "a.wav"), omega_0=300.0)
    before = pipeline.get_average_eval_image_metrics()
    train(pipeline, 100)
    after = pipeline.get_average_eval_image_metrics()
    assert set(after) == {"snr", "log_spectral_distance"} and after["snr"] > before["snr"] + 6


def test_a_video_is_fitted_and_evaluated(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        write_image(folder / f"{index}.png", (12 + 0 * index, 16))
    pipeline = pipeline_of(folder)
    before = pipeline.get_average_eval_image_metrics()
    train(pipeline, 100)
    after = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "views")
    assert after["psnr"] > before["psnr"] + 6 and after["ssim"] > before["ssim"]
    assert iio.imread(tmp_path / "views" / "fitted.png").shape == (12, 16, 3)


def test_a_shape_is_fitted_and_evaluated(tmp_path: Path) -> None:
    trimesh.creation.icosphere(2, 2.0).export(tmp_path / "ball.obj")
    pipeline = pipeline_of(tmp_path / "ball.obj", omega_0=4.0)
    losses = train(pipeline, 300, 1e-3)
    after = pipeline.get_average_eval_image_metrics()
    assert losses[-1] < 0.5 * losses[0]
    assert after["chamfer_to_diagonal"] < 0.01 and after["sign_accuracy"] > 0.97 and after["iou"] > 0.9
    assert after["chamfer"] == pytest.approx(after["chamfer_to_diagonal"] * 4 * math.sqrt(3), rel=0.02), "world units"
    vertices, _ = surface_of(pipeline.siren, 16)
    assert np.linalg.norm(vertices, axis=1) == pytest.approx(0.9, abs=0.1), (
        "nothing beyond the cube, where nothing is trained"
    )


class Plane(nn.Module):
    """2 z: the distance to z = 0, twice too steep."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, 2:]


def test_the_losses_of_a_shape_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.25], [0.0, 0.0, 0.01], [0.0, 0.0, 1.0]])
    batch = SignalBatch(points, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    losses = shape_losses(Plane(), batch, ShapeLossConfig())
    expected = {
        "surface_loss": 3e3 * 0.25,
        "off_surface_loss": 1e2 * math.exp(-2) / 2,
        "normal_loss": 1e2 * 0.5,
        "eikonal_loss": 50.0,
    }
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


class Saddle(nn.Module):
    """(x² + 3 y², x y)."""

    def forward(self, p: Tensor) -> Tensor:
        return torch.stack([p[:, 0] ** 2 + 3 * p[:, 1] ** 2, p[:, 0] * p[:, 1]], dim=1)


def test_derivatives_are_supervised_by_hand() -> None:
    x = torch.tensor([[0.5, 0.25], [-1.0, 1.0]])
    gradient = torch.tensor([[[1.0, 0.25], [1.5, 0.5]], [[-2.0, 1.0], [6.0, -1.0]]])
    assert float(signal_losses(Saddle(), SignalBatch(x, gradient), "gradient")["gradient_loss"]) == 0
    assert float(signal_losses(Saddle(), SignalBatch(x, gradient + 2), "gradient")["gradient_loss"]) == 4
    laplacian = torch.tensor([[8.0, 0.0], [8.0, 1.0]])
    assert float(signal_losses(Saddle(), SignalBatch(x, laplacian), "laplacian")["laplacian_loss"]) == 0.25


@pytest.mark.parametrize("supervision", ["gradient", "laplacian"])
def test_an_image_comes_back_from_its_derivatives(tmp_path: Path, supervision: str) -> None:
    rows, columns = np.mgrid[:16, :16] / 16
    iio.imwrite(tmp_path / "a.png", (127 + 90 * np.sin(5 * rows) * np.cos(4 * columns)).astype(np.uint8))
    pipeline = pipeline_of(tmp_path / "a.png", omega_0=4.0)
    manager = pipeline.signal_manager.config
    manager.supervision = supervision  # pyright: ignore[reportAttributeAccessIssue]
    pipeline.datamanager = manager.setup(device="cpu")
    losses = train(pipeline, 150)
    assert losses[-1] < 0.1 * losses[0]


def test_steps_draw_the_same_points_again_and_others_each(tmp_path: Path) -> None:
    manager = pipeline_of(write_image(tmp_path / "a.png", (40, 40))).signal_manager
    first, again, other = (manager.next_batch(step) for step in (3, 3, 4))
    assert len(first.coordinates) == 512
    assert torch.equal(first.coordinates, again.coordinates) and not torch.equal(first.coordinates, other.coordinates)
    whole = pipeline_of(write_image(tmp_path / "b.png", (8, 8))).signal_manager.next_batch(0)
    assert len(whole.coordinates) == 64
    assert torch.equal(whole.coordinates[0], torch.tensor([-0.875, -0.875]))


def test_the_rate_decays_along_a_cosine(tmp_path: Path) -> None:
    pipeline = pipeline_of(write_image(tmp_path / "a.png"))
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], 1.0)
    config = SimpleNamespace(max_num_iterations=75, optimizers={"fields": {"optimizer": SimpleNamespace(lr=2.0)}})
    trainer = SimpleNamespace(
        _start_step=25, config=config, optimizers=SimpleNamespace(optimizers={"fields": optimizer})
    )
    for step, rate in ((0, 2.0), (50, 2 * (0.01 + 0.99 * 0.5)), (100, 0.02)):
        pipeline._set_rate(trainer, step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_checkpoint_goes_on_and_one_of_another_model_is_refused(tmp_path: Path, capsys) -> None:
    data = write_image(tmp_path / "a.png")
    pipeline, other = pipeline_of(data), pipeline_of(data, layer_width=16)
    train(pipeline, 2)
    resumed = pipeline_of(data)
    resumed.load_pipeline(pipeline.state_dict(), 1)
    x = torch.rand(5, 2)
    assert torch.equal(resumed.siren.field(x), pipeline.siren.field(x))
    with pytest.raises(SystemExit, match="2"):
        other.load_pipeline(pipeline.state_dict(), 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --load-dir: its checkpoint is of another model")


def trainer_config(tmp_path: Path, data: Path | None) -> SirenTrainerConfig:
    config = copy.deepcopy(eugen_siren.config)
    assert isinstance(config, SirenTrainerConfig)
    config.output_dir, config.experiment_name, config.timestamp = tmp_path / "outputs", "signal", "run"
    config.pipeline.datamanager.data = data
    return config


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": None}, "--data: found none, expected a file"),
        ({"data": "gone.png"}, "gone.png: not found"),
        ({"data": "broken.png"}, "broken.png: "),
        ({"vis": "viewer"}, "--vis viewer: a signal has no cameras"),
        ({"load_dir": Path("nowhere")}, "--load-dir nowhere: has no checkpoint"),
        ({"supervision": "gradient", "data": "a.wav"}, "a.wav: is no image"),
    ],
)
def test_what_cannot_be_used_leaves_no_run_behind(tmp_path: Path, capsys, change: dict, reason: str) -> None:
    write_image(tmp_path / "a.png")
    write_sound(tmp_path / "a.wav")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    data = change.pop("data", "a.png")
    config = trainer_config(tmp_path, None if data is None else tmp_path / data)
    config.pipeline.datamanager.supervision = change.pop("supervision", "values")  # pyright: ignore
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(SystemExit, match="2"):
        config.save_config()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and reason in line
    assert not config.output_dir.exists()


def test_the_format_of_the_signal_is_kept_with_the_run(tmp_path: Path) -> None:
    from eugen3d.cli.config_file import read_config

    config = trainer_config(tmp_path, write_image(tmp_path / "a.png"))
    config.save_config()
    model = read_config(config.get_base_dir() / "config.yml").pipeline.model
    assert isinstance(model, EUGenSirenModelConfig)
    assert model.signal == SignalFormat(
        "image", (12, 16), 3, ".png", "uint8", 0.0, 255.0, num_bytes=(tmp_path / "a.png").stat().st_size
    )


@pytest.mark.parametrize("settings", [{"num_layers": 0}, {"omega_0": -1.0}, {"replaced_layers": (4,)}])
def test_a_field_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EUGenSirenModelConfig(**settings)
    with pytest.raises(ValueError, match="final_rate is 2"):
        SirenPipelineConfig(final_rate=2)
