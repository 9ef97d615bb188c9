"""LPIPS: ours is the lpips package's, on whatever backbone there is, and nothing where there is none."""

from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
import torchvision

from eugen3d.metrics.lpips import CACHE_FILES, LpipsMetric, LpipsNet, LpipsUnavailableError, load_lpips


def random_backbone(net: LpipsNet) -> torch.nn.Module:
    return torchvision.models.alexnet() if net == "alex" else torchvision.models.vgg16()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch hub's cache, empty; a download fails the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("something was downloaded"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_it_equals_the_lpips_package_on_the_same_backbone(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = random_backbone(net)
    maker = "alexnet" if net == "alex" else "vgg16"
    monkeypatch.setattr(lpips.pretrained_networks.tv, maker, lambda pretrained: backbone)  # pyright: ignore
    theirs = lpips.LPIPS(net=net, verbose=False)
    monkeypatch.undo()
    ours = LpipsMetric(net, backbone.state_dict())
    image, target = torch.rand(40, 48, 3), torch.rand(40, 48, 3)
    expected = theirs(image.permute(2, 0, 1)[None], target.permute(2, 0, 1)[None], normalize=True)
    assert ours(image, target) == pytest.approx(float(expected), rel=1e-6)
    assert ours(image, image) == 0.0 and ours(image, target) > 0
    other = LpipsMetric(net, random_backbone(net).state_dict())
    assert other(image, target) != ours(image, target)


def test_the_smallest_images_can_be_measured() -> None:
    metric = LpipsMetric("alex", random_backbone("alex").state_dict())
    image = torch.rand(metric.min_side, metric.min_side, 3)
    assert metric(image, 1 - image) > 0
    with pytest.raises(RuntimeError):
        metric(image[1:], 1 - image[1:])


def test_a_file_and_the_cache_are_found(tmp_path: Path, empty_cache: Path) -> None:
    state = random_backbone("alex").state_dict()
    image, target = torch.rand(32, 32, 3), torch.rand(32, 32, 3)
    torch.save(state, tmp_path / "mine.pth")
    mine = load_lpips("alex", tmp_path / "mine.pth")(image, target)
    empty_cache.mkdir(parents=True)
    torch.save(state, empty_cache / CACHE_FILES["alex"])
    assert load_lpips("alex")(image, target) == mine == LpipsMetric("alex", state)(image, target)


def test_without_a_backbone_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    for net in ("alex", "vgg"):
        with pytest.raises(LpipsUnavailableError, match=f"no {net} backbone in torch hub's cache"):
            load_lpips(net)
    with pytest.raises(LpipsUnavailableError, match=r"none\.pth: not found"):
        load_lpips("alex", tmp_path / "none.pth")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "backbone.pth", random_backbone("alex").state_dict()
    path.write_bytes(b"no weights")
    with pytest.raises(LpipsUnavailableError, match="cannot be read as a state dict"):
        load_lpips("alex", path)
    torch.save([1, 2], path)
    with pytest.raises(LpipsUnavailableError, match="holds no state dict"):
        load_lpips("alex", path)
    torch.save({key: value for key, value in state.items() if key != "features.3.bias"}, path)
    with pytest.raises(LpipsUnavailableError, match=r"features\.3\.bias is not there, expected \(192,\)"):
        load_lpips("alex", path)
    torch.save(state | {"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(
        LpipsUnavailableError, match=r"features\.0\.weight is \(64, 3, 3, 3\), expected \(64, 3, 11, 11\)"
    ):
        load_lpips("alex", path)
