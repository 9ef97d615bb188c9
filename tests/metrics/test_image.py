"""PSNR and SSIM, by hand and against torchmetrics' classes, which nerfstudio's models use."""

import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from eugen3d.metrics.image import image_metrics


def test_a_constant_error_has_its_psnr() -> None:
    target = torch.full((16, 20, 3), 0.5)
    for error in (0.1, 0.01):
        assert image_metrics(target + error, target)["psnr"] == pytest.approx(-20 * math.log10(error), abs=1e-3)


def test_equal_images_are_perfect() -> None:
    image = torch.rand(16, 20, 3)
    metrics = image_metrics(image, image)
    assert metrics["ssim"] == pytest.approx(1.0) and metrics["psnr"] == math.inf


def test_constant_images_have_the_luminance_term_alone() -> None:
    a, b, c1 = 0.2, 0.8, 0.01**2
    ssim = image_metrics(torch.full((16, 16, 3), a), torch.full((16, 16, 3), b))["ssim"]
    assert ssim == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=1e-4)


def test_they_are_nerfstudios_metrics() -> None:
    image, target = torch.rand(24, 17, 3), torch.rand(24, 17, 3)
    batch = [x.permute(2, 0, 1)[None] for x in (image, target)]
    metrics = image_metrics(image, target)
    assert metrics["psnr"] == pytest.approx(float(PeakSignalNoiseRatio(data_range=1.0)(*batch)))
    assert metrics["ssim"] == pytest.approx(float(StructuralSimilarityIndexMeasure(data_range=1.0)(*batch)), abs=1e-6)
