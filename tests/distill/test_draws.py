"""Several draws at once: each is the layer that it was made from, solved and trained as if it were alone."""

import copy
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eugen3d.distill.draws import Draws, TwoMaps
from eugen3d.layers import EUGenLinear, LowRankLinear, SNNKLinear


def make_layers(kind: str) -> list[TwoMaps]:
    generator = torch.Generator().manual_seed(0)
    if kind == "eugen":
        return [EUGenLinear(6, 5, 4, 2, use_norm=False, generator=generator) for _ in range(3)]
    if kind == "snnk":
        return [SNNKLinear(6, 5, 4, generator=generator) for _ in range(3)]
    return [LowRankLinear(6, 5, 4, generator=generator) for _ in range(3)]


def make_rows(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return x, F.relu(x @ torch.randn(6, 5, generator=generator) + 1)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("kind", ["eugen", "snnk", "low-rank"])
def test_every_draw_is_its_layer(kind: str) -> None:
    layers, (x, y) = make_layers(kind), make_rows()
    draws = Draws(layers, torch.tanh)
    with torch.no_grad():
        expected = torch.stack([torch.tanh(layer(x)) for layer in layers])
    torch.testing.assert_close(draws(x), expected)
    torch.testing.assert_close(draws(x.expand(3, -1, -1)), expected)
    errors = ((expected - y).square().sum(dim=(1, 2)) / y.square().sum()).sqrt()
    torch.testing.assert_close(draws.relative_errors(x, y).float(), errors)
    assert len(set(errors.tolist())) == 3


def test_every_readout_is_the_least_squares_fit() -> None:
    layers, (x, y) = make_layers("eugen"), make_rows()
    draws = Draws(layers, nn.Identity())
    before = draws.relative_errors(x, y)
    draws.solve(x, y)
    for layer, given in zip(layers, draws(x), strict=True):
        features = torch.cat([layer.maps()[0](x), torch.ones(len(x), 1)], dim=1).detach().double().numpy()
        solution, *_ = np.linalg.lstsq(features, y.double().numpy(), rcond=None)
        torch.testing.assert_close(given.double(), torch.from_numpy(features @ solution), rtol=1e-3, atol=1e-3)
    assert (draws.relative_errors(x, y) < before).all()


def test_a_draw_is_trained_as_if_it_were_alone() -> None:
    layers, (x, y) = make_layers("eugen"), make_rows()
    together, alone = Draws(layers, nn.Identity()), Draws(layers[1:2], nn.Identity())
    before = together.relative_errors(x, y)
    together.descend(x, y, 1.5, 30, generators(5, 6, 7))
    alone.descend(x, y, 1.5, 30, generators(6))
    torch.testing.assert_close(together(x)[1], alone(x)[0], rtol=1e-3, atol=1e-3)
    assert (together.relative_errors(x, y) < before).all()


@pytest.mark.parametrize("trained", [False, True])
def test_features_that_require_no_gradient_stay(trained: bool) -> None:
    layers, (x, y) = make_layers("snnk"), make_rows()
    for layer in layers:
        layer.features.requires_grad_(trained)
    draws = Draws(layers, nn.Identity())
    before = draws.features(x)
    draws.descend(x, y, 1.0, 5, generators(0, 1, 2))
    assert torch.equal(draws.features(x), before) != trained


def test_the_units_of_training_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There and back is the identity: steps of no length leave the layers as they were."""
    monkeypatch.setattr(importlib.import_module("eugen3d.distill.draws"), "LEARNING_RATE", 0.0)
    layers, (x, y) = make_layers("eugen"), make_rows()
    draws = Draws(layers, nn.Identity())
    before = draws(x)
    draws.descend(x, y, 1.5, 3, generators(0, 1, 2))
    torch.testing.assert_close(draws(x), before, rtol=1e-4, atol=1e-4)


def test_draws_go_back_one_by_one() -> None:
    layers, (x, y) = make_layers("low-rank"), make_rows()
    draws = Draws(copy.deepcopy(layers), nn.Identity())
    before, state = draws(x), draws.state()
    draws.descend(x, y, 1.0, 5, generators(0, 1, 2))
    after = draws(x)
    draws.keep(state, torch.tensor([True, False, True]))
    torch.testing.assert_close(draws(x)[[0, 2]], before[[0, 2]])
    torch.testing.assert_close(draws(x)[1], after[1])
    assert not torch.allclose(after[1], before[1])
