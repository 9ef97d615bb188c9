"""LPIPS (Zhang et al. 2018), from weights that are on this machine already; nothing is ever downloaded.

The metric has two parts: an ImageNet backbone and linear heads over its activations. The heads come with the `lpips`
package. The backbone is a file of torchvision's: one that is given, or the one in torch hub's cache.
"""

import pickle
import warnings
from pathlib import Path
from typing import Literal

import lpips
import torch
from torch import Tensor, nn

LpipsNet = Literal["alex", "vgg"]

CACHE_FILES: dict[LpipsNet, str] = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
MIN_SIDE: dict[LpipsNet, int] = {"alex": 31, "vgg": 16}


class LpipsUnavailableError(Exception):
    """There is no usable backbone; the message is one line that says why."""


class LpipsMetric(nn.Module):
    """LPIPS over a given backbone.

    Args:
        net: which backbone.
        backbone: its state dict as torchvision's `alexnet` or `vgg16` has it; the classifier may be left out.

    Raises:
        LpipsUnavailableError: the state is not that backbone's.
    """

    def __init__(self, net: LpipsNet, backbone: dict[str, Tensor]) -> None:
        super().__init__()
        self.min_side = MIN_SIDE[net]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by arguments that it has deprecated
            self.distance = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        features = {key: value for key, value in backbone.items() if key.startswith("features.")}
        trunk = self.distance.net
        slices = [getattr(trunk, f"slice{index + 1}") for index in range(trunk.N_slices)]
        expected = {
            f"features.{name}.{key}": value
            for part in slices
            for name, module in part.named_children()
            for key, value in module.named_parameters()
        }
        shapes, found = ({key: tuple(x.shape) for key, x in state.items()} for state in (expected, features))
        if shapes != found:
            key = min(shapes.items() ^ found.items())[0]
            raise LpipsUnavailableError(
                f"{key} is {found.get(key, 'not there')}, expected {shapes.get(key, 'none')} for torchvision's {net}"
            )
        with torch.no_grad():
            for key, value in expected.items():
                value.copy_(features[key])
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor, target: Tensor) -> float:
        """The distance of two images (height, width, 3) in [0, 1]; no side may be under `min_side` pixels."""
        prediction, reference = (torch.moveaxis(x, -1, 0)[None] for x in (image, target))
        return float(self.distance(prediction, reference, normalize=True))


def load_lpips(net: LpipsNet = "alex", backbone: Path | None = None) -> LpipsMetric:
    """The metric with the backbone in a file, or, where none is given, in torch hub's cache.

    Raises:
        LpipsUnavailableError: there is no such file, or it does not hold that backbone.
    """
    path = find_backbone(net, backbone)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError, KeyError, AttributeError):
        raise LpipsUnavailableError(f"{path}: cannot be read as a state dict") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LpipsUnavailableError(f"{path}: holds no state dict of tensors")
    try:
        return LpipsMetric(net, state)
    except LpipsUnavailableError as error:
        raise LpipsUnavailableError(f"{path}: {error}") from None


def find_backbone(net: LpipsNet, backbone: Path | None = None) -> Path:
    """The given file, or the one in torch hub's cache; `LpipsUnavailableError` where it is not there."""
    path = backbone or Path(torch.hub.get_dir()) / "checkpoints" / CACHE_FILES[net]
    if not path.is_file():
        where = f"{path}: not found" if backbone else f"no {net} backbone in torch hub's cache"
        raise LpipsUnavailableError(f"{where}, expected torchvision's weights {CACHE_FILES[net]}")
    return path
