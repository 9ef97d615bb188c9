"""The projections and their products."""

import math

import pytest
import torch

from eugen3d.layers.features import ACTIVATIONS, degree_products, draw_projection, num_projections


@pytest.mark.parametrize(("order", "shared", "expected"), [(1, True, 1), (3, True, 3), (1, False, 1), (3, False, 6)])
def test_num_projections(order: int, shared: bool, expected: int) -> None:
    assert num_projections(order, shared) == expected


def test_shared_degrees_multiply_the_degree_below_by_one_more_block() -> None:
    u = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    products = degree_products(u, num_features=2, order=3, shared=True)
    assert [p.tolist() for p in products] == [[1.0, 2.0], [3.0, 8.0], [15.0, 48.0]]


def test_independent_degrees_multiply_blocks_of_their_own() -> None:
    u = torch.arange(1.0, 13.0)
    products = degree_products(u, num_features=2, order=3, shared=False)
    assert [p.tolist() for p in products] == [[1.0, 2.0], [3.0 * 5.0, 4.0 * 6.0], [7.0 * 9 * 11, 8.0 * 10 * 12]]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)])
def test_products_keep_the_leading_axes(shared: bool, batch: tuple[int, ...]) -> None:
    u = torch.randn(*batch, num_projections(2, shared) * 5)
    assert [p.shape for p in degree_products(u, 5, 2, shared)] == [(*batch, 5)] * 2


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "orthogonal"])
def test_entries_have_mean_zero_and_variance_one(kind) -> None:
    entries = draw_projection(kind, 4000, 8, torch.Generator().manual_seed(1)).flatten()
    standard_error = 1 / math.sqrt(len(entries))
    assert abs(entries.mean()) < 5 * standard_error
    assert abs(entries.square().mean() - 1) < 5 * math.sqrt(2) * standard_error


def test_rademacher_entries_are_plus_or_minus_one() -> None:
    assert set(draw_projection("rademacher", 20, 20).flatten().tolist()) == {-1.0, 1.0}


def test_orthogonal_rows_are_orthogonal_within_a_block_and_not_across() -> None:
    rows = draw_projection("orthogonal", 10, 4)
    cosines = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    same_block = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4), torch.ones(2, 2)).bool()
    assert (cosines - torch.eye(10))[same_block].abs().max() < 1e-12
    assert cosines[~same_block].abs().max() > 0.1


def test_orthogonal_rows_have_the_norms_of_gaussian_rows() -> None:
    squares = draw_projection("orthogonal", 4000, 8).square().sum(1)  # chi-squared with 8 degrees of freedom
    assert abs(squares.mean() - 8) < 5 * math.sqrt(16 / 4000)
    assert abs(squares.var() - 16) < 5 * 16 * math.sqrt((3 + 12 / 8 - 1) / 4000)


def test_orthogonal_directions_are_uniform() -> None:
    """Without the sign correction of the QR, which fixes them, the diagonal of the directions is biased."""
    diagonal = torch.stack([draw_projection("orthogonal", 4, 4).diagonal() for _ in range(500)]).flatten()
    assert abs(diagonal.mean()) < 5 / math.sqrt(len(diagonal))


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "orthogonal"])
def test_the_generator_decides_the_draw(kind) -> None:
    draws = [draw_projection(kind, 6, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_no_rows_is_an_empty_matrix() -> None:
    assert draw_projection("gaussian", 0, 4).shape == (0, 4)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_projection_is_named() -> None:
    with pytest.raises(ValueError, match=r"'cauchy' is unknown, expected one of orthogonal, gaussian, rademacher"):
        draw_projection("cauchy", 2, 2)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("phi", "at_zero", "at_one", "at_minus_one"),
    [
        ("identity", 0.0, 1.0, -1.0),
        ("relu", 0.0, 1.0, 0.0),
        ("gelu", 0.0, 0.841344746, -0.158655254),
        ("softplus", math.log(2), 1.313261688, 0.313261688),
        ("sine", 0.0, math.sin(1), -math.sin(1)),
    ],
)
def test_activations_at_hand_computed_points(phi: str, at_zero: float, at_one: float, at_minus_one: float) -> None:
    values = ACTIVATIONS[phi](torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([at_zero, at_one, at_minus_one], abs=1e-8)
