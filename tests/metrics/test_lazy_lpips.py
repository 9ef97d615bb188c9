"""LPIPS that is built when it is used: nothing is downloaded, and no number comes from random weights."""

from pathlib import Path

import pytest
import torch
import torchmetrics.image.lpip
import torchvision

from eugen3d.metrics.lazy_lpips import LazyLpips, lazy_lpips


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_the_context_replaces_the_class_and_puts_it_back() -> None:
    real = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity
    with pytest.raises(KeyError), lazy_lpips():
        metric = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity(normalize=True)
        assert isinstance(metric, LazyLpips) and not metric.state_dict()
        raise KeyError
    assert torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity is real


def test_without_a_backbone_it_is_nan_with_one_warning(torch_home: Path) -> None:
    metric, image = LazyLpips(normalize=True), torch.rand(1, 3, 40, 40)
    with pytest.warns(UserWarning, match="LPIPS is not measured: no alex backbone") as warned:
        assert metric(image, image).isnan() and metric(image, image).isnan()
    assert len(warned) == 1


def test_with_a_backbone_it_is_what_torchmetrics_computes(torch_home: Path) -> None:
    alexnet = torchvision.models.alexnet(weights=None)
    torch.save(alexnet.state_dict(), torch_home / "alexnet-owt-7be5be79.pth")
    first, second = torch.rand(2, 1, 3, 48, 64)
    for normalize in (True, False):
        metric = LazyLpips(normalize=normalize)
        real = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity(normalize=normalize)
        torch.testing.assert_close(metric(first, second), real(first, second).detach(), rtol=1e-4, atol=1e-6)
        assert metric(first, first) < metric(first, second)
        assert not metric.state_dict()
    with pytest.warns(UserWarning, match="images are under 31 pixels a side"):
        assert LazyLpips()(first[..., :16, :16], second[..., :16, :16]).isnan()
