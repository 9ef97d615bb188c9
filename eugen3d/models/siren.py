"""eugen-siren: Sitzmann et al.'s SIREN as a nerfstudio model, with layers of a chosen kind.

It stands for one image, sound, video or shape, whose format its configuration holds, and has no cameras: `eugen3d
decode` writes what it stands for.
"""

import copy
from dataclasses import dataclass, field

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import ModelConfig
from torch import Tensor
from torch.nn import Parameter

from eugen3d.datasets.signals import ShapeFormat, SignalFormat
from eugen3d.fields import SirenField, SirenFieldConfig
from eugen3d.layers import LayerConfig, fold
from eugen3d.models.folded import kept_runtime
from eugen3d.models.strict import StrictModel
from eugen3d.runtime import Backend

SOUND_OMEGA_0 = 3000.0
"""ω₀ of sounds, as Sitzmann et al. have it: they scale the time by 100 and take 30."""


@dataclass
class EUGenSirenModelConfig(ModelConfig):
    """eugen-siren; the defaults are the paper's network with EUGen layers for all layers but the first."""

    _target: type = field(default_factory=lambda: EUGenSirenModel)
    """Target class to instantiate."""
    enable_collider: bool = False
    """Of no use: there are no rays."""
    layer: LayerConfig = field(default_factory=lambda: SirenFieldConfig().layer)
    """Kind and settings of the replaced layers."""
    replaced_layers: tuple[int, ...] | None = None
    """Layers, counted from 0, that are of that kind; by default all but the first."""
    merged: bool = False
    """Whether the field is folded from the start: thinner, no longer over-parametrised."""
    num_layers: int = SirenFieldConfig.num_layers
    """Layers of sines, the first one included."""
    layer_width: int = SirenFieldConfig.layer_width
    """Their width."""
    omega_0: float | None = None
    """About the largest frequency that the first layer starts with, radians per unit where the signal reaches from -1
    to 1; by default 30, and 3000 of a sound."""
    runtime: Backend = "eager"
    """How decoding evaluates the folded field."""
    signal: SignalFormat | ShapeFormat | None = None
    """What the network stands for; the data says it."""

    def __post_init__(self) -> None:
        self.field_config()  # refuses what no field can be made of before anything is written

    def field_config(self) -> SirenFieldConfig:
        """The configuration of the field; where the signal is not known yet, that of a grey image."""
        in_dim, out_dim, omega_0 = SirenFieldConfig.in_dim, SirenFieldConfig.out_dim, SirenFieldConfig.omega_0
        if isinstance(self.signal, SignalFormat):
            in_dim, out_dim = len(self.signal.size), self.signal.channels
            omega_0 = SOUND_OMEGA_0 if self.signal.kind == "sound" else omega_0
        elif self.signal is not None:
            in_dim = 3
        return SirenFieldConfig(
            in_dim=in_dim,
            out_dim=out_dim,
            num_layers=self.num_layers,
            layer_width=self.layer_width,
            omega_0=omega_0 if self.omega_0 is None else self.omega_0,
            layer=self.layer,
            replaced_layers=self.replaced_layers,
            merged=self.merged,
        )


class EUGenSirenModel(StrictModel):
    """A network of sines that stands for one signal."""

    config: EUGenSirenModelConfig

    def populate_modules(self) -> None:
        """Make the field."""
        super().populate_modules()
        self.field = SirenField(self.config.field_config())
        self._evaluation = kept_runtime()

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Two groups, `fields` and, of the last, dense layer, `head`."""
        head = set(self.field.layers[-1].parameters())
        groups = {"fields": [p for p in self.field.parameters() if p not in head], "head": list(head)}
        return {name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()}

    @torch.no_grad()
    def values_at(self, coordinates: Tensor) -> Tensor:
        """Values (n, channels) at coordinates (n, d) in [-1, 1], by the folded field."""
        outputs = self._evaluation.of(self.field, self.config.runtime)(coordinates)
        assert isinstance(outputs, Tensor)
        return outputs

    def folded(self) -> SirenField:
        """A folded copy of the field, for evaluation."""
        folded = fold(copy.deepcopy(self.field)).eval().requires_grad_(False)
        assert isinstance(folded, SirenField)
        return folded

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """A signal has no rays."""
        raise NotImplementedError("eugen-siren has no cameras, expected `eugen3d decode`")
