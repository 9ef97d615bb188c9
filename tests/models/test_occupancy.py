"""The grid of what is occupied, and rendering by it against rendering all."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.model_components.ray_samplers import SpacedSampler, UniformSampler
from torch import Tensor, nn

from eugen3d.fields import HashGridConfig
from eugen3d.layers import LayerConfig
from eugen3d.models.nerf import EUGenNerfModel, EUGenNerfModelConfig
from eugen3d.models.occupancy import NO_OCCUPANCY, Cells, CellSums, OccupancyConfig, OccupancyGrid
from eugen3d.models.skipping import NUM_PARTS, SLAB, evaluate_front_to_back, samples_by_grid
from eugen3d.models.zipnerf import EUGenZipNerfModel, EUGenZipNerfModelConfig

RADIUS = 0.5  # of the ball that all scenes here hold
DENSITY = 200.0


def ball(x: Tensor) -> Tensor:
    """A dense ball around the origin in what is empty but for a trace."""
    return torch.where(x.norm(dim=-1) < RADIUS, DENSITY, 1e-6)


def colors(x: Tensor) -> Tensor:
    return (x * 2).sin() * 0.5 + 0.5


class Counted(nn.Module):
    """What the ball says of points, and at how many it was asked."""

    count = 0

    def density_at(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return ball(x)


class BallField(Counted):
    def forward(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        return self.density_at(x), colors(x)


class BallProposal(Counted):
    def forward(self, means: Tensor, stds: Tensor) -> Tensor:
        return self.density_at(means.mean(dim=1))


class BallFeatures(nn.Module):
    def forward(self, means: Tensor, stds: Tensor) -> Tensor:
        return means.mean(dim=1)


def make_model(config: Any) -> Any:
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return config.setup(scene_box=box, num_train_data=1, metadata={}).eval()


def nerf_config(**options: Any) -> EUGenNerfModelConfig:
    small = {
        "layer": LayerConfig("linear"),
        "num_layers": 2,
        "layer_width": 8,
        "view_width": 8,
        "replaced_layers": (1,),
    }
    return EUGenNerfModelConfig(
        **small, num_coarse_samples=24, num_importance_samples=24, bounding_radius=1.0, **options
    )


def zip_config(**options: Any) -> EUGenZipNerfModelConfig:
    grid = HashGridConfig(num_levels=2, base_resolution=4, max_resolution=8, log2_hashmap_size=8)
    samples: dict[str, Any] = {"num_samples": (24, 24, 16), "widths": (8, 8, 8), "proposal_resolutions": (8, 8)}
    return EUGenZipNerfModelConfig(grid=grid, **samples, **options)


def nerf_of_a_ball(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[EUGenNerfModel, list[Any]]:
    model = make_model(nerf_config(**options))
    fields = {"coarse": BallField(), "fine": BallField()}
    monkeypatch.setattr(model, "_folded_field", fields.__getitem__)
    return model, list(fields.values())


def zipnerf_of_a_ball(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[EUGenZipNerfModel, list[Any]]:
    model = make_model(zip_config(**options))
    model.proposals = nn.ModuleList([BallProposal(), BallProposal()])
    model.field.features, model.field.head = BallFeatures(), BallField()
    monkeypatch.setattr(model, "_evaluation", lambda: model.field.head)
    return model, [*model.proposals, model.field.head]


def bake(model: Any, threshold: float = 0.01) -> float:
    shares: list[float] = []
    cells = model.look_up_cells([rays_at_the_ball()], torch.Generator().manual_seed(0), shares.append)
    assert sum(shares) == pytest.approx(1.0)
    return model.occupancy.occupy(list(cells.values())[-1], threshold)


def rays_at_the_ball(count: int = 200) -> RayBundle:
    """From 3 away, about half of which meet the ball."""
    generator = torch.Generator().manual_seed(0)
    origins = torch.tensor([0.0, -3.0, 0.0]).expand(count, 3).clone()
    target = torch.rand(count, 3, generator=generator) * 1.6 - 0.8
    directions = nn.functional.normalize(target - origins, dim=-1)
    return RayBundle(origins, directions, torch.full((count, 1), 1e-6), torch.zeros(count, 1, dtype=torch.long))


@torch.no_grad()
def render(model: Any, rays: RayBundle) -> dict[str, Tensor]:
    return model(copy.deepcopy(rays))


def with_skipping(model: Any, skipping: bool) -> Any:
    model.config.occupancy = OccupancyConfig(model.config.occupancy.resolution, skipping=skipping)
    return model


def test_points_are_looked_up_in_their_cells() -> None:
    grid = OccupancyGrid(6, radius=0.5)
    codes = torch.randint(0, 256, (6, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    codes[torch.rand(6, 6, 6) < 0.3] = 0
    grid.codes.copy_(codes.flatten())
    assert torch.equal(grid.cells(), codes > 0)
    points = torch.randn(500, 3)
    expected = []
    for point in points.double().numpy() / 0.5:
        norm = np.linalg.norm(point)
        z = point if norm <= 1 else (2 - 1 / norm) * point / norm
        code = int(codes[tuple(np.floor((z + 2) / 4 * 6).astype(int))])
        expected.append(10 ** (-3 + 9 / 254 * (code - 1)) / 0.5 if code else 0.0)
    found = grid.density(points.view(50, 10, 3))
    torch.testing.assert_close(found, torch.tensor(expected).float().view(50, 10))
    assert 0.2 < (found == 0).float().mean() < 0.6
    assert grid.density(torch.zeros(0, 3)).shape == (0,)


def test_at_first_all_is_occupied() -> None:
    grid = OccupancyGrid(4)
    assert grid.codes.shape == (64,) and grid.codes.dtype == torch.uint8 and grid.cells().all()


def test_densities_are_kept_to_eight_per_cent() -> None:
    grid = OccupancyGrid(8, radius=2.0)
    density = 10 ** (torch.rand(8, 8, 8) * 8 - 3)  # per scene unit, from 2e-3 to 2e5 per radius
    alpha = torch.rand(8, 8, 8)
    grid.occupy(Cells(alpha, density), threshold=0.5, dilation=0)
    found = grid.densities[grid.codes.int()].view(8, 8, 8)
    assert torch.equal(found > 0, alpha > 0.5)
    ratios = (found / density)[alpha > 0.5]
    assert ratios.min() > 1 / 1.05 and ratios.max() < 1.05
    grid.occupy(Cells(torch.ones(8, 8, 8), density * 0), threshold=0.5, dilation=0)
    assert torch.equal(grid.codes, torch.ones(512, dtype=torch.uint8)), "occupied, and hardly dense"


@pytest.mark.parametrize("num_draws", [1, 8])
@pytest.mark.parametrize("radius", [1.0, 0.4])
def test_a_baked_grid_holds_what_is_dense_and_little_else(radius: float, num_draws: int) -> None:
    grid = OccupancyGrid(64, radius)
    generator = torch.Generator().manual_seed(0)
    cells = grid.look_up_cells(lambda x, side: ball(x), 10.0, num_draws=num_draws, generator=generator)
    share = grid.occupy(cells, 0.01)
    points = torch.randn(20_000, 3, generator=generator)
    assert (grid.density(points[points.norm(dim=-1) < RADIUS]) > 0).all()
    inside = grid.density(points[points.norm(dim=-1) < RADIUS - 0.15])
    assert len(inside) > 100 and 0.9 * DENSITY < inside.median() < 1.1 * DENSITY
    far = points[points.norm(dim=-1) > 1.2]
    assert len(far) > 1000 and not grid.density(far).any()
    assert 0 < share < 0.6


def test_what_is_out_of_reach_is_not_looked_up() -> None:
    grid, seen = OccupancyGrid(16), []

    def density(x: Tensor, side: Tensor) -> Tensor:
        seen.append(x.norm(dim=-1).max())
        return torch.full_like(side, 1.0)

    alphas = grid.look_up_cells(density, longest=10.0, within=1.0).alpha
    assert 1.0 < max(seen) < 3.0
    assert alphas[8, 8, 8] == pytest.approx(1 - math.exp(-0.25)) and alphas[0, 0, 0] == 0


def test_what_rays_met_is_weighed_by_the_light_that_comes_there() -> None:
    grid, side = OccupancyGrid(8), 0.5
    sums = CellSums(grid.resolution, grid.codes.device)
    here, there = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.6, 0.1, 0.1])
    density, light = torch.tensor([[3.0, 9.0], [1.0, 5.0]]), torch.tensor([[1.0, 0.2], [0.5, 0.0]])
    points = torch.stack([here, there]).expand(2, 2, 3).flatten(0, 1)
    sides = grid.sides(points, longest=10.0)
    sums.add(grid.numbers(points).long(), sides, density.flatten(), light.flatten())
    unseen = Cells(torch.full((8, 8, 8), 0.25), torch.full((8, 8, 8), 7.0))
    cells = sums.cells(unseen)
    alphas = [1 - math.exp(-one * side) for one in (3.0, 1.0)]
    mean = (alphas[0] + 0.5 * alphas[1]) / 1.5
    assert cells.alpha[4, 4, 4] == pytest.approx(max(alphas[0], 0.5 * alphas[1]))
    assert cells.density[4, 4, 4] == pytest.approx(-math.log(1 - mean) / side)
    assert cells.alpha[5, 4, 4] == pytest.approx(0.2 * (1 - math.exp(-9 * side)))
    assert cells.density[5, 4, 4] == pytest.approx(9.0, rel=1e-4), "what no light comes to counts for nothing"
    rest = torch.ones(8, 8, 8, dtype=torch.bool)
    rest[4:6, 4, 4] = False
    assert (cells.alpha[rest] == 0.25).all() and (cells.density[rest] == 7).all()


class NarrowProposal(nn.Module):
    """Four times as dense to Gaussians that are narrow."""

    def forward(self, means: Tensor, stds: Tensor) -> Tensor:
        return ball(means.mean(dim=1)) * torch.where(stds.mean(dim=1) < 1e-3, 0.2, 0.05)


def test_a_grid_is_baked_from_what_rays_see_where_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = zipnerf_of_a_ball(monkeypatch, near_plane=1.0, far_plane=20.0, occupancy=OccupancyConfig(32))
    model.proposals = nn.ModuleList([BallProposal(), NarrowProposal()])
    rays = rays_at_the_ball(4000)
    cells = model.look_up_cells([rays], torch.Generator().manual_seed(0), lambda share: None)
    front, back = cells["rays"].density[16, 13, 16], cells["rays"].density[16, 18, 16]
    assert 30 < front <= 42, "as the narrow Gaussians of rays see it"
    assert back == pytest.approx(10, rel=1e-3), "no light comes there"
    assert cells["cells"].density[16, 13, 16] == pytest.approx(10, rel=1e-3)


def test_rays_are_followed_until_they_are_opaque() -> None:
    density = torch.rand(7, 40, generator=torch.Generator().manual_seed(0)) * 4
    rgb, deltas = torch.rand(7, 40, 3), torch.full((7, 40), 0.2)
    live = torch.rand(7, 40) < 0.7
    live[3] = False
    asked = []

    def evaluate(at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        asked.append(len(at[0]))
        return density[at], rgb[at]

    found, colors = evaluate_front_to_back(live, deltas, evaluate, min_transmittance=1e-2)
    wanted = torch.where(live, density, 0)
    before = wanted.mul(0.2).cumsum(dim=1) - wanted * 0.2
    visible = live & (before < math.log(100))
    assert torch.equal(found[visible], density[visible]) and torch.equal(colors[visible], rgb[visible])
    is_asked = found > 0
    assert not (is_asked & ~live).any() and not colors[~is_asked].any()
    assert sum(asked) == int(is_asked.sum()) < int(live.sum())
    assert int(is_asked.sum()) - int(visible.sum()) <= 6 * SLAB
    none, _ = evaluate_front_to_back(torch.zeros_like(live), deltas, evaluate, 1e-2)
    assert not none.any()


@pytest.mark.parametrize(("spread", "least"), [(0.2, 12), (0.05, 16)])
def test_samples_are_where_the_weights_are(spread: float, least: int) -> None:
    grid, rays = OccupancyGrid(64), rays_at_the_ball(50)
    grid.occupy(grid.look_up_cells(lambda x, side: ball(x), longest=10.0), 0.01, dilation=0)
    rays.nears, rays.fars = torch.full((50, 1), 1.0), torch.full((50, 1), 5.0)
    samples, live = samples_by_grid(grid, rays, UniformSampler(1).eval(), 20, spread)
    starts, ends = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
    assert samples.shape == live.shape == (50, 20) and (ends >= starts).all()
    middles = 1 + (torch.arange(NUM_PARTS) + 0.5) * 4 / NUM_PARTS
    occupied = grid.density(rays.origins[:, None] + middles[:, None] * rays.directions[:, None]) > 0
    for ray in range(50):
        for start, end, is_live in zip(starts[ray], ends[ray], live[ray], strict=True):
            parts = (middles > start - 2 / NUM_PARTS) & (middles < end + 2 / NUM_PARTS)
            assert bool((occupied[ray] & parts).any()) == is_live
    hits = (live.sum(dim=1) > 0).nonzero()[:, 0]
    assert 10 < len(hits) < 45
    for ray in hits:  # what is opaque is sampled in front, and little behind
        first = middles[occupied[ray]][0]
        count = int(((starts[ray] > first - 0.1) & (ends[ray] < first + 0.3)).sum())
        assert count >= least


@pytest.mark.parametrize("make", [nerf_of_a_ball, zipnerf_of_a_ball])
def test_a_grid_renders_as_well_with_fewer_evaluations(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"background_color": "white"} if make is nerf_of_a_ball else {"near_plane": 1.0, "far_plane": 20.0}
    model, counted = make(monkeypatch, occupancy=OccupancyConfig(64), **options)
    assert 0 < bake(model) < 0.3
    rays = rays_at_the_ball()
    outputs, counts = [], []
    for skipping in (False, True):
        before = [part.count for part in counted]
        outputs.append(render(with_skipping(model, skipping), rays))
        counts.append([part.count - own for part, own in zip(counted, before, strict=True)])
    (*others, all_evaluations), (*skipped, live) = counts
    assert all(others) and not any(skipped) and 0 < live < 0.6 * all_evaluations
    dense, fast = outputs
    assert {"rgb", "accumulation", "depth"} <= fast.keys()
    near = (rays.origins * rays.directions).sum(dim=-1)
    across = rays.origins.square().sum(dim=-1) - near.square()
    hits = across < (RADIUS - 0.05) ** 2  # all but those that graze it
    misses = across > (RADIUS + 0.1) ** 2
    assert int(hits.sum()) > 20 and int(misses.sum()) > 20
    surface = -near - (RADIUS**2 - across).clamp(min=0).sqrt()
    truth = colors(rays.origins + surface[:, None] * rays.directions)
    errors = [(output["rgb"] - truth)[hits].abs().mean() for output in (dense, fast)]
    assert errors[1] < errors[0] + 2e-3 and errors[1] < 0.03
    assert (fast["accumulation"][hits] > 0.99).all() and (fast["accumulation"][misses] < 4e-3).all()
    torch.testing.assert_close(fast["depth"][hits, 0], surface[hits], rtol=0, atol=0.1)


def test_rays_that_meet_nothing_show_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted = nerf_of_a_ball(monkeypatch, occupancy=OccupancyConfig(16), background_color="white")
    assert model.occupancy is not None
    model.occupancy.codes.zero_()
    outputs = render(model, rays_at_the_ball(5))
    assert torch.equal(outputs["rgb"], torch.ones(5, 3))
    assert not outputs["accumulation"].any() and [part.count for part in counted] == [0, 0]


@pytest.mark.parametrize("config", [nerf_config, zip_config])
def test_without_a_grid_nothing_changes(config: Any) -> None:
    torch.manual_seed(0)
    plain = make_model(config())
    assert plain.occupancy is None and not [key for key in plain.state_dict() if "occupancy" in key]
    baked = make_model(config(occupancy=OccupancyConfig(8, skipping=False)))
    baked.load_state_dict(plain.state_dict() | {"occupancy.codes": torch.zeros(512, dtype=torch.uint8)})
    rays = rays_at_the_ball(20)
    before, after = render(plain, rays), render(baked, rays)
    assert all(torch.equal(before[key], after[key]) for key in before)
    skipped = render(with_skipping(baked, True), rays)
    assert not torch.equal(before["rgb"], skipped["rgb"]), "an empty grid skips all"


@pytest.mark.parametrize("config", [EUGenNerfModelConfig, EUGenZipNerfModelConfig])
def test_a_configuration_that_was_saved_before_has_no_grid(config: type) -> None:
    instance = object.__new__(config)
    assert instance.occupancy is NO_OCCUPANCY and instance.occupancy.resolution == 0


@pytest.mark.parametrize("config", [nerf_config, zip_config])
def test_a_grid_is_loaded_strictly(config: Any) -> None:
    model = make_model(config(occupancy=OccupancyConfig(8)))
    state = dict(model.state_dict())
    state["occupancy.codes"] = (torch.arange(512) % 256).to(torch.uint8)
    model.load_state_dict(state, strict=False)
    assert torch.equal(model.occupancy.codes, (torch.arange(512) % 256).to(torch.uint8))
    del state["occupancy.codes"]
    with pytest.raises(RuntimeError, match=r"occupancy\.codes"):
        model.load_state_dict(state, strict=False)


def test_training_skips_nothing() -> None:
    model = make_model(nerf_config(occupancy=OccupancyConfig(8)))
    model.occupancy.codes.zero_()
    rays = rays_at_the_ball(20)
    assert not render(model, rays)["accumulation"].any()
    assert render(model.train(), rays)["accumulation"].all()


@pytest.mark.parametrize("config", [nerf_config, zip_config])
def test_training_by_a_grid_reaches_the_field_that_renders_alone(config: Any) -> None:
    torch.manual_seed(0)
    model = make_model(config(occupancy=OccupancyConfig(8, num_samples=6, training=True)))
    image, codes = torch.rand(20, 3), model.occupancy.codes.clone()
    outputs = model.train()(rays_at_the_ball(20))
    losses = model.get_loss_dict(outputs, {"image": image})
    (loss,) = losses.values()  # there is nothing but colours to compare
    loss.backward()
    own = {id(parameter) for parameter in model.rendering_field.parameters()}
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (id(parameter) in own), name
    assert torch.equal(model.occupancy.codes, codes)


@pytest.mark.parametrize("config", [nerf_config, zip_config])
def test_training_by_a_grid_renders_what_evaluation_does_but_for_jitter(config: Any) -> None:
    torch.manual_seed(0)
    model = make_model(config(occupancy=OccupancyConfig(8, num_samples=6, training=True)))
    model.occupancy.codes[:] = torch.randint(0, 200, (512,), dtype=torch.uint8)
    rays = rays_at_the_ball(20)
    expected = render(model, rays)["rgb"]
    model.train()
    first, second = render(model, rays)["rgb"], render(model, rays)["rgb"]
    assert not torch.equal(first, second), "samples are jittered"
    for module in model.modules():
        if isinstance(module, SpacedSampler):
            module.eval()
    unjittered = render(model, rays)["rgb"]
    torch.testing.assert_close(unjittered, expected, rtol=0, atol=1e-2)  # bfloat16, where there is such


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": -2}, "-2"),
        ({"num_samples": -1}, "-1"),
        ({"min_transmittance": 1.0}, "1.0"),
        ({"spread": -0.5}, "-0.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"occupancy\.\w+ is {message}, expected"):
        OccupancyConfig(**settings)
