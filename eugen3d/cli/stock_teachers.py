"""nerfstudio's own models as teachers: fields are watched while a model renders, and fed row by row afterwards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from nerfstudio.cameras.rays import Frustums, RayBundle
from nerfstudio.cameras.rays import RaySamples as NerfstudioSamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.ray_samplers import Sampler
from nerfstudio.models.base_model import Model
from nerfstudio.models.mipnerf import MipNerfModel
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.models.neus import NeuSModel
from nerfstudio.models.tensorf import TensoRFModel
from nerfstudio.models.vanilla_nerf import NeRFModel
from torch import Tensor, nn

from eugen3d.cli.nerf_teachers import NerfTeacher
from eugen3d.distill import Network, RaySamples
from eugen3d.distill.network import Batch
from eugen3d.models.stacks import set_runtime
from eugen3d.runtime import Backend

_ONE = MappingProxyType({"field": "field"})
FIELDS: Mapping[type[Model], Mapping[str, str]] = MappingProxyType(
    {
        NeRFModel: MappingProxyType({"coarse": "field_coarse", "fine": "field_fine"}),
        MipNerfModel: _ONE,
        NerfactoModel: _ONE,
        TensoRFModel: _ONE,
        NeuSModel: _ONE,
    }
)
"""Models, their subclasses included, and where their fields stand. Proposal networks and backgrounds stay dense."""

NEARLY_OPAQUE = 1 - 1e-6
"""An SDF's opacity is taken for no more than this where it becomes a density."""


class StockTeacher(NerfTeacher):
    """A model of nerfstudio's whose MLPs are stacks (see `eugen3d.models.stacks`).

    A row of a field is what its sample of a ray is made of: origin, direction, start, end, the pixel's area and the
    camera's number. Fields are evaluated as they are in rendering, a nerfacto's with its mean appearance, say.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.paths = next(paths for kind, paths in FIELDS.items() if isinstance(model, kind))
        self.sees_pixel_width = isinstance(model, MipNerfModel)

    @property
    def fewest_samples(self) -> int:
        return min(self.samples_per_ray.values())

    @cached_property
    def samples_per_ray(self) -> Mapping[str, int]:
        return {part: seen.weights.shape[1] for part, seen in self._seen(_one_ray(self.model.device)).items()}

    def networks(self) -> dict[str, Network]:
        seen = self._seen(_one_ray(self.model.device))
        rows = {part: tuple(x[0, :1] for x in samples.inputs) for part, samples in seen.items()}
        return {
            part: Network.trace(self.model.get_submodule(path), rows[part], run_field)
            for part, path in self.paths.items()
        }

    def samples(self, rays: RayBundle) -> dict[str, RaySamples]:
        samplers = [module for module in self.model.modules() if isinstance(module, Sampler)]
        modes = [sampler.training for sampler in samplers]
        try:
            for sampler in samplers:
                sampler.training = True
            return self._seen(rays)
        finally:
            for sampler, mode in zip(samplers, modes, strict=True):
                sampler.training = mode

    def set_runtime(self, runtime: Backend) -> None:
        set_runtime(self.model, runtime)

    def folded(self) -> dict[str, nn.Module]:
        for path in self.paths.values():
            _forget(self.model.get_submodule(path))
        return super().folded()

    @torch.no_grad()
    def _seen(self, rays: RayBundle) -> dict[str, RaySamples]:
        """What the fields see in one pass; samples of a field that is run more than once follow each other."""
        with _watched({part: self.model.get_submodule(path) for part, path in self.paths.items()}) as calls:
            self.model(rays)
        parts = {part: [_ray_samples(*call) for call in of_field] for part, of_field in calls.items()}
        return {part: _joined(passes) for part, passes in parts.items()}


def run_field(field: nn.Module, batch: Batch) -> Batch:
    """Density (n,) and rgb (n, 3) of a field of nerfstudio's at rows."""
    origins, directions, starts, ends, pixel_area, camera_indices = (x[:, None] for x in batch)
    frustums = Frustums(origins, directions, starts, ends, pixel_area)
    samples = NerfstudioSamples(frustums, camera_indices, deltas=ends - starts)
    outputs = field(samples, return_alphas=True) if hasattr(field, "get_alpha") else field(samples)
    _forget(field)
    return _density(samples, outputs).flatten(), outputs[FieldHeadNames.RGB].flatten(0, 1)


def _density(samples: NerfstudioSamples, outputs: Mapping[FieldHeadNames, Tensor]) -> Tensor:
    """A field's density; that of an SDF is what has the same opacity over the sample's length."""
    if FieldHeadNames.DENSITY in outputs:
        return outputs[FieldHeadNames.DENSITY]
    alpha = outputs[FieldHeadNames.ALPHA].clamp(max=NEARLY_OPAQUE)
    assert samples.deltas is not None
    return -torch.log1p(-alpha) / samples.deltas.clamp(min=1e-6)


def _forget(field: Any) -> None:
    """Drop what a field of nerfstudio's keeps of its last pass: with a graph it could not be copied."""
    field._sample_locations = field._density_before_activation = None


@contextmanager
def _watched(fields: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[NerfstudioSamples, Any]]]]:
    """What goes into fields and comes out of them inside this context, in order."""
    calls: dict[str, list[tuple[NerfstudioSamples, Any]]] = {part: [] for part in fields}

    def watch(part: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(ray_samples: NerfstudioSamples, *args: Any, **kwargs: Any) -> Any:
            outputs = forward(ray_samples, *args, **kwargs)
            calls[part].append((ray_samples, outputs))
            return outputs

        return watched

    for part, field in fields.items():
        field.forward = watch(part, field.forward)  # models call it, past the hooks of modules
    try:
        yield calls
    finally:
        for field in fields.values():
            del field.forward


def _ray_samples(samples: NerfstudioSamples, outputs: Mapping[FieldHeadNames, Tensor]) -> RaySamples:
    frustums, deltas = samples.frustums, samples.deltas
    assert deltas is not None
    cameras = samples.camera_indices
    if cameras is None:
        cameras = torch.zeros_like(frustums.starts, dtype=torch.long)
    if FieldHeadNames.DENSITY in outputs:
        weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
    else:
        weights = samples.get_weights_and_transmittance_from_alphas(outputs[FieldHeadNames.ALPHA], weights_only=True)
    columns = frustums.origins, frustums.directions, frustums.starts, frustums.ends, frustums.pixel_area, cameras
    inputs = tuple(x.expand(*samples.shape, x.shape[-1]) for x in columns)
    return RaySamples(inputs, weights[..., 0].detach(), deltas.expand(*samples.shape, 1)[..., 0])


def _joined(passes: list[RaySamples]) -> RaySamples:
    inputs = tuple(torch.cat(columns, dim=1) for columns in zip(*(seen.inputs for seen in passes), strict=True))
    weights, deltas = (torch.cat([getattr(seen, name) for seen in passes], dim=1) for name in ("weights", "deltas"))
    return RaySamples(inputs, weights, deltas)


def _one_ray(device: torch.device) -> RayBundle:
    """Any ray: what is counted along it does not depend on where it goes."""
    origin, one = torch.zeros(1, 3, device=device), torch.ones(1, 1, device=device)
    direction = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    return RayBundle(origin, direction, one * 1e-6, one.long() * 0, metadata={"directions_norm": one})
