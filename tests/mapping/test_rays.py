"""Rays, samples and normals of frames whose geometry is known."""

import dataclasses

import pytest
import torch

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.mapping.config import RaySamplingConfig
from eugen3d.mapping.normals import normals_at
from eugen3d.mapping.rays import Rays, draw_rays, draw_samples, rays_at

IDENTITY = torch.eye(3, 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_pixel(frame: DepthFrame) -> Rays:
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in frame.depth.shape), indexing="ij")
    return rays_at(frame, rows.flatten(), columns.flatten())


def test_a_ray_at_a_hand_computed_pixel() -> None:
    pose = torch.tensor([[0.0, 0.0, 1.0, 5.0], [1.0, 0.0, 0.0, 6.0], [0.0, 1.0, 0.0, 7.0]])
    frame = DepthFrame("f", torch.full((8, 16), 2.0), pose, (4.0, 2.0, 8.0, 4.0))
    rays = rays_at(frame, torch.tensor([0]), torch.tensor([15]))
    # in the camera: ((15.5 − 8)/4, −(0.5 − 4)/2, −1); the pose sends x to y, y to z and z to x
    torch.testing.assert_close(rays.directions, torch.tensor([[-1.0, 1.875, 1.75]]))
    torch.testing.assert_close(rays.origins, torch.tensor([[5.0, 6.0, 7.0]]))
    assert rays.depth.tolist() == [2.0]
    assert rays.blocks.tolist() == [7], "the last block of the first row of eight"


def test_every_surface_point_is_on_a_surface(room) -> None:
    for azimuth in (0.3, 2.0, 4.0):
        rays = every_pixel(room.frame(azimuth, height=0.1))
        points = rays.origins + rays.depth[:, None] * rays.directions
        torch.testing.assert_close(room.distance(points), torch.zeros(len(points)), rtol=0, atol=2e-5)


def test_normals_are_the_surfaces(room) -> None:
    rays = every_pixel(room.frame(0.3, side=96))
    points = rays.origins + rays.depth[:, None] * rays.directions
    to_sphere = points - room.centre
    on_sphere = (to_sphere.norm(dim=-1) - room.radius).abs() < 1e-4
    walls = room.half - points.abs()
    expected = torch.where(
        on_sphere[:, None],
        to_sphere / room.radius,
        -points.sign() * torch.nn.functional.one_hot(walls.argmin(dim=-1), 3),
    )
    known = rays.normals.isfinite().all(dim=-1)
    assert known.float().mean() > 0.95
    cosine = (rays.normals * expected).sum(dim=-1)[known]
    assert (cosine > 0.99).float().mean() > 0.95
    assert on_sphere.sum() > 200 and (cosine[on_sphere[known]] > 0.95).float().mean() > 0.9
    assert ((rays.normals * rays.directions).sum(dim=-1)[known] <= 0).all(), "they face the camera"


def test_a_plane_that_the_camera_faces_has_its_normal() -> None:
    frame = DepthFrame("f", torch.full((9, 9), 3.0), IDENTITY, (9.0, 9.0, 4.5, 4.5))
    normals = normals_at(frame, torch.tensor([4, 0]), torch.tensor([4, 8]))
    torch.testing.assert_close(normals, torch.tensor([[0.0, 0.0, 1.0]]).expand(2, 3))


def test_where_nothing_was_measured_there_is_no_normal() -> None:
    depth = torch.zeros(9, 9)
    depth[4, 4] = 3.0
    frame = DepthFrame("f", depth, IDENTITY, (9.0, 9.0, 4.5, 4.5))
    assert normals_at(frame, torch.tensor([4]), torch.tensor([4])).isnan().all()
    assert not len(draw_rays(frame, 500, RaySamplingConfig(), generator()).depth)


def test_rays_without_a_usable_measurement_are_left_out(room) -> None:
    frame = room.frame(0.0)
    depth = frame.depth.clone()
    depth[:, :24], depth[:8, 24:] = 0.0, 50.0
    rays = draw_rays(dataclasses.replace(frame, depth=depth), 1000, RaySamplingConfig(), generator())
    assert 300 < len(rays.depth) < 500
    assert (rays.depth > 0.07).all() and (rays.depth <= 12).all() and rays.normals.isfinite().all()


def test_samples_stand_where_the_paper_has_them(room) -> None:
    config = RaySamplingConfig()
    rays = draw_rays(room.frame(0.3), 3000, config, generator())
    samples = draw_samples(rays, config, generator())
    assert samples.depth.shape == (len(rays.depth), 27) and config.num_samples == 27
    torch.testing.assert_close(samples.depth[:, 0], rays.depth)
    end = rays.depth + 0.1
    around = samples.depth[:, 1:8] - rays.depth[:, None]
    assert (around <= 0.1 + 1e-6).all() and float((around < 0.0999).float().mean()) == pytest.approx(0.841, abs=0.01)
    assert float(around[around < 0].abs().median()) == pytest.approx(0.0674, abs=0.003), "half a normal distribution"
    share = (samples.depth[:, 8:] - 0.07) / (end - 0.07)[:, None] * 19
    assert torch.equal(share.clamp(0, 18.999).floor(), torch.arange(19.0).expand_as(share))
    assert float((share - share.floor()).mean()) == pytest.approx(0.5, abs=0.01)
    expected = rays.origins[:, None] + samples.depth[..., None] * rays.directions[:, None]
    torch.testing.assert_close(samples.points, expected)


def test_active_sampling_goes_where_the_loss_is(room) -> None:
    losses = torch.zeros(64)
    losses[9], losses[63] = 3.0, 1.0
    active = RaySamplingConfig(pixels="active")
    rays = draw_rays(room.frame(0.3), 2000, active, generator(), losses)
    assert set(rays.blocks.tolist()) == {9, 63}
    assert float((rays.blocks == 9).float().mean()) == pytest.approx(0.75, abs=0.06)
    uniform = draw_rays(room.frame(0.3), 2000, RaySamplingConfig(), generator(), losses)
    assert len(set(uniform.blocks.tolist())) > 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rays": 0}, "num_rays and num_stratified_samples are at least 1"),
        ({"min_depth": 3.0, "max_depth": 2.0}, "min_depth is 3.0, max_depth 2.0"),
        ({"behind_surface": -1.0}, "expected at least 0"),
        ({"pixels": "all"}, "pixels is 'all', expected one of uniform, active"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaySamplingConfig(**changes)
