"""The part of space that depth frames saw: where a field can be expected to be right.

Anything with a depth image, a pose and intrinsics is a view, `DepthFrame` of the datasets among them: depth (height,
width) in metres along the optical axis, 0 for none; camera_to_world (3, 4) with x right, y up, z backward; intrinsics
fx, fy, cx, cy in pixels, with the centre of the first pixel at (0.5, 0.5).
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class DepthView(Protocol):
    """A depth image and its camera, as the module's docstring has them."""

    @property
    def depth(self) -> Tensor: ...
    @property
    def camera_to_world(self) -> Tensor: ...
    @property
    def intrinsics(self) -> tuple[float, float, float, float]: ...


def visible(points: Tensor, views: Iterable[DepthView], behind: float = 0.0) -> Tensor:
    """Which points (n, 3) a view saw: in its frustum, at a pixel with a depth, at most `behind` metres behind it.

    Returns (n,) bool: whether that holds for at least one view. Occlusion is that of the nearest pixel.
    """
    seen = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for view in views:
        open_ = (~seen).nonzero().squeeze(1)
        if not len(open_):
            break
        seen[open_] = _visible_in(points[open_], view, behind)
    return seen


def project(points: Tensor, view: DepthView) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels that points (n, 3) are seen at.

    Returns:
        Their numbers (n,), row by row, 0 where there is none; the points' depths (n,) along the optical axis; and
        whether (n,) a point is before the camera and in its picture.
    """
    pose = view.camera_to_world.to(points)
    local = (points - pose[:, 3]) @ pose[:, :3]
    z = -local[:, 2]
    fx, fy, cx, cy = view.intrinsics
    height, width = view.depth.shape
    safe = z.clamp_min(1e-9)
    columns, rows = fx * local[:, 0] / safe + cx, cy - fy * local[:, 1] / safe
    inside = (z > 0.0) & (columns >= 0.0) & (columns < width) & (rows >= 0.0) & (rows < height)
    index = torch.where(inside, rows, 0.0).long() * width + torch.where(inside, columns, 0.0).long()
    return index, z, inside


def unproject(view: DepthView, pixels: Tensor, depth: Tensor) -> Tensor:
    """World points (n, 3) at depths (n,) behind the centres of pixels (n, 2), row and column."""
    fx, fy, cx, cy = view.intrinsics
    rows, columns = (pixels.to(depth) + 0.5).unbind(dim=1)
    local = torch.stack([(columns - cx) / fx * depth, (cy - rows) / fy * depth, -depth], dim=1)
    pose = view.camera_to_world.to(depth)
    return local @ pose[:, :3].T + pose[:, 3]


def sample_visible_surface(views: Iterable[DepthView], points_per_view: int, seed: int = 0) -> Tensor:
    """Measured surface points (n, 3), drawn from every view's pixels with a depth; none from a view without any."""
    generator = torch.Generator().manual_seed(seed)
    return _cat([unproject(view, *_draw(view, points_per_view, generator)) for view in views])


def sample_visible_volume(
    views: Iterable[DepthView], points_per_view: int, near: float = 0.1, behind: float = 0.0, seed: int = 0
) -> Tensor:
    """Points (n, 3) uniform in depth between `near` and `behind` metres behind the measured surface of drawn pixels.

    That is how iSDF (Ortiz et al. 2022) draws its evaluation points in the visible region, with near = 0.1 and
    behind = 0.1 where ground truth exists behind surfaces.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for view in views:
        pixels, depth = _draw(view, points_per_view, generator)
        far = depth + behind
        share = torch.rand(len(depth), generator=generator).to(depth)
        pieces.append(unproject(view, pixels, torch.minimum(far, torch.full_like(far, near)).lerp(far, share)))
    return _cat(pieces)


def _visible_in(points: Tensor, view: DepthView, behind: float) -> Tensor:
    index, z, inside = project(points, view)
    depth = view.depth.to(points).reshape(-1)[index]
    return inside & (depth > 0.0) & (z <= depth + behind)


def _draw(view: DepthView, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels with a depth, drawn with replacement, and their depths."""
    pixels = view.depth.nonzero()
    if not len(pixels):
        return pixels, view.depth.new_zeros(0)
    pixels = pixels[torch.randint(len(pixels), (count,), generator=generator).to(pixels.device)]
    return pixels, view.depth[pixels[:, 0], pixels[:, 1]]


def _cat(pieces: list[Tensor]) -> Tensor:
    return torch.cat(pieces) if pieces else torch.zeros(0, 3)
