"""How well layers stand for trained ones: closed forms against numpy, training that only helps, and costs."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill.approximation import Activations, ApproximationProblem, Candidate, layer_cost
from eugen3d.layers import EUGenConfig, LowRankConfig, SNNKConfig
from eugen3d.layers.features import Phi

SNNK = Candidate("snnk", 6, projection="gaussian", phi="relu")


def make_problem(
    width: int = 12,
    rows: int = 600,
    rank: int | None = None,
    activation: Callable[[Tensor], Tensor] = F.relu,
    phi: Phi = "relu",
    scale: float = 1.0,
) -> ApproximationProblem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator) * torch.linspace(0.5, 3, width) + 1
    weight = torch.randn(width, width, generator=generator) / width**0.5
    if rank is not None:
        weight = weight[:, :rank] @ torch.randn(rank, width, generator=generator)
    return ApproximationProblem(*Activations(x, x @ weight.T + 0.2, activation, phi, scale).split(rows * 4 // 5))


def relative(fitted: Tensor, wanted: Tensor) -> float:
    return float(((fitted - wanted).square().sum() / wanted.square().sum()).sqrt())


def test_a_low_rank_layer_of_the_rank_of_the_weight_is_exact() -> None:
    problem = make_problem(rank=3)
    assert problem.relative_errors(Candidate("low-rank", 3))[0] < 1e-3
    assert problem.relative_errors(Candidate("low-rank", 2))[0] > 0.05


@pytest.mark.parametrize("trained", [False, True])
def test_an_identity_layer_is_the_low_rank_one(trained: bool) -> None:
    """Built of other modules and with other draws, from the same start on the same rows."""
    problem = make_problem()
    identity = problem.relative_errors(Candidate("eugen", 4, 1, "regression", trained), (0, 1), steps=20)
    low_rank = problem.relative_errors(Candidate("low-rank", 4, trained=trained), (0, 1), steps=20)
    assert identity == pytest.approx(low_rank, rel=1e-4)
    assert identity != problem.relative_errors(Candidate("eugen", 5, 1, "regression", trained), (0, 1), steps=20)


def test_gradients_lower_the_error_of_a_low_rank_layer() -> None:
    """Reduced-rank regression is the best for z, not for y = relu(z)."""
    problem = make_problem(rows=2000)
    fixed, trained = (
        problem.relative_errors(Candidate("low-rank", 4, trained=trained), (0,), steps=100)[0]
        for trained in (False, True)
    )
    assert trained < 0.995 * fixed


@pytest.mark.parametrize(("phi", "scale", "function"), [("relu", 1.0, F.relu), ("softplus", 10.0, nn.Softplus(10.0))])
def test_all_neurons_picked_are_the_layer_itself(phi: Phi, scale: float, function: Callable[[Tensor], Tensor]) -> None:
    problem = make_problem(activation=function, phi=phi, scale=scale)
    (every,) = problem.relative_errors(Candidate("eugen", 12, 1, "picked", phi=phi))
    (half,) = problem.relative_errors(Candidate("eugen", 6, 1, "picked", phi=phi))
    drawn = problem.relative_errors(Candidate("eugen", 6, 1, "orthogonal", phi=phi), range(5))
    assert every < 1e-3 < half < sum(drawn) / 5


def test_what_is_not_random_needs_no_seed() -> None:
    problem = make_problem()
    for candidate in (Candidate("low-rank", 3), Candidate("eugen", 3, 1, "picked", phi="relu")):
        first, second = problem.relative_errors(candidate, (0, 1))
        assert first == second and not candidate.is_random
        assert replace(candidate, trained=True).is_random
    drawn = Candidate("eugen", 3, 1, "gaussian", phi="relu")
    first, second = problem.relative_errors(drawn, (0, 1))
    assert first != second and drawn.is_random


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
    assert problem.relative_errors(candidate, (3,)) == pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize(
    "candidate", [*(Candidate("eugen", 6, order, "orthogonal", phi="relu") for order in (1, 2, 3)), SNNK], ids=str
)
def test_training_the_projections_lowers_the_error_of_every_draw(candidate: Candidate) -> None:
    problem = make_problem(rows=2000)
    fixed = problem.relative_errors(candidate, (0, 1))
    trained = problem.relative_errors(replace(candidate, trained=True), (0, 1), steps=100)
    assert all(after < before < 1 for before, after in zip(fixed, trained, strict=True))


def test_a_seed_is_a_draw() -> None:
    problem = make_problem()
    candidate = Candidate("eugen", 6, projection="gaussian", phi="relu", use_norm=True)
    first, again, other = problem.relative_errors(candidate, (0, 0, 1))
    assert first == again != other
    assert problem.relative_errors(candidate, (1,))[0] == pytest.approx(other, rel=1e-4)


def test_the_norm_is_one_more_input() -> None:
    """Where the output is the norm of the input, a layer that sees it needs nothing else."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 12, generator=generator)
    z = torch.linalg.vector_norm(x, dim=1, keepdim=True).expand(-1, 12)
    problem = ApproximationProblem(*Activations(x, z, F.relu).split(1600))
    without, with_norm = (
        problem.relative_errors(Candidate("eugen", 13, 1, "orthogonal", use_norm=use_norm))[0]
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
