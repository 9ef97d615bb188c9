"""Streamed moments against numpy's of all rows at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from eugen3d.distill.moments import Covariances, Moments


def streamed(x: Tensor, y: Tensor, chunk: int) -> Covariances:
    moments = Moments()
    for part_x, part_y in zip(x.split(chunk), y.split(chunk), strict=True):
        moments.update(part_x, part_y)
    assert moments.num_rows == len(x)
    return moments.covariances()


def rows(count: int = 103, mean: float = 0.7, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    x = mean + spread * torch.randn(count, 4, dtype=torch.float64)
    return x, mean + x @ torch.randn(4, 3, dtype=torch.float64) + torch.randn(count, 3, dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 10, 103])
def test_chunks_give_the_moments_of_the_whole(chunk: int) -> None:
    x, y = rows()
    ours = streamed(x, y, chunk)
    expected = np.cov(torch.cat([x, y], dim=1).numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(ours.mean_x, x.numpy().mean(0), atol=1e-10)
    np.testing.assert_allclose(ours.mean_y, y.numpy().mean(0), atol=1e-10)
    np.testing.assert_allclose(ours.xx, expected[:4, :4], atol=1e-10)
    np.testing.assert_allclose(ours.xy, expected[:4, 4:], atol=1e-10)
    np.testing.assert_allclose(ours.yy, expected[4:, 4:], atol=1e-10)


def test_chunking_does_not_matter() -> None:
    x, y = rows()
    whole = vars(streamed(x, y, 103))
    for chunk in (1, 7, 50):
        for name, value in vars(streamed(x, y, chunk)).items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-10)


def test_one_more_row_changes_them() -> None:
    x, y = rows()
    assert not torch.allclose(streamed(x, y, 50).xx, streamed(x[:-1], y[:-1], 50).xx)


@pytest.mark.parametrize("chunk", [10, 103])
def test_a_small_spread_around_a_large_mean_keeps_its_digits(chunk: int) -> None:
    """Sums of squares that are centred afterwards would have no digit left: 1e8² against 1."""
    x, y = rows(mean=1e8)
    ours = streamed(x, y, chunk)
    np.testing.assert_allclose(ours.xx, np.cov(x.numpy(), rowvar=False, bias=True), rtol=1e-6, atol=1e-6)


def test_single_precision_rows_are_summed_in_double_precision() -> None:
    x, y = rows()
    ours = streamed(x.float(), y.float(), 10)
    assert ours.xx.dtype == torch.float64
    exact = streamed(x.float().double(), y.float().double(), 10)
    assert torch.equal(ours.xx, exact.xx)


def test_targets_may_be_absent() -> None:
    x, y = rows()
    ours = streamed(x, y[:, :0], 10)
    assert ours.xy.shape == (4, 0) and ours.yy.shape == (0, 0)
    torch.testing.assert_close(ours.xx, streamed(x, y, 10).xx)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("first", [True, False])
def test_values_that_are_not_finite_are_refused(value: float, first: bool) -> None:
    x, y = rows()
    moments = Moments()
    if not first:
        moments.update(x, y)
    y[3, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.update(x, y)


def test_no_rows_have_no_moments() -> None:
    with pytest.raises(ValueError, match="no rows were added"):
        Moments().covariances()
