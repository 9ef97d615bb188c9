"""The closed forms against numpy's solutions over the rows themselves."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from eugen3d.distill.moments import Covariances, Moments
from eugen3d.distill.solve import (
    RIDGE,
    RIDGES,
    TOLERANCE,
    choose_ridge,
    pick_columns,
    reduced_rank_regression,
    relative_residual,
    solve_readout,
)


def moments_of(x: Tensor, y: Tensor) -> Covariances:
    moments = Moments()
    moments.update(x, y)
    return moments.covariances()


def problem(count: int = 200) -> tuple[Tensor, Tensor]:
    """Correlated inputs (count, 6) of unequal scales, and targets (count, 5) that they explain in part."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    scales = torch.tensor([1e-2, 0.1, 1.0, 1.0, 10.0, 50.0], dtype=torch.float64)
    x = torch.randn(count, 6, generator=generator, dtype=torch.float64) @ mixing * scales + 3.0
    y = (x / scales) @ torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return x, y + torch.randn(count, 5, generator=generator, dtype=torch.float64)


def residual(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> float:
    return float((x @ weight.T + bias - y).square().sum())


def test_the_readout_is_least_squares() -> None:
    x, y = problem()
    weight, bias = solve_readout(moments_of(x, y), ridge=1e-14)
    design = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    expected = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight, expected[:-1].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias, expected[-1], rtol=1e-6)
    assert residual(x, y, weight + 1e-3, bias) > residual(x, y, weight, bias)


def test_the_ridge_is_the_textbook_s_on_standardised_inputs() -> None:
    x, y = problem()
    weight, _ = solve_readout(moments_of(x, y), ridge=0.3)
    deviations = x.std(dim=0, unbiased=False)
    z, centred = (x - x.mean(0)) / deviations, y - y.mean(0)
    gram = z.T @ z + 0.3 * len(x) * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(weight, torch.linalg.solve(gram, z.T @ centred).T / deviations)


def test_the_unit_of_an_input_does_not_matter() -> None:
    x, y = problem()
    units = torch.tensor([1e-5, 1.0, 1e4, 1.0, 7.0, 1e-3], dtype=torch.float64)
    weight, bias = solve_readout(moments_of(x, y))
    other_weight, other_bias = solve_readout(moments_of(x * units, y))
    torch.testing.assert_close(other_weight * units, weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(other_bias, bias, rtol=1e-6, atol=1e-6)


def test_a_feature_that_never_varies_gets_no_weight() -> None:
    x, y = problem()
    constant = torch.cat([x, torch.full((len(x), 1), 5.0, dtype=torch.float64)], dim=1)
    weight, bias = solve_readout(moments_of(constant, y))
    expected_weight, expected_bias = solve_readout(moments_of(x, y))
    assert torch.equal(weight[:, -1], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(weight[:, :-1], expected_weight)
    torch.testing.assert_close(bias, expected_bias)


def test_inputs_that_are_all_constant_leave_the_mean() -> None:
    _, y = problem()
    weight, bias = solve_readout(moments_of(torch.ones(len(y), 3), y))
    assert not weight.any()
    torch.testing.assert_close(bias, y.mean(0))


def test_a_singular_problem_without_ridge_is_solved() -> None:
    x, y = problem()
    doubled = torch.cat([x, x], dim=1)
    weight, bias = solve_readout(moments_of(doubled, y), ridge=0.0)
    alone = solve_readout(moments_of(x, y), ridge=0.0)
    assert weight.isfinite().all()
    assert residual(doubled, y, weight, bias) == pytest.approx(residual(x, y, *alone), rel=1e-6)


def test_reduced_rank_regression_at_full_rank_is_least_squares() -> None:
    moments = moments_of(*problem())
    readout, projection, bias = reduced_rank_regression(moments, 5)
    weight, expected_bias = solve_readout(moments)
    torch.testing.assert_close(readout @ projection, weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(bias, expected_bias)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_reduced_rank_regression_is_the_best_of_its_rank(rank: int) -> None:
    """The reference: whiten the inputs, regress, and cut the singular value decomposition of the fitted targets."""
    x, y = problem()
    readout, projection, bias = reduced_rank_regression(moments_of(x, y), rank, ridge=1e-14)
    u = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)[0]  # white: uᵀu = I
    left, values, right = np.linalg.svd(u.T @ (y - y.mean(0)).numpy(), full_matrices=False)
    expected = u @ (left[:, :rank] * values[:rank]) @ right[:rank] + y.mean(0).numpy()
    assert readout.shape == (5, rank) and projection.shape == (rank, 6)
    np.testing.assert_allclose(x @ (readout @ projection).T + bias, expected, rtol=1e-6, atol=1e-6)


def test_its_error_falls_with_the_rank() -> None:
    x, y = problem()
    moments = moments_of(x, y)
    errors = []
    for rank in range(1, 6):
        readout, projection, bias = reduced_rank_regression(moments, rank)
        errors.append(residual(x, y, readout @ projection, bias))
    assert all(later < earlier * (1 - 1e-4) for earlier, later in itertools.pairwise(errors))


def test_its_projections_are_uncorrelated_with_unit_variance() -> None:
    x, y = problem()
    _, projection, _ = reduced_rank_regression(moments_of(x, y), 3)
    torch.testing.assert_close((x @ projection.T).T.cov(correction=0), torch.eye(3, dtype=torch.float64))


def test_picked_columns_span_a_rank_deficient_matrix() -> None:
    activations = torch.randn(100, 4, dtype=torch.float64) @ torch.randn(4, 12, dtype=torch.float64)
    picked = pick_columns(moments_of(activations, activations[:, :0]).xx, 12)
    assert len(picked) == 4, "nothing is left to explain after the rank"
    centred = activations - activations.mean(0)
    solution = torch.linalg.lstsq(centred[:, picked], centred).solution
    torch.testing.assert_close(centred[:, picked] @ solution, centred)
    fewer = torch.linalg.lstsq(centred[:, picked[:3]], centred).solution
    assert not torch.allclose(centred[:, picked[:3]] @ fewer, centred, atol=1e-3)


@pytest.mark.parametrize("num_readers", [0, 3])
def test_each_column_explains_most_of_what_is_read(num_readers: int) -> None:
    """Equal to a greedy search by least squares over the rows."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(300, 20, dtype=torch.float64, generator=generator)
    y = torch.relu(drawn @ torch.randn(20, 16, dtype=torch.float64, generator=generator))
    readers = torch.randn(num_readers, 16, dtype=torch.float64, generator=generator) if num_readers else None
    centred = y - y.mean(0)
    read = centred if readers is None else centred @ readers.T

    def left(columns: list[int]) -> float:
        solution = torch.linalg.lstsq(centred[:, columns], read).solution
        return float((centred[:, columns] @ solution - read).square().sum())

    expected: list[int] = []
    for _ in range(6):
        rest = [column for column in range(16) if column not in expected]
        expected.append(min(rest, key=lambda column: left([*expected, column])))
    covariance = moments_of(y, y[:, :0]).xx
    assert pick_columns(covariance, 6, readers).tolist() == expected
    other = torch.zeros(1, 16, dtype=torch.float64)
    other[0, 11] = 1
    assert pick_columns(covariance, 6, other).tolist() == [11], "nothing else is read"


def test_no_column_is_picked_twice_and_idle_ones_never() -> None:
    activations = torch.relu(torch.randn(50, 8, dtype=torch.float64))
    activations[:, [2, 5]] = 0
    picked = pick_columns(moments_of(activations, activations[:, :0]).xx, 8).tolist()
    assert sorted(picked) == [0, 1, 3, 4, 6, 7]


def test_the_relative_residual_is_that_of_the_rows() -> None:
    x, y = problem()
    weight, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    expected = (x @ weight.T + bias - y).norm() / y.norm()
    assert relative_residual(moments_of(x, y), weight, bias) == pytest.approx(float(expected), rel=1e-9)
    exact = moments_of(x, x @ weight.T + bias)
    assert relative_residual(exact, weight, bias) < 1e-6


def test_a_metric_says_which_errors_matter() -> None:
    x, y = problem()
    moments = moments_of(x, y)

    def errors(metric: Tensor | None) -> Tensor:
        readout, projection, bias = reduced_rank_regression(moments, 2, metric=metric)
        return (x @ (readout @ projection).T + bias - y).square().sum(dim=0)

    equal = 3 * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(errors(equal), errors(None))
    for output in range(5):
        heavy = torch.ones(5, dtype=torch.float64)
        heavy[output] = 1e4
        alone = solve_readout(moments)
        best = (x @ alone[0].T + alone[1] - y).square().sum(dim=0)[output]
        assert float(errors(heavy.diag())[output] / best) == pytest.approx(1, abs=1e-3)
    assert errors(None).sum() < errors(heavy.diag()).sum()


def test_a_metric_that_is_zero_still_solves() -> None:
    readout, projection, bias = reduced_rank_regression(
        moments_of(*problem()), 2, metric=torch.zeros(5, 5, dtype=torch.float64)
    )
    assert all(part.isfinite().all() for part in (readout, projection, bias))


def test_the_ridge_solution_is_that_of_all_rows_at_once() -> None:
    """Streamed in chunks, against numpy's least squares with the penalty as further rows."""
    x, y = problem()
    moments = Moments()
    for part_x, part_y in zip(x.split(17), y.split(17), strict=True):
        moments.update(part_x, part_y)
    for ridge in RIDGES:
        weight, bias = solve_readout(moments.covariances(), ridge)
        centred, deviations = x - x.mean(0), x.std(dim=0, unbiased=False)
        penalty = (ridge * len(x)) ** 0.5 * deviations.diag()
        design, target = torch.cat([centred, penalty]), torch.cat([y - y.mean(0), torch.zeros(6, 5, dtype=x.dtype)])
        expected = np.linalg.lstsq(design.numpy(), target.numpy(), rcond=None)[0].T
        assert np.linalg.norm(weight - expected) <= 1e-8 * np.linalg.norm(expected)
        np.testing.assert_allclose(bias, y.mean(0) - expected @ x.mean(0).numpy(), rtol=1e-8)
        other = solve_readout(moments.covariances(), 10 * ridge)[0]
        assert np.linalg.norm(other - expected) > 1e-8 * np.linalg.norm(expected)


def test_the_ridge_is_the_one_with_the_least_error_on_held_out_rows() -> None:
    """Found again by going through the rows; few and noisy rows want a large one, clean ones none."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64) * torch.logspace(
        0, -3, 12, dtype=torch.float64
    )
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64) @ mixing.T
    clean = x @ torch.randn(12, 3, generator=generator, dtype=torch.float64)
    chosen = []
    for noise in (1.0, 0.0):
        y = clean + noise * torch.randn(400, 3, generator=generator, dtype=torch.float64)
        train, held_out = moments_of(x[:20], y[:20]), moments_of(x[20:], y[20:])
        found = choose_ridge(train, held_out, lambda ridge, train=train: solve_readout(train, ridge))
        errors = {ridge: residual(x[20:], y[20:], *solve_readout(train, ridge)) for ridge in RIDGES}
        as_good = [ridge for ridge, error in errors.items() if error <= (1 + TOLERANCE) ** 2 * min(errors.values())]
        assert found.ridge == max(as_good) and len(as_good) < len(RIDGES)
        chosen.append(found.ridge)
    assert chosen[0] > chosen[1] == min(RIDGES)


def test_without_held_out_rows_the_ridge_is_the_default() -> None:
    moments = moments_of(*problem())
    assert choose_ridge(moments, None, lambda ridge: solve_readout(moments, ridge)).ridge == RIDGE


def test_the_condition_is_that_of_the_correlations() -> None:
    x, y = problem()
    constant = torch.cat([x * 1e3, torch.full((len(x), 1), 5.0, dtype=torch.float64)], dim=1)
    for inputs in (x, constant):
        moments = moments_of(inputs, y)
        found = choose_ridge(moments, None, lambda ridge, moments=moments: solve_readout(moments, ridge))
        assert found.condition == pytest.approx(np.linalg.cond(np.corrcoef(x.numpy(), rowvar=False)), rel=1e-6)
    doubled = moments_of(torch.cat([x, x], dim=1), y)
    assert choose_ridge(doubled, None, lambda ridge: solve_readout(doubled, ridge)).condition > 1e12
    nothing = moments_of(torch.ones(len(y), 3), y)
    assert choose_ridge(nothing, None, lambda ridge: solve_readout(nothing, ridge)).condition == 1


def test_a_metric_weighs_the_residual() -> None:
    x, y = problem()
    weight, bias = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    root = torch.randn(5, 5, dtype=torch.float64)
    expected = ((x @ weight.T + bias - y) @ root).norm() / (y @ root).norm()
    found = relative_residual(moments_of(x, y), weight, bias, root @ root.T)
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert found != pytest.approx(relative_residual(moments_of(x, y), weight, bias), rel=1e-3)
