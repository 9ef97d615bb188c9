"""What the commands need to know of a nerfstudio model: its fields, what they see along rays, and how it renders."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.embedding import Embedding
from nerfstudio.models.base_model import Model
from torch import Tensor, nn

from eugen3d.distill import Network, RaySamples
from eugen3d.layers import fold
from eugen3d.metrics.cost import Cost, dense_parameters, field_cost, nerf_samples_per_ray
from eugen3d.models.nerf import EUGenNerfModel
from eugen3d.models.occupancy import NO_OCCUPANCY, OccupancyConfig
from eugen3d.models.zipnerf import EUGenZipNerfModel
from eugen3d.runtime import Backend
from eugen3d.runtime.machine import synchronize


class NerfTeacher(ABC):
    """A model that renders fields along rays.

    Args:
        model: in evaluation mode.
    """

    paths: Mapping[str, str]
    """Where each field stands in the model."""
    sees_pixel_width = False
    """Whether what the fields say depends on how wide a ray's pixel is."""

    def __init__(self, model: Model) -> None:
        self.model: Any = model

    @property
    @abstractmethod
    def fewest_samples(self) -> int:
        """Samples of a ray that every field sees at the least."""

    @property
    @abstractmethod
    def samples_per_ray(self) -> Mapping[str, int]:
        """At how many samples of a ray each field is evaluated in rendering."""

    @abstractmethod
    def networks(self) -> dict[str, Network]:
        """The fields, over the model's own modules; their outputs are density (n,) and rgb (n, 3)."""

    @abstractmethod
    def samples(self, rays: RayBundle) -> dict[str, RaySamples]:
        """What every field sees along rays, jittered as in training, so that many rays cover every depth."""

    def set_runtime(self, runtime: Backend) -> None:
        """Choose how the folded fields are evaluated in rendering."""
        self.model.config.runtime = runtime

    def set_skipping(self, skipping: bool) -> None:
        """Choose whether rendering skips what the model's grid, if it has one, says is empty."""
        occupancy = getattr(self.model.config, "occupancy", None)
        if isinstance(occupancy, OccupancyConfig):
            self.model.config.occupancy = replace(occupancy, skipping=skipping)

    def drop_grid(self) -> None:
        """Take the model's grid, if it has one, away."""
        if hasattr(self.model.config, "occupancy"):
            self.model.occupancy, self.model.config.occupancy = None, NO_OCCUPANCY

    def render(self, camera: Cameras) -> Tensor:
        """The picture (height, width, 3) that a camera takes."""
        outputs = self.model.get_outputs_for_camera(camera)
        return outputs["rgb"] if "rgb" in outputs else outputs["rgb_fine"]

    def timed_render(self, camera: Cameras) -> tuple[Tensor, float]:
        """The same, and the seconds that it took."""
        device = torch.device(self.model.device)
        synchronize(device)
        start = time.perf_counter()
        rgb = self.render(camera)
        synchronize(device)
        return rgb, time.perf_counter() - start

    @property
    def has_appearance(self) -> bool:
        """Whether each training camera has an appearance of its own, which rendering replaces by the mean."""
        return any(isinstance(module, Embedding) for module in self.model.modules())

    @property
    def background_color(self) -> str:
        """What the model renders over; where that is random in training, it is black in rendering."""
        return str(self.model.renderer_rgb.background_color).replace("random", "black")

    def blend(self, image: Tensor) -> Tensor:
        """A photograph (height, width, 3 or 4) over the model's background."""
        return self.model.renderer_rgb.blend_background(image)

    def losses(self, rays: RayBundle, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's own losses of a batch of photographs' rays."""
        outputs = self.model(rays)
        return self.model.get_loss_dict(outputs, batch, self.model.get_metrics_dict(outputs, batch))

    def color_loss(self, rays: RayBundle, batch: dict[str, Tensor]) -> Tensor:
        """That of the colours which the model shows."""
        losses = self.losses(rays, batch)
        return losses["rgb_loss_fine"] if "rgb_loss_fine" in losses else losses["rgb_loss"]

    def folded(self) -> dict[str, nn.Module]:
        """Folded copies of the fields."""
        return {part: fold(copy.deepcopy(self.model.get_submodule(path))) for part, path in self.paths.items()}

    def train_dense_alone(self) -> None:
        """Let gradients reach the fields' dense layers and nothing else: no grid, embedding or camera pose."""
        self.model.requires_grad_(False)
        for path in self.paths.values():
            for parameter in dense_parameters(self.model.get_submodule(path)):
                parameter.requires_grad_(True)

    def cost(self) -> Cost:
        """What the folded fields' dense layers cost."""
        return field_cost(self.folded(), self.samples_per_ray)


class EUGenNerfTeacher(NerfTeacher):
    """An eugen-nerf: a coarse and a fine field over positions and directions."""

    paths = MappingProxyType({"coarse": "fields.coarse", "fine": "fields.fine"})
    model: EUGenNerfModel

    @property
    def fewest_samples(self) -> int:
        return min(self.model.config.num_coarse_samples, self.model.config.num_importance_samples)

    @property
    def samples_per_ray(self) -> Mapping[str, int]:
        return nerf_samples_per_ray(self.model.config.num_coarse_samples, self.model.config.num_importance_samples)

    def networks(self) -> dict[str, Network]:
        like = next(self.model.parameters())
        point = torch.zeros(1, 3).to(like), torch.eye(3)[:1].to(like)
        return {name: Network.trace(self.model.get_submodule(path), point) for name, path in self.paths.items()}

    def samples(self, rays: RayBundle) -> dict[str, RaySamples]:
        seen = self.model.field_samples(rays)
        return {name: RaySamples(columns[:2], *columns[2:]) for name, columns in seen.items()}


class EUGenZipNerfTeacher(NerfTeacher):
    """An eugen-zipnerf: the dense layers of the field that renders, over the features of its grid.

    Grids and proposals stay as they are.
    """

    paths = MappingProxyType({"field": "field.head"})
    sees_pixel_width = True
    model: EUGenZipNerfModel

    @property
    def fewest_samples(self) -> int:
        return self.model.config.num_samples[-1]

    @property
    def samples_per_ray(self) -> Mapping[str, int]:
        return {"field": self.model.config.num_samples[-1]}

    def networks(self) -> dict[str, Network]:
        head = self.model.field.head
        like = next(head.parameters())
        widths = self.model.field.features.out_dim, 3, self.model.config.appearance_dim
        row = tuple(torch.zeros(1, width).to(like) for width in widths if width)
        return {"field": Network.trace(head, row)}

    def samples(self, rays: RayBundle) -> dict[str, RaySamples]:
        return {"field": RaySamples(*self.model.head_samples(rays))}
