"""eugen-zipnerf: Barron et al.'s Zip-NeRF (2023) as a nerfstudio model, with layers of a chosen kind.

Proposal fields say where along a ray its surface may be; the last field renders. All see the cone of a pixel, not its
axis alone, so that pictures of any size are free of aliasing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.embedding import Embedding
from nerfstudio.model_components.losses import distortion_loss, ray_samples_to_sdist
from nerfstudio.model_components.ray_samplers import PDFSampler, SpacedSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.utils import colormaps
from torch import Tensor, nn
from torch.nn import Parameter

from eugen3d.datasets.stop import stop
from eugen3d.fields import HashGrid, HashGridConfig, ProposalField, ZipLayer, ZipNerfField, ZipNerfFieldConfig
from eugen3d.fields.cones import NUM_POINTS, cone_gaussians, pixel_radius
from eugen3d.fields.hash_grid import GridBackend
from eugen3d.layers import LayerConfig
from eugen3d.metrics.image import image_metrics
from eugen3d.models.colliders import BoundedCollider
from eugen3d.models.folded import kept_runtime
from eugen3d.models.occupancy import NO_OCCUPANCY, Cells, CellSums, OccupancyConfig, OccupancyGrid
from eugen3d.models.ray_spacing import inverse_spacing, spacing
from eugen3d.models.skipping import NUM_PARTS, Intervals, evaluate_front_to_back, samples_by_grid
from eugen3d.models.strict import StrictModel
from eugen3d.models.zipnerf_losses import charbonnier_loss, hash_decay, interlevel_loss
from eugen3d.runtime import Backend
from eugen3d.runtime.tcnn_chain import TcnnUnavailable, load_tcnn

CELL_WIDTH = 0.5
"""Standard deviation of the Gaussians that a grid is baked from, in sides of its cells."""


@dataclass
class ZipNerfLossConfig:
    """What the losses beside the colours' count for."""

    color: Literal["charbonnier", "mse"] = "charbonnier"
    """The colours' loss: √(error² + 0.001²), or its square, which PSNR is of."""
    interlevel_mult: float = 0.01
    """Of how far the proposals fall short of what renders."""
    pulses: tuple[float, ...] = (0.03, 0.003)
    """Half widths by which that is blurred for each proposal; from the near plane to the far one the spacing is 1."""
    distortion_mult: float = 0.005
    """Of how far the weights along a ray are spread (Barron et al. 2022, eq. 15)."""
    hash_decay_mult: float = 0.1
    """Of the mean squares of the grids' entries."""
    anneal_steps: int = 1000
    """Steps until rays are sampled by the proposals' weights alone, more evenly before (Barron et al. 2022, eq. 18)."""


@dataclass
class EUGenZipNerfModelConfig(ModelConfig):
    """eugen-zipnerf; the defaults are Zip-NeRF's with its first view-dependent layer EUGen, m = 64."""

    _target: type = field(default_factory=lambda: EUGenZipNerfModel)
    """Target class to instantiate."""
    layer: LayerConfig = field(default_factory=lambda: ZipNerfFieldConfig().layer)
    """Kind and settings of the replaced layers."""
    replaced_layers: tuple[ZipLayer, ...] = ZipNerfFieldConfig.replaced_layers
    """Hidden layers that are of that kind; the others are dense."""
    merged: bool = False
    """Whether the layers are folded from the start: thinner, no longer over-parametrised."""
    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """The grid of the field that renders."""
    proposal_resolutions: tuple[int, ...] = (512, 2048)
    """The last level's resolution of each proposal's grid; they have one feature a level."""
    num_samples: tuple[int, ...] = (64, 64, 32)
    """Samples per ray of each proposal, and of the field that renders."""
    widths: tuple[int, int, int] = (64, 256, 256)
    """Of the density's layer, of the bottleneck and of the view-dependent layers."""
    near_plane: float = 0.1
    """Distance at which rays start, in scene units."""
    far_plane: float = 1000.0
    """Distance at which rays end, in scene units."""
    contraction_radius: float = 1.0
    """Radius of the ball around the origin that is not contracted, in scene units: where the cameras are."""
    appearance_dim: int = 0
    """Length of a photograph's own appearance, of which rendering takes the mean; 0 for none."""
    background_color: Literal["last_sample", "white", "black", "random"] = "last_sample"
    """What is behind the last sample; by default more of its colour."""
    losses: ZipNerfLossConfig = field(default_factory=ZipNerfLossConfig)
    """The losses beside the colours'."""
    grid_backend: GridBackend = "auto"
    """What looks up the grids: auto is the C++ library on a CPU, torch elsewhere; tcnn is tiny-cuda-nn."""
    runtime: Backend = "eager"
    """How rendering evaluates the folded layers."""
    occupancy: OccupancyConfig = NO_OCCUPANCY
    """The grid that rendering samples rays by; `eugen3d bake` fills it."""

    def __post_init__(self) -> None:
        proposals = len(self.proposal_resolutions)
        if len(self.num_samples) != proposals + 1 or min(self.num_samples) < 1:
            raise ValueError(f"num_samples is {self.num_samples}, expected one of each of {proposals} proposals and 1")
        if len(self.losses.pulses) != proposals:
            raise ValueError(f"losses.pulses is {self.losses.pulses}, expected one for each of {proposals} proposals")
        if self.contraction_radius <= 0:
            raise ValueError(f"contraction_radius is {self.contraction_radius}, expected more than 0")

    def field_config(self) -> ZipNerfFieldConfig:
        """The configuration of the field that renders."""
        density_width, bottleneck_dim, view_width = self.widths
        return ZipNerfFieldConfig(
            grid=self.grid,
            density_width=density_width,
            bottleneck_dim=bottleneck_dim,
            view_width=view_width,
            appearance_dim=self.appearance_dim,
            layer=self.layer,
            replaced_layers=tuple(self.replaced_layers),
            merged=self.merged,
        )

    def proposal_grid(self, resolution: int) -> HashGridConfig:
        """The grid of a proposal: levels as far apart as the field's, up to another resolution."""
        base = min(self.grid.base_resolution, resolution)
        levels = 1 + round(math.log(resolution / base) / max(math.log(self.grid.growth), 1e-6))
        return HashGridConfig(levels, base, resolution, 1, self.grid.log2_hashmap_size)


class Level(NamedTuple):
    """What a field sees and says along rays."""

    samples: RaySamples
    density: Tensor
    """(n, samples, 1), per scene unit."""
    weights: Tensor
    """(n, samples, 1)."""
    rgb: Tensor | None
    """(n, samples, 3), of the field that renders."""


class EUGenZipNerfModel(StrictModel):
    """Zip-NeRF: proposals, and a field that renders."""

    config: EUGenZipNerfModelConfig

    def populate_modules(self) -> None:
        """Build the fields, samplers and renderers."""
        config = self.config
        self.collider = BoundedCollider(config.near_plane, config.far_plane)
        grids = map(config.proposal_grid, config.proposal_resolutions)
        self.proposals = nn.ModuleList(ProposalField(grid, config.contraction_radius) for grid in grids)
        self.field = ZipNerfField(config.field_config(), config.contraction_radius)
        sizes = set(self.kwargs.get("metadata", {}).get("reductions", (1,)))
        self._num_photographs = self.num_train_data // len(sizes)  # the same ones at every size
        self.appearance = Embedding(self._num_photographs, config.appearance_dim) if config.appearance_dim else None
        self.sampler_first = SpacedSampler(spacing, inverse_spacing, single_jitter=True)
        self.sampler_pdf = PDFSampler(include_original=False, single_jitter=True)
        self.renderer_rgb = RGBRenderer(background_color=config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="median")
        self.occupancy = config.occupancy.make_grid(self.scene_radius)
        if config.grid_backend == "tcnn":
            try:
                load_tcnn()
            except TcnnUnavailable as error:
                stop(f"--pipeline.model.grid-backend tcnn: {error}")
        for grid in self.grids():
            grid.backend = config.grid_backend
        self._anneal = 1.0
        self._head = kept_runtime()

    @property
    def scene_radius(self) -> float:
        """Radius of a ball around the origin, in scene units, that a grid of what is occupied resolves evenly."""
        return self.config.contraction_radius

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Two groups: `grids`, the tables, and `fields`, all else."""
        tables = [grid.table for grid in self.grids()]
        own = [p for name, p in self.named_parameters() if name.startswith(("proposals.", "field.", "appearance."))]
        rest = [p for p in own if all(p is not table for table in tables)]
        return {"fields": [p for p in rest if p.requires_grad], "grids": [p for p in tables if p.requires_grad]}

    def grids(self) -> list[HashGrid]:
        """The proposals' grids, and the field's."""
        return [module for module in self.modules() if isinstance(module, HashGrid)]

    @property
    def rendering_field(self) -> nn.Module:
        """The field that renders, by a grid of what is occupied alone."""
        return self.field

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Before every step: how far the proposals' weights are followed yet."""

        def anneal(step: int) -> None:
            share = min(step / max(self.config.losses.anneal_steps, 1), 1.0)
            self._anneal = 10 * share / (9 * share + 1)

        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], anneal, update_every_num_iters=1)]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Render a bundle of rays, shape (n,): rgb (n, 3), accumulation (n, 1), depth (n, 1); in training the levels,
        too."""
        levels = self._march(ray_bundle)
        last = levels[-1]
        assert last.rgb is not None
        outputs: dict[str, Any] = {
            "rgb": self.renderer_rgb(last.rgb, last.weights),
            "accumulation": self.renderer_accumulation(last.weights),
        }
        with torch.no_grad():
            outputs["depth"] = self.renderer_depth(last.weights, last.samples)
        if self.training and len(levels) > 1:  # by a grid there is no proposal to train
            outputs["levels"] = levels
        return outputs

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The colours' loss and, in training, those of the levels and the grids."""
        rgb, target = self.renderer_rgb.blend_background_for_loss_computation(
            outputs["rgb"], outputs["accumulation"], batch["image"].to(self.device)
        )
        color_loss = charbonnier_loss if self.config.losses.color == "charbonnier" else F.mse_loss
        losses = {"rgb_loss": color_loss(rgb, target)}
        if "levels" in outputs:
            config, levels = self.config.losses, outputs["levels"]
            edges = [ray_samples_to_sdist(level.samples) for level in levels]
            weights = [level.weights[..., 0] for level in levels]
            between = [
                interlevel_loss(edges[-1], weights[-1], proposed_edges, proposed, pulse)
                for proposed_edges, proposed, pulse in zip(edges[:-1], weights[:-1], config.pulses, strict=True)
            ]
            losses["interlevel_loss"] = config.interlevel_mult * torch.stack(between).sum()
            spread = distortion_loss([levels[-1].weights], [levels[-1].samples])
            losses["distortion_loss"] = config.distortion_mult * spread
            losses["hash_decay"] = config.hash_decay_mult * hash_decay(self.grids())
        return losses

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """PSNR of a training batch."""
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        return {"psnr": -10.0 * F.mse_loss(outputs["rgb"].detach(), target).log10()}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM of an image; LPIPS is `eugen3d score`'s, since its backbone may not be there."""
        target = self.renderer_rgb.blend_background(batch["image"].to(outputs["rgb"].device))
        images = {
            "img": torch.cat([target, outputs["rgb"]], dim=1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
        }
        return image_metrics(outputs["rgb"].clamp(0, 1), target), images

    @torch.no_grad()
    def head_samples(self, ray_bundle: RayBundle) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """What the layers of the field that renders see along rays: their inputs (n, samples, d), rendering weights
        and interval lengths (n, samples).

        The samples are jittered, as in training, so that many rays cover every depth.
        """
        if self.collider is not None:
            ray_bundle = self.collider(ray_bundle)
        samplers = self.sampler_first, self.sampler_pdf
        try:
            for sampler in samplers:
                sampler.train()
            samples = self._propose(ray_bundle)[1]
        finally:
            for sampler in samplers:
                sampler.train(self.training)
        inputs = self._head_inputs(samples)
        density, _ = self._evaluation()(*inputs)
        shape = samples.shape
        weights = samples.get_weights(density.view(*shape, 1))[..., 0]
        assert samples.deltas is not None
        return tuple(x.view(*shape, -1) for x in inputs), weights, samples.deltas[..., 0]

    @torch.no_grad()
    def look_up_cells(
        self, rays: Sequence[RayBundle], generator: torch.Generator, advance: Callable[[float], object]
    ) -> dict[str, Cells]:
        """What the grid can be baked from: the last proposal's density, which says where the field that renders is
        evaluated, in training, too.

        It depends on how wide the Gaussians are that it is asked for: `cells` has it as of one in the middle of each
        cell, `rays` as some rays see it, where they come.
        """
        assert self.occupancy is not None
        proposal, far = self.proposals[-1], self.config.far_plane

        def density(points: Tensor, sides: Tensor) -> Tensor:
            return proposal(points[:, None], sides[:, None] * CELL_WIDTH)

        cells = self.occupancy.look_up_cells(
            density, far, generator=generator, advance=lambda share: advance(share / 2)
        )
        sums = CellSums(self.occupancy.resolution, self.device)
        for bundle in rays:
            points, seen, light = (part.flatten(0, 1) for part in self._sights(bundle))
            sums.add(self.occupancy.numbers(points).long(), self.occupancy.sides(points, far), seen, light)
            advance(0.5 / len(rays))
        return {"cells": cells, "rays": sums.cells(cells)}

    def _sights(self, rays: RayBundle) -> tuple[Tensor, Tensor, Tensor]:
        """Middles of n rays' parts (n, parts, 3), the last proposal's density there, and how much light comes there."""
        if self.collider is not None:
            rays = self.collider(rays)
        samples, density = self._propose(rays)[0][-1][:2]
        parts = self.sampler_first(rays, NUM_PARTS)
        assert samples.spacing_ends is not None and parts.deltas is not None
        ends = samples.spacing_ends[..., 0].contiguous()
        middles = (torch.arange(NUM_PARTS, device=ends.device) + 0.5) / NUM_PARTS
        interval = torch.searchsorted(ends, middles.expand(len(ends), -1).contiguous())
        density = density[..., 0].gather(1, interval.clamp(max=ends.shape[1] - 1))
        depth = F.pad((density * parts.deltas[..., 0]).cumsum(dim=1), (1, -1))  # optical
        return parts.frustums.get_positions(), density, torch.exp(-depth)

    def _march(self, ray_bundle: RayBundle) -> list[Level]:
        """The proposals, and the field that renders; by a grid of what is occupied that field alone."""
        if self.occupancy is not None and self.config.occupancy.is_asked(self.training):
            return [self._march_by_grid(ray_bundle, self.occupancy)]
        levels, samples = self._propose(ray_bundle)
        density, rgb = self._head_now()(*self._head_inputs(samples))
        density = density.view(*samples.shape, 1)
        return [*levels, Level(samples, density, samples.get_weights(density), rgb.view(*samples.shape, 3))]

    def _march_by_grid(self, ray_bundle: RayBundle, grid: OccupancyGrid) -> Level:
        config = self.config.occupancy
        count = config.num_samples or self.config.num_samples[-1]
        samples, live = samples_by_grid(grid, ray_bundle, self.sampler_first, count, config.spread)
        if self.config.background_color == "last_sample":
            live[:, -1] = True
        head = self._head_now()
        assert samples.deltas is not None
        density, rgb = evaluate_front_to_back(
            live, samples.deltas[..., 0], lambda at: head(*self._head_inputs(samples, at)), config.min_transmittance
        )
        density = density[..., None]
        return Level(samples, density, samples.get_weights(density), rgb)

    def _propose(self, ray_bundle: RayBundle) -> tuple[list[Level], RaySamples]:
        """The proposals, and the intervals of the field that renders."""
        levels: list[Level] = []
        samples = self.sampler_first(ray_bundle, self.config.num_samples[0])
        for proposal, count in zip(self.proposals, self.config.num_samples[1:], strict=True):
            density = proposal(*self._gaussians(samples)).view(*samples.shape, 1)
            weights = samples.get_weights(density)
            levels.append(Level(samples, density, weights, None))
            samples = self.sampler_pdf(ray_bundle, samples, weights.detach() ** self._anneal, count)
        return levels, samples

    def _gaussians(self, samples: RaySamples, at: Intervals | None = None) -> tuple[Tensor, Tensor]:
        """The Gaussians of all n * samples intervals, or of some m: (m, 6, 3) and (m, 6)."""
        frustums = samples.frustums
        origins, directions = frustums.origins[:, 0], frustums.directions[:, 0]
        radius = pixel_radius(frustums.pixel_area[:, 0, 0])
        starts, ends, index = frustums.starts[..., 0], frustums.ends[..., 0], None
        if at is not None:
            origins, directions, radius = origins[at[0]], directions[at[0]], radius[at[0]]
            starts, ends, index = starts[at][:, None], ends[at][:, None], at[1][:, None]
        means, stds = cone_gaussians(origins, directions, radius, starts, ends, is_random=self.training, index=index)
        return means.view(-1, NUM_POINTS, 3), stds.view(-1, NUM_POINTS)

    def _head_inputs(self, samples: RaySamples, at: Intervals | None = None) -> tuple[Tensor, ...]:
        """What the layers see of intervals: features, directions and, where there is one, appearance."""
        features = self.field.features(*self._gaussians(samples, at))
        directions = samples.frustums.directions.expand(*samples.shape, 3)
        directions = directions.reshape(-1, 3) if at is None else directions[at]
        if self.appearance is None:
            return features, directions
        if self.training:
            assert samples.camera_indices is not None
            photographs = samples.camera_indices[..., 0] % self._num_photographs
            own = self.appearance(photographs.expand(samples.shape)).flatten(0, 1)
        else:
            own = self.appearance.mean(dim=0).expand(len(features), -1)
        return features, directions, own

    def _head_now(self) -> nn.Module:
        """In training the layers of the field that renders, else what they fold to."""
        return self.field.head if self.training else self._evaluation()

    def _evaluation(self) -> nn.Module:
        """The folded layers of the field that renders."""
        return self._head.of(self.field.head, self.config.runtime)
