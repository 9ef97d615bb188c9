"""Whole models without weights, to be counted: everything stands on the meta device and nothing is loaded.

The networks of Zip-NeRF, iSDF and SIREN are built here from the sizes in their papers: dense layers alone, no hash
grids, no encodings. The vision and language models come from timm and transformers, which are optional.
"""

import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import LayerConfig, Sine, fold_sequential, push_readout

ModelName = Literal["vit-base", "vit-large", "gpt2", "bert-base", "efficientvit-b1", "nerf", "zipnerf", "isdf", "siren"]

EXTRA = "pip install 'eugen3d[bench]'"


class UnavailableError(Exception):
    """A model that cannot be built here; the message says why and what would help."""


class SkipMlp(nn.Module):
    """Dense layers with one activation; before one of them the input is concatenated once more, behind the rest.

    Args:
        skip: index of that layer; 0 for none.

    Shape: (..., in_dim) → (..., out_dim).
    """

    def __init__(
        self, in_dim: int, layer_width: int, num_layers: int, out_dim: int, activation: nn.Module, skip: int = 0
    ) -> None:
        super().__init__()
        self.in_dim, self.skip = in_dim, skip
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            width = in_dim if index == 0 else layer_width + (in_dim if index == skip else 0)
            self.layers.append(nn.Sequential(nn.Linear(width, layer_width), activation))
        self.head = nn.Sequential(nn.Linear(layer_width, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for index, layer in enumerate(self.layers):
            hidden = layer(torch.cat([hidden, x], dim=-1) if index == self.skip > 0 else hidden)
        return self.head(hidden)

    def fold_(self) -> None:
        """Fold in place (see `eugen3d.layers.fold`)."""
        chains = [chain for chain in (*self.layers, self.head) if isinstance(chain, nn.Sequential)]
        for chain in chains:
            fold_sequential(chain)
        for index in range(1, len(chains)):
            columns = slice(0, -self.in_dim) if index == self.skip else slice(None)
            push_readout(chains[index - 1], [(chains[index], columns)])


class ZipNerfNetwork(nn.Module):
    """Zip-NeRF's dense layers (Barron et al. 2023): grid features to a bottleneck, then the view-dependent colour.

    Shape: features (..., 40) of ten levels and encoded directions (..., 27) → rgb before its sigmoid (..., 3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.density = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 256))
        self.colour = SkipMlp(256 + 27, 256, 2, 3, nn.ReLU(), skip=1)

    def forward(self, features: Tensor, directions: Tensor) -> Tensor:
        return self.colour(torch.cat([self.density(features), directions], dim=-1))


def build_model(name: ModelName) -> nn.Module:
    """Build a model on the meta device.

    Raises:
        UnavailableError: a package that it takes is missing, or too old for it.
    """
    with warnings.catch_warnings(), torch.device("meta"), _SchedulesOnCpu():
        warnings.simplefilter("ignore")
        return _BUILDERS[name]()


def optional_versions() -> dict[str, str]:
    """Versions of the optional packages that are installed."""
    found = {}
    for name in ("timm", "transformers"):
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def _timm_model(name: str) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UnavailableError(f"timm is not installed, expected it: {EXTRA}") from error
    if not timm.is_model(name):
        raise UnavailableError(f"timm {timm.__version__} has no {name}, expected a newer one; nerfstudio pins 0.6.7")
    return timm.create_model(name, pretrained=False)


def _transformers_model(name: str, config: str) -> nn.Module:
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UnavailableError(f"transformers is not installed, expected it: {EXTRA}") from error
    return getattr(transformers, name)(getattr(transformers, config)())


class _SchedulesOnCpu(TorchFunctionMode):
    """Leaves `linspace` on the CPU: timm reads its stochastic-depth rates off it while it builds a model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


_BUILDERS: dict[ModelName, Callable[[], nn.Module]] = {
    "vit-base": lambda: _timm_model("vit_base_patch16_224"),
    "vit-large": lambda: _timm_model("vit_large_patch16_224"),
    "gpt2": lambda: _transformers_model("GPT2LMHeadModel", "GPT2Config"),
    "bert-base": lambda: _transformers_model("BertModel", "BertConfig"),
    "efficientvit-b1": lambda: _timm_model("efficientvit_b1"),
    "nerf": lambda: NerfField(NerfFieldConfig(layer=LayerConfig("linear"))),
    "zipnerf": ZipNerfNetwork,
    "isdf": lambda: SkipMlp(255, 256, 6, 1, nn.Softplus(beta=100), skip=3),
    "siren": lambda: SkipMlp(2, 256, 4, 1, Sine(30.0)),
}
