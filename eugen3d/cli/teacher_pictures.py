"""A teacher's own pictures as targets: at any pixel, and also from where no camera stood."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from nerfstudio.cameras.camera_utils import quaternion_from_matrix, quaternion_matrix, quaternion_slerp
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from eugen3d.cli.errors import UsageError
from eugen3d.cli.nerf_teachers import NerfTeacher
from eugen3d.cli.teacher_rows import hash_seed
from eugen3d.datasets.reduced import at_scales

POSES_PER_BATCH = 32
NEIGHBOURS = 4
"""A pose that no camera had lies on the way from a camera to one of so many that are nearest to it."""


class TeacherPictures:
    """Batches of rays with what a teacher shows along them, in the form of photographs.

    Args:
        teacher: in evaluation mode; folded, it is quicker.
        cameras: the training cameras.
        novel_fraction: share of the poses that lie between cameras.
        scales: factors by which the pictures are reduced; as many rays go through each size.

    Raises:
        UsageError: the teacher has an appearance for each camera, so that it shows another picture in rendering.
    """

    def __init__(
        self,
        teacher: NerfTeacher,
        cameras: Cameras,
        novel_fraction: float,
        seed: int,
        scales: Sequence[int] = (1,),
    ) -> None:
        if teacher.has_appearance:
            raise UsageError(
                "--refine-teacher: the model has an appearance for each camera, of which its pictures show only the "
                "mean; expected one without, or the photographs"
            )
        self.teacher, self.cameras, self.novel_fraction = teacher, cameras, novel_fraction
        self.seed, self.scales = seed, scales
        centres = cameras.camera_to_worlds[:, :3, 3]
        distances = torch.cdist(centres, centres)
        self.neighbours = distances.argsort(dim=1)[:, 1 : NEIGHBOURS + 1].cpu()

    @torch.no_grad()
    def batch(self, number: int, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays, and `image` (n, 3 or 4), alpha being straight; the same ones whenever this number is asked for."""
        generator = torch.Generator().manual_seed(hash_seed(self.seed, "pictures", number))
        cameras = at_scales(self._cameras(generator), self.scales)
        which = torch.arange(num_rays) % len(cameras)
        sides = torch.cat([cameras.height, cameras.width], dim=1)[which]
        places = torch.rand(num_rays, 2, generator=generator).to(sides.device) * sides
        rays = cameras.generate_rays(which[:, None].to(sides.device), places)
        rays = rays.to(self.teacher.model.device)
        return rays, {"image": self._shown(rays)}

    def _cameras(self, generator: torch.Generator) -> Cameras:
        """Training cameras, some of them moved to between two."""
        first = torch.randint(len(self.cameras), (POSES_PER_BATCH,), generator=generator)
        cameras = copy.deepcopy(self.cameras[first.to(self.cameras.device)])
        is_novel = torch.rand(len(first), generator=generator) < self.novel_fraction
        toward, fraction = torch.rand(2, len(first), generator=generator)
        poses = cameras.camera_to_worlds.cpu().numpy().copy()
        for index in torch.nonzero(is_novel)[:, 0].tolist():
            near = self.neighbours[first[index]]
            if not len(near):
                continue
            other = near[int(toward[index] * len(near))]
            target = self.cameras.camera_to_worlds[other].cpu().numpy()
            poses[index] = _between(poses[index], target, float(fraction[index]))
        cameras.camera_to_worlds = torch.from_numpy(poses).to(cameras.camera_to_worlds)
        return cameras

    def _shown(self, rays: RayBundle) -> Tensor:
        """What the teacher shows; with alpha where training draws the background anew for every batch."""
        outputs = self.teacher.model(rays)
        fine = "_fine" if "rgb_fine" in outputs else ""
        rgb, alpha = outputs[f"rgb{fine}"], outputs[f"accumulation{fine}"]
        if self.teacher.model.renderer_rgb.background_color != "random":
            return rgb
        return torch.cat([rgb / alpha.clamp(min=1e-4), alpha], dim=1)  # rendering puts it over black


def _between(pose: np.ndarray, other: np.ndarray, fraction: float) -> np.ndarray:
    """A pose (3, 4) on the way from one to another."""
    turns = [quaternion_from_matrix(each[:, :3]) for each in (pose, other)]
    turn = quaternion_matrix(quaternion_slerp(turns[0], turns[1], fraction))[:3, :3]
    centre = (1 - fraction) * pose[:, 3] + fraction * other[:, 3]
    return np.concatenate([turn, centre[:, None]], axis=1)
