"""Muon, by its formula."""

import pytest
import torch
from torch import Tensor, nn

from eugen3d.training.muon import Muon, is_matrix, orthogonalise


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16), (1, 4, 4), (2, 24, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.05, 1.0, min(shape[1:]))
    matrices = 100 * left * values @ right
    found = orthogonalise(matrices)
    assert found.shape == shape
    assert ((torch.linalg.svdvals(found) > 0.6) & (torch.linalg.svdvals(found) < 1.3)).all()
    cosine = (found * (left @ right)).flatten(1).sum(1) / found.flatten(1).norm(dim=1) / min(shape[1:]) ** 0.5
    assert (cosine > 0.95).all(), "in the direction of U Vᵀ"


def test_a_zero_matrix_stays_zero_and_scale_does_not_matter() -> None:
    assert not orthogonalise(torch.zeros(1, 5, 7)).any()
    matrix = torch.randn(1, 5, 7)
    torch.testing.assert_close(orthogonalise(matrix * 1e3), orthogonalise(matrix), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(orthogonalise(-matrix), orthogonalise(matrix))


@pytest.mark.parametrize(("shape", "expected"), [((4, 4), True), ((3, 8), False), ((8, 1), False), ((8,), False)])
def test_which_parameters_are_matrices(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(torch.zeros(shape)) is expected


@pytest.mark.parametrize("shape", [(6, 9), (9,), (2, 9)])
def test_steps_reduce_a_quadratic(shape: tuple[int, ...]) -> None:
    goal, parameter = torch.randn(shape), nn.Parameter(torch.zeros(shape))
    optimizer = Muon([parameter], lr=0.15, adam_lr_ratio=0.5)
    losses = []
    for _ in range(80):
        loss = (parameter - goal).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert losses[-1] < 0.1 * losses[0]


def test_the_first_step_is_as_long_as_the_formula_says() -> None:
    """lr · 0.2 · √max(rows, columns) times a nearly orthogonal matrix, against the gradient."""
    parameter, gradient = nn.Parameter(torch.zeros(8, 12)), torch.randn(8, 12)
    parameter.grad = gradient.clone()
    Muon([parameter], lr=0.5).step()
    torch.testing.assert_close(parameter.detach(), -0.5 * 0.2 * 12**0.5 * orthogonalise(gradient[None])[0])


def test_the_others_take_adam_s_step() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizer = Muon([ours], lr=0.1, adam_lr_ratio=0.1)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for number in range(4):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(number))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours.detach(), torch.ones(5))


def test_weight_decay_shrinks_matrices_alone() -> None:
    matrix, vector = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    matrix.grad, vector.grad = torch.zeros(4, 4), torch.zeros(4)
    Muon([matrix, vector], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(matrix.detach(), torch.full((4, 4), 0.95))
    assert torch.equal(vector.detach(), torch.ones(4))


def test_parameters_without_a_gradient_stay() -> None:
    matrix, other = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    other.grad = torch.randn(4, 4)
    Muon([matrix, other]).step()
    assert torch.equal(matrix.detach(), torch.ones(4, 4)) and not torch.equal(other.detach(), torch.ones(4, 4))


def test_a_closure_s_loss_is_returned() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    assert Muon([parameter]).step(closure) == 16.0
    assert not torch.equal(parameter.detach(), torch.ones(4, 4))


def test_half_precision_matrices_keep_their_type() -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    parameter.grad = torch.randn(4, 4).bfloat16()
    before: Tensor = parameter.detach().clone()
    Muon([parameter], lr=0.1).step()
    assert parameter.dtype == torch.bfloat16 and not torch.equal(parameter.detach(), before)
