"""LPIPS for models that set it up at once: built when it is first used, not a number where its backbone is missing.

nerfstudio's models make torchmetrics' LPIPS when they are set up, which downloads AlexNet; where there is no network
they cannot even be loaded.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torchmetrics.image.lpip
from torch import Tensor, nn

from eugen3d.metrics.lpips import LpipsMetric, LpipsNet, LpipsUnavailableError, load_lpips

_CLASS = "LearnedPerceptualImagePatchSimilarity"


class LazyLpips(nn.Module):
    """Stands for torchmetrics' LPIPS; without parameters, so that nothing of it is in a checkpoint.

    Args:
        net_type: the backbone, "alex" or "vgg".
        normalize: whether images are in [0, 1], otherwise in [-1, 1].
    """

    def __init__(self, net_type: LpipsNet = "alex", reduction: str = "mean", normalize: bool = False) -> None:
        super().__init__()
        if reduction != "mean":
            raise ValueError(f"reduction is {reduction!r}, expected 'mean'")
        self.net_type: LpipsNet = net_type
        self.normalize = normalize
        self._warned: set[str] = set()
        self.__dict__["_metric"] = None  # no submodule: the backbone's weights are no part of a state

    @torch.no_grad()
    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """The mean distance of images (n, 3, height, width); NaN, with one warning, where it cannot be measured."""
        try:
            metric = self._load(image)
        except LpipsUnavailableError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                warnings.warn(f"LPIPS is not measured: {error}", stacklevel=2)
            return image.new_full((), torch.nan)
        return metric.distance(image, target, normalize=self.normalize).mean()

    def _load(self, image: Tensor) -> LpipsMetric:
        metric: LpipsMetric | None = self.__dict__["_metric"]
        if metric is None:
            metric = self.__dict__["_metric"] = load_lpips(self.net_type)
        if min(image.shape[-2:]) < metric.min_side:
            raise LpipsUnavailableError(f"images are under {metric.min_side} pixels a side, too small for its backbone")
        return metric.to(image.device)


@contextmanager
def lazy_lpips() -> Iterator[None]:
    """Whoever sets up torchmetrics' LPIPS inside this context gets one that is built at its first use."""
    real = getattr(torchmetrics.image.lpip, _CLASS)
    setattr(torchmetrics.image.lpip, _CLASS, LazyLpips)
    try:
        yield
    finally:
        setattr(torchmetrics.image.lpip, _CLASS, real)
