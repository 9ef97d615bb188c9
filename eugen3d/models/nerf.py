"""eugen-nerf: Mildenhall et al.'s NeRF as a nerfstudio model, coarse and fine, with layers of a chosen kind.

Training evaluates the fields merged, on their own parameters; rendering evaluates folded copies of them, tile by tile.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components.ray_samplers import PDFSampler, UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor, nn
from torch.nn import Parameter

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import LayerConfig
from eugen3d.metrics.image import image_metrics
from eugen3d.models.colliders import BoundedCollider
from eugen3d.models.folded import kept_runtime
from eugen3d.models.occupancy import NO_OCCUPANCY, Cells, OccupancyConfig, OccupancyGrid
from eugen3d.models.skipping import Intervals, evaluate_front_to_back, samples_by_grid
from eugen3d.models.strict import StrictModel
from eugen3d.runtime import AutoModule, Backend, TiledModule
from eugen3d.training import has_bfloat16

CELL_DRAWS = 8
"""Points of a cell at which a grid is baked."""


@dataclass
class EUGenNerfModelConfig(ModelConfig):
    """eugen-nerf; the defaults are the paper's NeRF with three EUGen layers."""

    _target: type = field(default_factory=lambda: EUGenNerfModel)
    """Target class to instantiate."""
    layer: LayerConfig = field(default_factory=LayerConfig)
    """Kind and settings of the replaced layers."""
    replaced_layers: tuple[int, ...] = (1, 2, 3)
    """Trunk layers, counted from 0, that are of that kind; the others are dense."""
    merged: bool = False
    """Whether the fields are folded from the start: thinner, no longer over-parametrised."""
    num_layers: int = 8
    """Hidden layers of the trunk."""
    layer_width: int = 256
    """Width of the trunk."""
    view_width: int = 128
    """Width of the view-dependent layer."""
    num_coarse_samples: int = 64
    """Samples per ray of the coarse field."""
    num_importance_samples: int = 128
    """Samples per ray that the coarse weights add for the fine field."""
    near_plane: float = 2.0
    """Distance at which rays start, in scene units."""
    far_plane: float = 6.0
    """Distance at which rays end, in scene units."""
    bounding_radius: float | None = None
    """Radius of a sphere around the origin that holds the scene; rays are sampled inside it alone."""
    background_color: Literal["white", "black", "random"] = "white"
    """Colour behind the scene; with "random" a new one for every training ray, and black when rendering."""
    training_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matrix products in training; "auto" takes bfloat16 where the processor computes in it."""
    runtime: Backend = "eager"
    """How rendering evaluates the folded fields."""
    occupancy: OccupancyConfig = NO_OCCUPANCY
    """The grid that rendering samples rays by; `eugen3d bake` fills it."""

    def field_config(self) -> NerfFieldConfig:
        """The configuration of either field."""
        return NerfFieldConfig(
            num_layers=self.num_layers,
            layer_width=self.layer_width,
            view_width=self.view_width,
            skip=self.num_layers // 2 if self.num_layers > 4 else 0,
            layer=self.layer,
            replaced_layers=tuple(self.replaced_layers),
            merged=self.merged,
        )


class EUGenNerfModel(StrictModel):
    """NeRF with a coarse and a fine field (Mildenhall et al. 2020, section 5.2)."""

    config: EUGenNerfModelConfig

    def populate_modules(self) -> None:
        """Build the fields, samplers and renderers."""
        self.collider = BoundedCollider(self.config.near_plane, self.config.far_plane, self.config.bounding_radius)
        self.fields = nn.ModuleDict({name: NerfField(self.config.field_config()) for name in ("coarse", "fine")})
        self.sampler_uniform = UniformSampler(num_samples=self.config.num_coarse_samples)
        self.sampler_pdf = PDFSampler(num_samples=self.config.num_importance_samples)
        self.renderer_rgb = RGBRenderer(background_color=self.config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="expected")
        self.occupancy = self.config.occupancy.make_grid(self.scene_radius)
        self._folded = {name: kept_runtime() for name in self.fields}

    @property
    def scene_radius(self) -> float:
        """Radius of a ball around the origin, in scene units, that a grid of what is occupied resolves evenly."""
        return self.config.bounding_radius or self.config.far_plane

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """One group, `fields`."""
        return {"fields": [p for p in self.fields.parameters() if p.requires_grad]}

    @property
    def rendering_field(self) -> nn.Module:
        """The field that renders, by a grid of what is occupied alone."""
        return self.fields["fine"]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Render a bundle of rays, shape (n,): rgb (n, 3), accumulation (n, 1), depth (n, 1), and the coarse ones.

        By a grid of what is occupied the fine field alone is evaluated, and there are no coarse ones.
        """
        if self.occupancy is not None and self.config.occupancy.is_asked(self.training):
            return self._render_by_grid(ray_bundle, self.occupancy)
        outputs: dict[str, Tensor] = {}
        for name, samples, rgb, weights in self._march(ray_bundle):
            suffix = "" if name == "fine" else f"_{name}"
            outputs |= {key + suffix: value for key, value in self._composite(samples, rgb, weights).items()}
        return outputs

    @torch.no_grad()
    def field_samples(self, ray_bundle: RayBundle) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What each field sees along rays: positions and directions (n, samples, 3), rendering weights and interval
        lengths (n, samples).

        The samples are jittered, as in training, so that many rays cover every depth.
        """
        if self.collider is not None:
            ray_bundle = self.collider(ray_bundle)
        seen = {}
        samplers = self.sampler_uniform, self.sampler_pdf
        modes = [sampler.training for sampler in samplers]
        try:
            for sampler in samplers:
                sampler.train()
            for name, samples, _, weights in self._march(ray_bundle):
                positions = samples.frustums.get_positions()
                assert samples.deltas is not None
                directions = samples.frustums.directions.expand_as(positions)
                seen[name] = positions, directions, weights[..., 0], samples.deltas[..., 0]
        finally:
            for sampler, mode in zip(samplers, modes, strict=True):
                sampler.train(mode)
        return seen

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the fine colours, and of any coarse ones (Mildenhall et al. 2020, eq. 6)."""
        image = batch["image"].to(self.device)
        losses = {}
        for suffix in ("_coarse", "") if "rgb_coarse" in outputs else ("",):
            rgb, target = self.renderer_rgb.blend_background_for_loss_computation(
                outputs["rgb" + suffix], outputs["accumulation" + suffix], image
            )
            losses[f"rgb_loss{suffix or '_fine'}"] = F.mse_loss(rgb, target)
        return losses

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """PSNR of a training batch, over a black background where it is random."""
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        return {"psnr": -10.0 * F.mse_loss(outputs["rgb"].detach(), target).log10()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM of an image; LPIPS is `eugen3d score`'s, since its backbone may not be there."""
        target = self.renderer_rgb.blend_background(batch["image"].to(outputs["rgb"].device))
        depth = colormaps.apply_depth_colormap(
            outputs["depth"],
            accumulation=outputs["accumulation"],
            near_plane=self.config.near_plane,
            far_plane=self.config.far_plane,
        )
        accumulation = colormaps.apply_colormap(outputs["accumulation"])
        images = {
            "img": torch.cat([target, outputs.get("rgb_coarse", outputs["rgb"]), outputs["rgb"]], dim=1),
            "accumulation": accumulation,
            "depth": depth,
        }
        return image_metrics(outputs["rgb"], target), images

    @torch.no_grad()
    def look_up_cells(
        self, rays: Sequence[RayBundle], generator: torch.Generator, advance: Callable[[float], object]
    ) -> dict[str, Cells]:
        """What the grid is baked from: the density of the fine field, which alone renders, at points of all cells."""
        assert self.occupancy is not None
        field = self._folded_field("fine")
        direction = torch.tensor([0.0, 0.0, 1.0], device=self.device)
        within = self.config.bounding_radius or math.inf

        def density(points: Tensor, _: Tensor) -> Tensor:
            return field(points, direction.expand_as(points))[0]

        far = self.config.far_plane
        return {"cells": self.occupancy.look_up_cells(density, far, within, CELL_DRAWS, generator, advance)}

    def _composite(self, samples: RaySamples, rgb: Tensor, weights: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            depth = self.renderer_depth(weights, samples)
        return {
            "rgb": self.renderer_rgb(rgb, weights),
            "accumulation": self.renderer_accumulation(weights),
            "depth": depth,
        }

    def _render_by_grid(self, rays: RayBundle, grid: OccupancyGrid) -> dict[str, Tensor]:
        config = self.config
        count = config.occupancy.num_samples or config.num_coarse_samples + config.num_importance_samples
        samples, live = samples_by_grid(grid, rays, self.sampler_uniform, count, config.occupancy.spread)
        frustums = samples.frustums
        middles = (frustums.starts[..., 0] + frustums.ends[..., 0]) / 2

        def evaluate(at: Intervals) -> tuple[Tensor, ...]:
            direction = rays.directions[at[0]]
            return self._at("fine", rays.origins[at[0]] + direction * middles[at][:, None], direction)

        assert samples.deltas is not None
        deltas = samples.deltas[..., 0]
        density, rgb = evaluate_front_to_back(live, deltas, evaluate, config.occupancy.min_transmittance)
        return self._composite(samples, rgb, samples.get_weights(density[..., None]))

    def _march(self, ray_bundle: RayBundle) -> Iterator[tuple[str, RaySamples, Tensor, Tensor]]:
        """Field by field: its name, its samples, their colours (n, samples, 3) and weights (n, samples, 1)."""
        samples = self.sampler_uniform(ray_bundle)
        rgb, weights = self._evaluate("coarse", samples)
        yield "coarse", samples, rgb, weights
        samples = self.sampler_pdf(ray_bundle, samples, weights.detach())
        yield "fine", samples, *self._evaluate("fine", samples)

    def _evaluate(self, name: str, samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Colours (n, samples, 3) and rendering weights (n, samples, 1) of a field along rays."""
        positions = samples.frustums.get_positions()
        directions = samples.frustums.directions.expand_as(positions)
        density, rgb = self._at(name, positions.reshape(-1, 3), directions.reshape(-1, 3))
        shape = positions.shape[:-1]
        weights = samples.get_weights(density.float().view(*shape, 1))
        return rgb.float().view(*shape, 3), weights

    def _at(self, name: str, positions: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        """Densities (n,) and colours (n, 3) of a field at points (n, 3), seen along directions (n, 3)."""
        if not self.training:
            return self._folded_field(name)(positions, directions)
        with self._autocast():
            return self.fields[name](positions, directions)

    def _folded_field(self, name: str) -> TiledModule | AutoModule:
        """The folded copy of a field."""
        return self._folded[name].of(self.fields[name], self.config.runtime)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        precision = self.config.training_precision
        enabled = precision == "bfloat16" or (precision == "auto" and has_bfloat16(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            yield
