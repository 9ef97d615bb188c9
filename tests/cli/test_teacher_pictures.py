"""A teacher's pictures as targets: what they show, from where, and what refining on them does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eugen3d.cli.errors import UsageError
from eugen3d.cli.main import main
from eugen3d.cli.runs import load_run
from eugen3d.cli.teacher_pictures import POSES_PER_BATCH, TeacherPictures
from eugen3d.cli.teachers import NerfTeacher, teacher_of
from eugen3d.layers import LayerConfig

Make = Callable[..., Path]


@pytest.fixture
def dense(make_run: Make) -> Path:
    """Three dense layers."""
    return make_run("teacher", layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)


def pictures_of(config: Path, novel_fraction: float) -> TeacherPictures:
    run = load_run(config, "cpu", test_mode="test")
    dataset = run.pipeline.datamanager.train_dataset
    assert dataset is not None
    return TeacherPictures(teacher_of(run), dataset.cameras, novel_fraction, seed=3)


def distances_to_cameras(pictures: TeacherPictures, origins: Tensor) -> Tensor:
    """From every origin (n, 3) to the nearest camera."""
    return torch.cdist(origins, pictures.cameras.camera_to_worlds[:, :3, 3]).amin(dim=1)


def test_a_batch_is_what_the_teacher_shows(dense: Path) -> None:
    pictures = pictures_of(dense, 0.0)
    rays, batch = pictures.batch(5, 64)
    with torch.no_grad():
        expected = pictures.teacher.model(rays)["rgb"]
    torch.testing.assert_close(batch["image"], expected)
    assert rays.shape == (64,) and expected.std() > 1e-3


def test_the_same_number_gives_the_same_batch_and_another_one_another(dense: Path) -> None:
    pictures = pictures_of(dense, 0.5)
    (rays, batch), (same_rays, same), (other_rays, _) = (pictures.batch(number, 40) for number in (1, 1, 2))
    assert torch.equal(batch["image"], same["image"]) and torch.equal(rays.directions, same_rays.directions)
    assert not torch.equal(rays.directions, other_rays.directions)


def test_alpha_is_told_where_training_draws_the_background(make_run: Make) -> None:
    config = make_run("random", background_color="random", layer=LayerConfig("linear"), replaced_layers=())
    pictures = pictures_of(config, 0.0)
    rays, batch = pictures.batch(0, 64)
    assert batch["image"].shape == (64, 4)
    with torch.no_grad():
        expected = pictures.teacher.model(rays)["rgb"]
    torch.testing.assert_close(pictures.teacher.blend(batch["image"]), expected)


@pytest.mark.parametrize(("novel_fraction", "least", "most"), [(0.0, 0, 0), (0.5, 1, 63), (1.0, 64, 64)])
def test_so_many_poses_lie_between_cameras(dense: Path, novel_fraction: float, least: int, most: int) -> None:
    pictures = pictures_of(dense, novel_fraction)
    rays, _ = pictures.batch(0, 64)
    is_novel = distances_to_cameras(pictures, rays.origins) > 1e-4
    assert least <= int(is_novel.sum()) <= most
    assert len(rays.origins.unique(dim=0)) <= POSES_PER_BATCH
    centres = pictures.cameras.camera_to_worlds[:, :3, 3]
    low, high = centres.amin(dim=0) - 1e-4, centres.amax(dim=0) + 1e-4
    assert ((rays.origins >= low) & (rays.origins <= high)).all(), "between cameras is within the box around them"
    torch.testing.assert_close(rays.directions.norm(dim=1), torch.ones(64))


def test_a_teacher_with_appearances_is_refused(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NerfTeacher, "has_appearance", True)
    with pytest.raises(UsageError, match=r"^--refine-teacher: the model has an appearance for each camera"):
        pictures_of(dense, 0.5)


def test_refining_on_them_brings_a_run_nearer_to_the_teacher(make_run: Make, dense: Path, tmp_path: Path) -> None:
    start = make_run("start", seed=5, layer=LayerConfig("linear"), replaced_layers=(), num_layers=3)
    refine = ("--layers", "none", "--refine-steps", "100", "--refine-num-rays", "64", "--refine-learning-rate", "0.01")
    arguments = ("--load-config", str(start), "--output-dir", str(tmp_path / "refined"), "--refine-teacher", str(dense))
    main(["distill", *arguments, *refine])
    rays, batch = pictures_of(dense, 0.5).batch(10**6, 512)
    errors = []
    for config in (start, tmp_path / "refined" / "config.yml"):
        model = load_run(config, "cpu", test_mode="test").pipeline.model
        with torch.no_grad():
            errors.append(float((model(rays)["rgb"] - batch["image"]).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_a_teacher_of_other_cameras_is_one_line(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: False)
    arguments = ("--layers", "none", "--refine-steps", "1", "--refine-teacher", str(dense))
    with pytest.raises(SystemExit, match="2"):
        main(["distill", "--load-config", str(dense), "--output-dir", str(tmp_path / "student"), *arguments])
    assert "its training cameras are other ones than those of" in capsys.readouterr().err
