"""What distillation needs to know of a nerfstudio model: its fields as networks, and what they see along rays."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from nerfstudio.cameras.rays import RayBundle

from eugen3d.cli.errors import UsageError
from eugen3d.cli.runs import Run
from eugen3d.distill import Network, RaySamples
from eugen3d.models.nerf import EUGenNerfModel


class NerfTeacher:
    """An eugen-nerf: a coarse and a fine field over positions and directions.

    Args:
        model: in evaluation mode.
    """

    paths: Mapping[str, str] = MappingProxyType({"coarse": "fields.coarse", "fine": "fields.fine"})
    """Where each field stands in the model."""

    def __init__(self, model: EUGenNerfModel) -> None:
        self.model = model

    @property
    def fewest_samples(self) -> int:
        """Samples of a ray that every field sees at the least."""
        return min(self.model.config.num_coarse_samples, self.model.config.num_importance_samples)

    def networks(self) -> dict[str, Network]:
        """The fields, over the model's own modules."""
        like = next(self.model.parameters())
        point = torch.zeros(1, 3).to(like), torch.eye(3)[:1].to(like)
        return {name: Network.trace(self.model.get_submodule(path), point) for name, path in self.paths.items()}

    def samples(self, rays: RayBundle) -> dict[str, RaySamples]:
        """What every field sees along rays."""
        seen = self.model.field_samples(rays)
        return {name: RaySamples(columns[:2], *columns[2:]) for name, columns in seen.items()}


def teacher_of(run: Run) -> NerfTeacher:
    """What distillation needs to know of a run.

    Raises:
        UsageError: the run's model is of a class that is not known here.
    """
    model = run.pipeline.model
    if not isinstance(model, EUGenNerfModel):
        raise UsageError(f"{run.checkpoint}: method {run.config.method_name!r}, expected an eugen-nerf teacher")
    return NerfTeacher(model)
