"""One frame of a depth camera, wherever it comes from."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DepthFrame:
    """A depth image, the camera that took it, and, where there is one, the picture from the same place."""

    name: str
    """What messages call it, such as its file's name."""
    depth: Tensor
    """(height, width) float32, metres along the optical axis; 0 where there is no measurement."""
    camera_to_world: Tensor
    """(3, 4) float32, metres; x right, y up, z backward, as nerfstudio has it."""
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels; the centre of the first pixel is at (0.5, 0.5)."""
    rgb: Tensor | None = None
    """(height, width, 3) uint8, registered to the depth."""
    time: float | None = None
    """Seconds since the sequence began."""
