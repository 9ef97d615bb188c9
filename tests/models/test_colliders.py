"""Where rays begin and end, against values computed by hand: near plane 2, far plane 6, a sphere of radius 1.5."""

import math

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle

from eugen3d.models.colliders import BoundedCollider

DOWN = (0.0, 0.0, -1.0)
UP = (0.0, 0.0, 1.0)
RAYS = {
    "through the middle": ((0.0, 0.0, 4.0), DOWN, 2.5, 5.5),
    "off the middle by 0.9: half a chord is 1.2": ((0.9, 0.0, 4.0), DOWN, 2.8, 5.2),
    "aslant, along (0, 3, -4)/5": ((0.0, -3.0, 4.0), (0.0, 0.6, -0.8), 3.5, 6.0),
    "from within: the near plane counts": ((0.0, 0.0, 1.0), DOWN, 2.0, 2.5),
    "from afar: the far plane counts": ((0.0, 0.0, 6.5), DOWN, 5.0, 6.0),
    "touching": ((1.5, 0.0, 4.0), DOWN, 4.0, 4.0),
    "past it": ((2.0, 0.0, 4.0), DOWN, 4.0, 4.0),
    "away from it": ((0.0, 0.0, 4.0), UP, 2.0, 2.0),
    "beyond the far plane": ((0.0, 0.0, 9.0), DOWN, 6.0, 6.0),
}


def bundle(origins: list[tuple[float, ...]], directions: list[tuple[float, ...]]) -> RayBundle:
    return RayBundle(
        origins=torch.tensor(origins), directions=torch.tensor(directions), pixel_area=torch.ones(len(origins), 1)
    )


def test_rays_meet_the_sphere_where_geometry_says() -> None:
    origins, directions, nears, fars = (list(column) for column in zip(*RAYS.values(), strict=True))
    rays = BoundedCollider(2.0, 6.0, 1.5)(bundle(origins, directions))
    torch.testing.assert_close(rays.nears, torch.tensor(nears)[:, None], atol=1e-5, rtol=0)
    torch.testing.assert_close(rays.fars, torch.tensor(fars)[:, None], atol=1e-5, rtol=0)


def test_rays_that_miss_have_no_length() -> None:
    outside = [RAYS[name] for name in ("past it", "away from it", "beyond the far plane")]
    rays = BoundedCollider(2.0, 6.0, 1.5)(bundle([ray[0] for ray in outside], [ray[1] for ray in outside]))
    assert rays.nears is not None and rays.fars is not None
    assert torch.equal(rays.nears, rays.fars)


def test_ends_on_the_sphere_lie_on_it() -> None:
    """Random rays that start far outside and meet it between the planes."""
    directions = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    origins = -4 * directions + 0.4 * torch.randn(200, 3)
    rays = BoundedCollider(0.0, 100.0, 1.5)(bundle(origins.tolist(), directions.tolist()))
    assert rays.nears is not None and rays.fars is not None
    met = (rays.nears < rays.fars)[:, 0]
    assert met.sum() > 150
    for distances in (rays.nears, rays.fars):
        radius = (rays.origins + distances * rays.directions).norm(dim=-1)[met]
        torch.testing.assert_close(radius, torch.full_like(radius, 1.5), atol=1e-4, rtol=0)


def test_without_a_sphere_the_planes_alone_count() -> None:
    rays = BoundedCollider(2.0, 6.0)(bundle([ray[0] for ray in RAYS.values()], [ray[1] for ray in RAYS.values()]))
    assert rays.nears is not None and rays.fars is not None
    assert (rays.nears == 2).all() and (rays.fars == 6).all()


def test_images_of_rays_keep_their_shape() -> None:
    origins = torch.tensor([0.0, 0.0, 4.0]).expand(5, 7, 3)
    rays = RayBundle(origins, torch.tensor(DOWN).expand(5, 7, 3), pixel_area=torch.ones(5, 7, 1))
    rays = BoundedCollider(2.0, 6.0, 1.5)(rays)
    assert rays.nears is not None and rays.nears.shape == (5, 7, 1)
    assert rays.fars is not None and rays.fars[4, 6].item() == pytest.approx(5.5)


def test_training_and_rendering_bound_rays_alike() -> None:
    collider, ray = BoundedCollider(2.0, 6.0, 1.5), ([RAYS["through the middle"][0]], [DOWN])
    trained, rendered = collider.train()(bundle(*ray)), collider.eval()(bundle(*ray))
    assert torch.equal(trained.nears, rendered.nears) and torch.equal(trained.fars, rendered.fars)


@pytest.mark.parametrize(("near", "far"), [(2.0, 2.0), (3.0, 2.0), (-1.0, 2.0), (math.nan, 2.0)])
def test_planes_out_of_order_are_refused(near: float, far: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= near < far"):
        BoundedCollider(near, far)
