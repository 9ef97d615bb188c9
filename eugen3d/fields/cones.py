"""The cone of a pixel, interval by interval, as six isotropic Gaussians (Barron et al. 2023, "Zip-NeRF", section 2).

Symbols: a cone has the radius ṙ t at the distance t; an interval [t₀, t₁] has the middle m and the half length h. Its
six points turn around the axis,

    t_j = t₀ + h (t₁² + 2m² + 3/√7 (2j/5 - 1) √((h² - m²)² + 4m⁴)) / (h² + 3m²),        j = 0 … 5
    x_j = (ṙ t_j cos θ_j / √2, ṙ t_j sin θ_j / √2, t_j),    θ = π/3 (0, 2, 4, 3, 5, 1)

and every one has the standard deviation ½ ṙ t_j / √2. The mean of the points is that of the cone's interval, and so
are the variance along the axis and, summed over both directions, that across it; the two differ by a few per cent of
themselves, in directions that a random turn makes all alike.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_POINTS = 6
STD_SCALE = 0.5
"""How wide the Gaussians are, in radii of the cone over √2 (Zip-NeRF's supplement)."""
THETAS = tuple(math.pi / 3 * k for k in (0, 2, 4, 3, 5, 1))


def pixel_radius(pixel_area: Tensor) -> Tensor:
    """ṙ of a pixel of that area at distance 1: a disc of the square's variance (Barron et al. 2021, "Mip-NeRF")."""
    return pixel_area.sqrt() * (2 / math.sqrt(12))


def cone_distances(starts: Float[Tensor, "*batch"], ends: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 6"]:
    """The points' distances along the axis; of an interval much longer than it is far the last lies a little beyond."""
    m, h = ((starts + ends) / 2)[..., None], ((ends - starts) / 2)[..., None]
    unit = m.clamp(min=torch.finfo(m.dtype).tiny)  # in its units nothing overflows at 1e10, nor vanishes at 1e-10
    r = h / unit
    offsets = torch.linspace(-1, 1, NUM_POINTS, dtype=m.dtype, device=m.device)
    spread = 3 / math.sqrt(7) * offsets * ((r**2 - 1) ** 2 + 4).sqrt()
    return starts[..., None] + h * ((1 + r) ** 2 + 2 + spread) / (r**2 + 3)


def cone_gaussians(
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    radius: Float[Tensor, " n"],
    starts: Float[Tensor, "n samples"],
    ends: Float[Tensor, "n samples"],
    generator: torch.Generator | None = None,
    *,
    is_random: bool = False,
    index: Int[Tensor, "n samples"] | None = None,
) -> tuple[Float[Tensor, "n samples 6 3"], Float[Tensor, "n samples 6"]]:
    """Means and standard deviations of every interval's Gaussians.

    Args:
        origins: where rays begin.
        directions: of unit length.
        radius: ṙ of every ray.
        starts, ends: the intervals, in the same units.
        generator: of the random turns.
        is_random: whether each interval's points are turned by a random angle and, at random, go around the other way;
            otherwise every second one is turned by 30° and goes around the other way.
        index: the intervals' numbers along their rays, of which the odd ones are every second; by default all, from 0.
    """
    t = cone_distances(starts, ends)
    theta = torch.tensor(THETAS, dtype=t.dtype, device=t.device).expand(*starts.shape, NUM_POINTS)
    if is_random:
        turn, side = torch.rand((2, *starts.shape, 1), dtype=t.dtype, device=t.device, generator=generator)
        theta = torch.where(side < 0.5, -theta, theta) + 2 * math.pi * turn
    else:
        number = torch.arange(starts.shape[-1], device=t.device) if index is None else index
        is_odd = (number % 2 == 1)[..., None]
        theta = torch.where(is_odd, math.pi / 6 - theta, theta)
    across = radius[:, None, None] * t / math.sqrt(2)
    u, v = (axis[:, None, None] for axis in perpendicular(directions))
    axis = origins[:, None, None] + t[..., None] * directions[:, None, None]
    means = axis + (across * theta.cos())[..., None] * u + (across * theta.sin())[..., None] * v
    return means, STD_SCALE * across


def perpendicular(directions: Float[Tensor, "*batch 3"]) -> tuple[Tensor, Tensor]:
    """Two unit vectors that are perpendicular to unit vectors and to each other (Duff et al. 2017, "Building an
    orthonormal basis, revisited")."""
    x, y, z = directions.unbind(dim=-1)
    sign = torch.where(z < 0, -1.0, 1.0)
    a = -1 / (sign + z)
    b = x * y * a
    return torch.stack([1 + sign * x**2 * a, sign * b, -sign * x], -1), torch.stack([b, sign + y**2 * a, -y], -1)
