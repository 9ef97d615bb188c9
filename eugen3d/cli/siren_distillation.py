"""Runs of eugen-siren as what `eugen3d distill` starts from.

Their rows are points of the grid that the signal was fitted on, of a shape points of the cube that holds it, of which a
share lies where the teacher's distance is small.
"""

import math

import torch
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from eugen3d.cli.distill_progress import DistillProgress
from eugen3d.cli.distill_settings import DistillSettings
from eugen3d.cli.distill_sources import SingleFieldSource, refuse_flags_of_pictures
from eugen3d.cli.errors import UsageError
from eugen3d.cli.refinement import polish
from eugen3d.cli.siren_runs import load_siren_run
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.datasets.signals import ShapeFormat, grid_points
from eugen3d.distill import Loss, Network, Rows, SdfLoss, ValueLoss
from eugen3d.layers import fold
from eugen3d.models.siren import EUGenSirenModel
from eugen3d.training.distributed import rank, world_size

ROWS_PER_BATCH = 4096
CANDIDATES = 4
"""Points of the cube of which the one that is nearest to a shape's surface is taken, for rows near it."""


class SirenSource(SingleFieldSource):
    """A fitted signal.

    Raises:
        UsageError: the run cannot be loaded, or a flag is of no use for it.
    """

    def __init__(self, settings: DistillSettings, device: str) -> None:
        refuse_flags_of_pictures(settings, ("max_rows", "weighted_fraction"), "whose rows are points of its signal")
        run = load_siren_run(settings.load_config, device)
        self.settings, self.run = settings, run
        self.config, self.checkpoint, self.step, self.model = run.config, run.checkpoint, run.step, run.model
        self.make_loss = SdfLoss if isinstance(run.signal, ShapeFormat) else ValueLoss

    def networks_of(self, model: Model) -> dict[str, Network]:
        assert isinstance(model, EUGenSirenModel)
        in_dim = model.field.config.in_dim
        return {"field": Network.trace(model.field, (torch.zeros(1, in_dim, device=model.device),))}

    def folded_of(self, model: Model) -> dict[str, nn.Module]:
        assert isinstance(model, EUGenSirenModel)
        return {"field": model.folded()}

    def refine(self, student: Model, progress: DistillProgress) -> None:
        assert isinstance(student, EUGenSirenModel)
        settings, rows = self.settings, self.rows(1, progress)["field"]
        teacher, folded = self.networks_of(self.model)["field"], fold(student)
        network = Network(student.field, {}, {})
        losses: list[Loss] = [self.make_loss(teacher, part) for part in rows.split()]
        loss, held_out_loss = losses
        num_rows = math.ceil(ROWS_PER_BATCH / world_size())

        def train_loss(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(hash_seed(settings.seed, "refine", step, rank()))
            return loss(network, generator, num_rows)

        polish(settings, folded, train_loss, lambda: held_out_loss.of(network), progress)

    def _draw_rows(self, needed: int) -> Rows:
        """This process's rows; those of all processes are the same ones for the same seed."""
        signal, total = self.run.signal, self.settings.sampling.max_rows
        if not isinstance(signal, ShapeFormat):
            total = min(total, math.prod(signal.size))
        if total < needed:
            raise UsageError(
                f"--sampling.max-rows: there are {total} rows, expected at least {needed} for the features"
            )
        count = math.ceil(total / ROWS_PER_BATCH)
        sizes = [min(ROWS_PER_BATCH, total - number * ROWS_PER_BATCH) for number in range(count)]
        if count < world_size():
            raise UsageError(f"{total} rows are {count} batches, expected one for each of {world_size()} processes")
        parts = [self._draw_points(number, sizes[number]) for number in range(rank(), count, world_size())]
        points = torch.cat(parts).to(self.model.device)
        ones = torch.ones(len(points), device=points.device)
        return Rows((points,), ones, ones, tuple(map(len, parts)))

    def _draw_points(self, number: int, count: int) -> Tensor:
        """The points (n, d) of a batch."""
        signal = self.run.signal
        generator = torch.Generator().manual_seed(hash_seed(self.settings.seed, "rows", number))
        if not isinstance(signal, ShapeFormat):
            return grid_points(signal.size, torch.randint(math.prod(signal.size), (count,), generator=generator))
        candidates = 2 * torch.rand(count, CANDIDATES, 3, generator=generator) - 1
        near = round(self.settings.sampling.weighted_fraction * count)
        distances = self.run.model.values_at(candidates[:near].flatten(0, 1).to(self.model.device))
        nearest = distances.cpu().abs().view(near, CANDIDATES).argmin(dim=1)
        points = torch.cat([candidates[:near][torch.arange(near), nearest], candidates[near:, 0]])
        return points[torch.randperm(count, generator=generator)]
