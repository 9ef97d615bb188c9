"""Runs of eugen-isdf as what `eugen3d distill` starts from.

Their rows are points along rays of the keyframes, and others evenly in the box around what was seen: where no ray comes
a student would not extrapolate as its teacher does, but be off by any amount.
"""

import math
from functools import cached_property

import torch
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.distill_sources import SingleFieldSource, refuse_flags_of_pictures
from eugen3d.cli.errors import UsageError
from eugen3d.cli.refinement import polish
from eugen3d.cli.sdf_runs import load_sdf_run
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.distill import Network, Rows, SdfLoss
from eugen3d.layers import fold
from eugen3d.mapping import RaySamplingConfig
from eugen3d.mapping.rays import draw_rays, draw_samples
from eugen3d.models.isdf import EUGenIsdfModel
from eugen3d.models.isdf_pipeline import PROGRESS, pack_progress
from eugen3d.training.distributed import rank, world_size

RAYS_PER_BATCH = 64
MARGIN = 0.2
"""How far the box reaches beyond what was seen, in metres."""


class SdfSource(SingleFieldSource):
    """A trained field of signed distance.

    Raises:
        UsageError: the run cannot be loaded, its checkpoint holds no keyframes, or a flag is of no use for it.
    """

    make_loss = SdfLoss

    def __init__(self, settings: DistillSettings, device: str) -> None:
        own = ("num_rays", "pair_fraction", "max_rows", "weighted_fraction")
        refuse_flags_of_pictures(settings, own, "whose rays are those of the depth frames that it keeps")
        run = load_sdf_run(settings.load_config, device)
        if not len(run.keyframes):
            raise UsageError(f"{run.checkpoint}: holds no keyframes, expected some: their rays are distilled at")
        self.settings, self.run = settings, run
        self.config, self.checkpoint, self.step, self.model = run.config, run.checkpoint, run.step, run.model

    def networks_of(self, model: Model) -> dict[str, Network]:
        assert isinstance(model, EUGenIsdfModel)
        return {"field": Network.trace(model.field, (torch.zeros(1, 3, device=model.device),))}

    def folded_of(self, model: Model) -> dict[str, nn.Module]:
        assert isinstance(model, EUGenIsdfModel)
        return {"field": model.query().folded}

    def state(self, student: Model) -> dict[str, Tensor]:
        """The student's weights and the teacher's keyframes: a stream goes on from there, and a mesh knows its bounds.

        What the teacher explained at its last keyframe is left out: it is no field of the student's.
        """
        assert self.run.progress is not None
        return super().state(student) | {PROGRESS: pack_progress(self.run.progress | {"frozen": None})}

    def refine(self, student: Model, progress: DistillProgress) -> None:
        assert isinstance(student, EUGenIsdfModel)
        settings, rows = self.settings, self.rows(1, progress)["field"]
        teacher, folded = self.networks_of(self.model)["field"], fold(student)
        network = Network(student.field, {}, {})
        loss, held_out_loss = (SdfLoss(teacher, part) for part in rows.split())
        num_rows = math.ceil(settings.refine_num_rays * self._rows_per_ray / world_size())

        def train_loss(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(hash_seed(settings.seed, "refine", step, rank()))
            return loss(network, generator, num_rows)

        polish(settings, folded, train_loss, lambda: held_out_loss.of(network), progress)

    @property
    def _rays(self) -> RaySamplingConfig:
        """How rays are drawn and samples stand on them: as when the field was trained."""
        return self.config.pipeline.mapper.rays  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _rows_per_ray(self) -> float:
        return self._rays.num_samples * self.settings.sampling.pair_fraction

    def _draw_rows(self, needed: int) -> Rows:
        """This process's rows; those of all processes are the same ones for the same seed."""
        sampling, count = self.settings.sampling, math.ceil(self.settings.sampling.num_rays / RAYS_PER_BATCH)
        total = min(sampling.max_rows, round(sampling.num_rays * self._rows_per_ray))
        if total < needed:
            raise UsageError(
                f"--sampling.num-rays: {sampling.num_rays} rays give {total} rows, expected at least {needed} for "
                "--num-features; take more rays or pairs, or fewer features"
            )
        if count < world_size():
            raise UsageError(
                f"--sampling.num-rays: {sampling.num_rays} rays are {count} batches, expected one or more for each of "
                f"{world_size()} processes"
            )
        share = total / (sampling.num_rays * self._rays.num_samples)
        parts = [self._draw_points(number, share) for number in range(rank(), count, world_size())]
        points = torch.cat(parts).to(self.model.device)
        ones = torch.ones(len(points), device=points.device)
        return Rows((points,), ones, ones, tuple(map(len, parts)))

    def _draw_points(self, number: int, share: float) -> Tensor:
        """The points (n, 3) of a batch of rays: a share of as many as have samples there, some of them off the rays.

        Batches go through one keyframe after the other.
        """
        entries, on_rays = self.run.keyframes.entries, self.settings.sampling.weighted_fraction
        generator = torch.Generator().manual_seed(hash_seed(self.settings.seed, "rows", number))
        rays = draw_rays(entries[number % len(entries)].frame, RAYS_PER_BATCH, self._rays, generator)
        points = draw_samples(rays, self._rays, generator).points.flatten(0, 1)
        count = math.ceil(share * len(points))
        kept = points[torch.randperm(len(points), generator=generator)[: round(on_rays * count)]]
        lower, upper = self._box
        evenly = lower + (upper - lower) * torch.rand(count - len(kept), 3, generator=generator)
        return torch.cat([kept, evenly])[torch.randperm(count, generator=generator)]

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        """The corners of the box around what the keyframes saw, with a margin."""
        surface = self.run.surface
        return surface.min(dim=0).values - MARGIN, surface.max(dim=0).values + MARGIN
