"""The projections and their products."""

import math

import pytest
import torch

from eugen3d.layers.features import (
    ACTIVATIONS,
    degree_products,
    draw_projection,
    draw_uniform,
    input_norm,
    num_projections,
)


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


def test_uniform_entries_have_their_bound_and_variance() -> None:
    entries = draw_uniform((50, 400), 0.3, torch.Generator().manual_seed(1))
    assert entries.dtype == torch.float64
    assert 0.299 < entries.max() < 0.3 and -0.3 < entries.min() < -0.299
    assert entries.var().item() == pytest.approx(0.03, rel=0.03)


def first_and_second(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the sum of a function, and of the sum of its squared gradient."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad((2 * function(x)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.arange(1.0, 1 + x.shape[-1], dtype=x.dtype)).sum(), x)
    return first.detach(), second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1.0, 1e10])
def test_the_norm_and_its_derivatives_are_those_of_torch_away_from_zero(scale: float, dtype: torch.dtype) -> None:
    x = scale * torch.randn(4, 5, dtype=dtype)

    def reference(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    assert torch.equal(input_norm(x), reference(x)) and input_norm(x).all()
    for ours, theirs in zip(first_and_second(input_norm, x), first_and_second(reference, x), strict=True):
        assert torch.equal(ours, theirs) and ours.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-30, 1e-19, 1e-15, 1e-12, 1e-11])
def test_the_derivatives_of_the_norm_are_finite_near_zero(scale: float, dtype: torch.dtype) -> None:
    x = scale * torch.randn(4, 5, dtype=dtype)
    first, second = first_and_second(input_norm, x)
    assert first.isfinite().all() and second.isfinite().all()
    is_zero = scale < {torch.float32: 1e-13, torch.float64: 1e-140}[dtype]
    assert first.any() != is_zero and second.any() != is_zero, "zero stands for what has no derivative, and only there"
    with torch.no_grad():
        value = input_norm(x)
    assert torch.equal(input_norm(x), value)
    assert torch.equal(value, torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def test_a_zero_row_leaves_the_derivatives_of_the_others_alone() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    mixed = torch.cat([x[:1], torch.zeros(1, 5, dtype=torch.float64), x[1:]])
    for whole, part in zip(first_and_second(input_norm, mixed), first_and_second(input_norm, x), strict=True):
        assert torch.equal(whole[[0, 2, 3]], part)
        assert not whole[1].any()


@pytest.mark.parametrize(
    ("phi", "at_zero", "at_one", "at_minus_one"),
    [
        ("identity", 0.0, 1.0, -1.0),
        ("relu", 0.0, 1.0, 0.0),
        ("gelu", 0.0, 0.841344746, -0.158655254),
        ("softplus", math.log(2), 1.313261688, 0.313261688),
        ("softplus-100", math.log(2) / 100, 1.0, 0.0),
        ("sine", 0.0, math.sin(1), -math.sin(1)),
    ],
)
def test_activations_at_hand_computed_points(phi: str, at_zero: float, at_one: float, at_minus_one: float) -> None:
    values = ACTIVATIONS[phi](torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64))
    assert values.tolist() == pytest.approx([at_zero, at_one, at_minus_one], abs=1e-8)
