"""How well layers stand for trained ones: closed forms against numpy, training that only helps, and costs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eugen3d.distill.approximation import Activations, ApproximationProblem, Candidate, layer_cost
from eugen3d.layers import EUGenConfig, LowRankConfig, SNNKConfig


def make_problem(width: int = 12, rows: int = 600, rank: int | None = None) -> ApproximationProblem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator) * torch.linspace(0.5, 3, width) + 1
    weight = torch.randn(width, width, generator=generator) / width**0.5
    if rank is not None:
        weight = weight[:, :rank] @ torch.randn(rank, width, generator=generator)
    return ApproximationProblem(*Activations(x, x @ weight.T + 0.2, F.relu).split(rows * 4 // 5))


def relative(fitted: Tensor, wanted: Tensor) -> float:
    return float(((fitted - wanted).square().sum() / wanted.square().sum()).sqrt())


def test_a_low_rank_layer_of_the_rank_of_the_weight_is_exact() -> None:
    problem = make_problem(rank=3)
    assert problem.relative_error(Candidate("low-rank", 3)) < 1e-3
    assert problem.relative_error(Candidate("low-rank", 2)) > 0.05


def test_the_identity_of_full_width_is_exact_and_contains_low_rank() -> None:
    problem = make_problem()
    full = Candidate("eugen", 12, projection="orthogonal", phi="identity")
    assert problem.relative_error(full) < 1e-3
    half = Candidate("eugen", 6, projection="orthogonal", phi="identity")
    assert problem.relative_error(Candidate("low-rank", 6)) < problem.relative_error(half)


def test_the_readout_is_the_least_squares_fit() -> None:
    """SNNK sees the input itself: its features can be written down from its draw."""
    problem = make_problem()
    candidate = Candidate("snnk", 8, projection="gaussian", phi="relu")
    generator = torch.Generator().manual_seed(3)
    projection = torch.randn(8, 12, generator=generator, dtype=torch.float64).float() / 8**0.5

    def features(rows: Activations) -> np.ndarray:
        return torch.cat([F.relu(rows.inputs @ projection.T), torch.ones(len(rows.inputs), 1)], dim=1).double().numpy()

    wanted = F.relu(problem.train.pre_activations).double().numpy()
    solution, *_ = np.linalg.lstsq(features(problem.train), wanted, rcond=None)
    fitted = torch.from_numpy(features(problem.held_out) @ solution)
    expected = relative(fitted, F.relu(problem.held_out.pre_activations).double())
    assert problem.relative_error(candidate, seed=3) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_training_the_projections_lowers_the_error(order: int) -> None:
    problem = make_problem(rows=2000)
    errors = [
        problem.relative_error(Candidate("eugen", 6, order, "orthogonal", trained, "relu"), seed=1, steps=100)
        for trained in (False, True)
    ]
    assert errors[1] < errors[0] < 1


def test_a_seed_is_a_draw() -> None:
    problem = make_problem()
    candidate = Candidate("eugen", 6, projection="gaussian", phi="relu", use_norm=True)
    first, again, other = (problem.relative_error(candidate, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_the_norm_is_one_more_input() -> None:
    """Where the output is the norm of the input, a layer that sees it needs nothing else."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=generator)
    z = torch.linalg.vector_norm(x, dim=1, keepdim=True).expand(-1, 12)
    problem = ApproximationProblem(*Activations(x, z, F.relu).split(1600))
    without, with_norm = (
        problem.relative_error(Candidate("eugen", 13, projection="orthogonal", phi="identity", use_norm=use_norm))
        for use_norm in (False, True)
    )
    assert with_norm < 1e-3 < without


def test_costs_alone_and_in_a_chain() -> None:
    """Alone what is stored; in a chain a folded EUGen layer is (k·m)², a low-rank one stays 2·r·width."""
    assert layer_cost(EUGenConfig(8, use_norm=False), 32, "lone") == (2 * 8 * 32 + 8 + 32, 2 * 2 * 8 * 32)
    assert layer_cost(EUGenConfig(8, use_norm=False), 32, "chain") == (64 + 8, 2 * 64)
    assert layer_cost(EUGenConfig(8, 2, use_norm=False), 32, "chain") == (256 + 16, 2 * 256)
    assert layer_cost(SNNKConfig(8), 32, "chain") == (64 + 8, 2 * 64)
    assert layer_cost(LowRankConfig(4), 32, "chain") == layer_cost(LowRankConfig(4), 32, "lone") == (288, 2 * 256)
    assert layer_cost(EUGenConfig(8, use_norm=True), 32, "chain")[1] > 2 * 64
