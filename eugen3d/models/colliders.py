"""Where rays begin and end."""

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.scene_colliders import SceneCollider


class BoundedCollider(SceneCollider):
    """Rays between two distances and, where the scene's extent is known, inside a sphere around the origin only.

    The same in training and in rendering. A ray that misses the sphere has length zero: it gathers no density.

    Args:
        near_plane: distance at which rays start, in scene units.
        far_plane: distance at which they end.
        bounding_radius: radius of the sphere, or None for no sphere.
    """

    def __init__(self, near_plane: float, far_plane: float, bounding_radius: float | None = None) -> None:
        super().__init__()
        if not 0 <= near_plane < far_plane:
            raise ValueError(f"near and far planes are {near_plane} and {far_plane}, expected 0 <= near < far")
        self.near_plane, self.far_plane, self.bounding_radius = near_plane, far_plane, bounding_radius

    def set_nears_and_fars(self, ray_bundle: RayBundle) -> RayBundle:
        """Fill in the bundle's nears and fars, each (..., 1)."""
        nears = torch.full_like(ray_bundle.origins[..., :1], self.near_plane)
        fars = torch.full_like(nears, self.far_plane)
        if self.bounding_radius is not None:
            origins, directions = ray_bundle.origins, ray_bundle.directions
            closest = -(origins * directions).sum(dim=-1, keepdim=True)
            squared = closest**2 - origins.square().sum(dim=-1, keepdim=True) + self.bounding_radius**2
            half = squared.clamp(min=0).sqrt()
            nears = (closest - half).clamp(self.near_plane, self.far_plane)
            fars = (closest + half).clamp(self.near_plane, self.far_plane)
        ray_bundle.nears, ray_bundle.fars = nears, fars
        return ray_bundle
