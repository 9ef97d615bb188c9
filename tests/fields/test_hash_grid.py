"""The hash grid against tiny-cuda-nn's published formulas, written out number by number, and against Monte Carlo."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eugen3d.fields.hash_grid import HashGrid, HashGridConfig
from eugen3d.runtime import TcnnUnavailable, tcnn_grid
from eugen3d.runtime.machine import why_no_cuda
from eugen3d.runtime.native_grid import has_native_grid

SMALL = HashGridConfig(num_levels=4, base_resolution=4, max_resolution=64, features_per_level=2, log2_hashmap_size=10)
ODD = HashGridConfig(num_levels=5, base_resolution=5, max_resolution=90, features_per_level=3, log2_hashmap_size=12)

needs_native = pytest.mark.skipif(not has_native_grid(), reason="needs a C++ compiler")


def formula(grid: HashGrid, x: list[float]) -> list[torch.Tensor]:
    """Values at a point: `grid_scale`, `grid_resolution`, `pos_fract`, `grid_index` and `coherent_prime_hash` of
    tiny-cuda-nn, in unsigned 32-bit arithmetic."""
    config, start, values = grid.config, 0, []
    growth = math.log2((config.max_resolution / config.base_resolution) ** (1 / (config.num_levels - 1)))
    for level in range(config.num_levels):
        scale = 2 ** (level * growth) * config.base_resolution - 1
        resolution = math.ceil(scale - 1e-6) + 1
        size = min((resolution**3 + 7) // 8 * 8, 2**config.log2_hashmap_size)
        positions = [axis * scale + 0.5 for axis in x]
        value = torch.zeros(config.features_per_level)
        for corner in range(8):
            weight, index, stride, hashed = 1.0, 0, 1, 0
            for axis, prime in enumerate((1, 2654435761, 805459861)):
                up = corner >> axis & 1
                fraction = positions[axis] - math.floor(positions[axis])
                weight *= fraction if up else 1 - fraction
                at = math.floor(positions[axis]) + up
                hashed ^= at * prime % 2**32
                if stride <= size:
                    index += at * stride
                    stride *= resolution
            if size < stride:
                index = hashed
            value = value + weight * grid.table[start + index % size]
        values.append(value)
        start += size
    return values


def drawn(config: HashGridConfig, backend: str = "torch") -> HashGrid:
    torch.manual_seed(0)
    grid = HashGrid(config)
    torch.nn.init.uniform_(grid.table, -1, 1)
    grid.backend = backend  # pyright: ignore[reportAttributeAccessIssue]
    return grid


BACKENDS = ["torch", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", [SMALL, ODD])
def test_values_are_those_of_the_formula(config: HashGridConfig, backend: str) -> None:
    grid = drawn(config, backend)
    x = torch.cat([torch.rand(20, 3), torch.zeros(1, 3), torch.ones(1, 3), torch.eye(3)])
    with torch.no_grad():
        found = grid(x)
        for row, point in zip(found, x.tolist(), strict=True):
            torch.testing.assert_close(row, torch.cat(formula(grid, point)), rtol=1e-4, atol=1e-5)


def test_levels_have_the_sizes_of_the_formula() -> None:
    assert SMALL.resolutions == (4, 10, 26, 64) or SMALL.resolutions == (4, 11, 26, 64)
    assert SMALL.sizes[0] == 64 and SMALL.sizes[-1] == 1024
    grid = HashGrid(HashGridConfig())
    assert grid.config.resolutions == (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    assert grid.config.sizes[:4] == (4096, 32768, 262144, 2097152) and grid.config.sizes[4] == 2**21


@needs_native
@pytest.mark.parametrize("features", [1, 2, 3, 4])
def test_the_library_agrees_with_torch(features: int) -> None:
    config = HashGridConfig(4, 4, 64, features, 10)
    one, other = drawn(config, "torch"), drawn(config, "native")
    means, stds = torch.rand(300, 6, 3), torch.rand(300, 6) * 0.1
    gradient = torch.randn(300, one.out_dim)
    found = [grid.of_gaussians(means, stds) for grid in (one, other)]
    for values, _ in found:
        (values * gradient).sum().backward()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)
    assert one.table.grad is not None and other.table.grad is not None and one.table.grad.abs().max() > 0.1
    torch.testing.assert_close(other.table.grad, one.table.grad, rtol=1e-3, atol=1e-4)


class Encoding(torch.nn.Module):
    """`tinycudann.Encoding` of a HashGrid as far as its numbers go: one flat vector of parameters."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        assert n_input_dims == 3 and encoding_config["otype"] == "HashGrid" and dtype == torch.float32
        levels, base = encoding_config["n_levels"], encoding_config["base_resolution"]
        last = round(base * encoding_config["per_level_scale"] ** (levels - 1))
        shape = encoding_config["n_features_per_level"], encoding_config["log2_hashmap_size"]
        self.grid = [HashGrid(HashGridConfig(levels, base, last, *shape))]  # no submodule
        self.params = torch.nn.Parameter(torch.full((self.grid[0].table.numel(),), torch.nan))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.grid[0].backend = "torch"
        return torch.func.functional_call(self.grid[0], {"table": self.params.view_as(self.grid[0].table)}, (x,))


def test_tiny_cuda_nn_reads_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a stand-in that has tiny-cuda-nn's layout: values, weights and gradients in the table and the points."""
    monkeypatch.setattr(tcnn_grid, "load_tcnn", lambda: SimpleNamespace(Encoding=Encoding))
    one, other = drawn(SMALL), drawn(SMALL, "tcnn")
    means, stds = torch.rand(30, 6, 3), torch.rand(30, 6) * 0.1
    found = []
    for grid in (one, other):
        points = means.clone().requires_grad_()
        values, omega = grid.of_gaussians(points, stds)
        values.square().sum().backward()
        found.append((values, omega, grid.table.grad, points.grad))
    for value, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    assert list(other.state_dict()) == ["table"] and found[0][2].abs().max() > 0.01


def test_a_grid_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcnn_grid, "load_tcnn", lambda: SimpleNamespace(Encoding=Encoding))
    with pytest.raises(TcnnUnavailable, match=r"numbers for a grid, expected 7"):
        tcnn_grid.TcnnGrid(4, 2, 10, 4, 16 ** (1 / 3), 7)


def test_without_tiny_cuda_nn_it_says_so() -> None:
    if why_no_cuda() is None:
        pytest.skip("there is a CUDA device")
    with pytest.raises(TcnnUnavailable):
        drawn(SMALL, "tcnn")(torch.rand(3, 3))


def test_gradients_reach_positions() -> None:
    """Finite differences inside a cell, in float64: torch takes what the library does not."""
    grid = drawn(SMALL, "auto").double()
    means = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    stds = (torch.rand(3, 2, dtype=torch.float64) * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: grid.of_gaussians(m, s)[0], (means, stds), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda m, s: grid.of_gaussians(m, s)[1], (means, stds), eps=1e-7, atol=1e-4)


def test_weights_against_monte_carlo() -> None:
    """ω is how often a draw of the Gaussian is within half a cell of its middle, along one axis."""
    grid = HashGrid(SMALL)
    std = 0.05
    _, omega = grid.of_gaussians(torch.full((1, 1, 3), 0.5), torch.full((1, 1), std))
    draws = std * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    for scale, weight in zip(SMALL.scales, omega[0].tolist(), strict=True):
        share = float((draws.abs() < 0.5 / scale).double().mean())
        assert weight == pytest.approx(share, abs=5 * math.sqrt(0.25 / len(draws)))
    assert omega[0, 0] > 0.99 * omega.max() and omega.min() < 0.5


def test_wide_gaussians_fade_the_fine_levels() -> None:
    grid = drawn(SMALL)
    x = torch.rand(50, 1, 3)
    narrow, _ = grid.of_gaussians(x, torch.full((50, 1), 1e-10))
    wide, omega = grid.of_gaussians(x, torch.full((50, 1), 10.0))
    torch.testing.assert_close(narrow, grid(x[:, 0]))
    assert wide.abs().max() < 0.05 and (omega < 0.02).all()


@pytest.mark.parametrize("std", [0.0, 1e-10, 1.0, 1e10])
def test_weights_and_gradients_are_finite(std: float) -> None:
    grid = drawn(SMALL)
    stds = torch.full((4, 6), std, requires_grad=True)
    values, omega = grid.of_gaussians(torch.rand(4, 6, 3), stds)
    (values.sum() + omega.sum()).backward()
    assert values.isfinite().all() and stds.grad is not None and stds.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_what_is_no_number_stays_none(backend: str) -> None:
    """And reads nothing beyond the table."""
    grid = drawn(SMALL, backend)
    means, stds = torch.rand(6, 2, 3), torch.full((6, 2), 0.01)
    means[0], means[1, 0, 1], stds[2, 1] = torch.nan, torch.inf, torch.nan
    with torch.no_grad():
        values, omega = grid.of_gaussians(means, stds)
    assert values[0].isnan().all() and values[2].isnan().all() and omega[2].isnan().all()
    assert values[3:].isfinite().all() and omega[[0, 1, 3, 4, 5]].isfinite().all()


def test_mean_squares_are_of_levels() -> None:
    grid = HashGrid(SMALL)
    torch.nn.init.zeros_(grid.table)
    with torch.no_grad():
        grid.table[: SMALL.sizes[0]] = 2.0
    torch.testing.assert_close(grid.mean_squares(), torch.tensor([4.0, 0.0, 0.0, 0.0]))


def test_a_grid_of_no_points_and_a_copy() -> None:
    grid = drawn(SMALL, "auto")
    assert grid(torch.zeros(0, 3)).shape == (0, 8)
    twin = copy.deepcopy(grid)
    x = torch.rand(5, 3)
    assert torch.equal(twin(x), grid(x)) and twin.table is not grid.table


@pytest.mark.parametrize(
    "settings", [{"num_levels": 0}, {"base_resolution": 1}, {"max_resolution": 8}, {"log2_hashmap_size": 40}]
)
def test_bad_shapes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"num_levels|resolutions"):
        HashGridConfig(**settings)


def test_mean_squares_follow_the_entries() -> None:
    grid = HashGrid(HashGridConfig(num_levels=2, base_resolution=4, max_resolution=8, log2_hashmap_size=8))
    with torch.no_grad():
        before = grid.mean_squares()
        assert grid.mean_squares() is before, "they are kept"
        grid.table.mul_(2)
        torch.testing.assert_close(grid.mean_squares(), 4 * before)
    assert grid.mean_squares().requires_grad
