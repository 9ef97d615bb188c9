"""eugen-isdf: Ortiz et al.'s iSDF as a nerfstudio model, with layers of a chosen kind.

It is trained by a pipeline of its own (see `eugen3d.models.isdf_pipeline`) and rendered by sphere tracing.
"""

from dataclasses import dataclass, field

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import ModelConfig
from torch import Tensor
from torch.nn import Parameter

from eugen3d.fields import IsdfField, IsdfFieldConfig
from eugen3d.layers import LayerConfig
from eugen3d.mapping import SdfQuery, TraceConfig, trace_rays
from eugen3d.models.folded import KeptCopy
from eugen3d.models.strict import StrictModel
from eugen3d.runtime import Backend


@dataclass
class EUGenIsdfModelConfig(ModelConfig):
    """eugen-isdf; the defaults are the paper's iSDF with two EUGen layers."""

    _target: type = field(default_factory=lambda: EUGenIsdfModel)
    """Target class to instantiate."""
    enable_collider: bool = False
    """Whether nerfstudio cuts rays; tracing has planes of its own."""
    layer: LayerConfig = field(default_factory=lambda: IsdfFieldConfig().layer)
    """Kind and settings of the replaced layers."""
    replaced_layers: tuple[int, ...] = IsdfFieldConfig.replaced_layers
    """Trunk layers, counted from 0, that are of that kind; the others are dense."""
    merged: bool = False
    """Whether the field is folded from the start: thinner, no longer over-parametrised."""
    num_layers: int = IsdfFieldConfig.num_layers
    """Hidden layers of the trunk."""
    layer_width: int = IsdfFieldConfig.layer_width
    """Width of the trunk."""
    num_frequencies: int = IsdfFieldConfig.num_frequencies
    """Octaves of the encoding."""
    input_scale: float = IsdfFieldConfig.input_scale
    """What metres are multiplied by before they are encoded: larger for small scenes."""
    trace: TraceConfig = field(default_factory=TraceConfig)
    """How rendering traces rays."""
    runtime: Backend = "eager"
    """How rendering evaluates the folded field."""

    def __post_init__(self) -> None:
        self.field_config()  # refuses what no field can be made of before anything is written

    def field_config(self) -> IsdfFieldConfig:
        """The configuration of the field."""
        return IsdfFieldConfig(
            num_layers=self.num_layers,
            layer_width=self.layer_width,
            skip=self.num_layers // 2 if self.num_layers > 4 else 0,
            num_frequencies=self.num_frequencies,
            input_scale=self.input_scale,
            layer=self.layer,
            replaced_layers=self.replaced_layers,
            merged=self.merged,
        )


class EUGenIsdfModel(StrictModel):
    """A field of signed distance, with the surfaces that cameras see of it."""

    config: EUGenIsdfModelConfig

    def populate_modules(self) -> None:
        """Make the field."""
        super().populate_modules()
        self.field = IsdfField(self.config.field_config())
        self._query = KeptCopy(SdfQuery)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group, `fields`."""
        return {"fields": [p for p in self.field.parameters() if p.requires_grad]}

    def query(self) -> SdfQuery:
        """The folded field."""
        return self._query.of(self.field, self.config.runtime)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """What rays (n,) meet: depth (n, 1) along the ray, accumulation (n, 1), normals (n, 3) as colours and rgb
        (n, 3), the surface lit from the camera."""
        query, directions = self.query(), ray_bundle.directions
        depth, is_hit = trace_rays(query, ray_bundle.origins, directions, self.config.trace)
        _, gradient = query.distance_and_gradient(ray_bundle.origins + depth[:, None] * directions)
        normals = torch.nn.functional.normalize(gradient, dim=-1)
        seen = is_hit[:, None].to(depth.dtype)
        light = (-(normals * directions).sum(dim=-1, keepdim=True)).clamp(0, 1)
        return {
            "rgb": (light * seen).expand(-1, 3),
            "accumulation": seen,
            "depth": depth[:, None],
            "normals": (normals + 1) / 2 * seen,
        }
