"""The choice of optimizer, and the schedule whose checkpoints load without unpickling numpy."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from eugen3d.models.optimizers import FieldOptimizerConfig
from eugen3d.models.schedules import ExponentialDecayConfig
from eugen3d.training import Muon


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    (model(x) - x.square().sum(dim=1, keepdim=True)).square().mean().backward()
    optimizer.step()


def test_training_goes_on_from_a_checkpoint_read_without_unpickling(tmp_path: Path) -> None:
    config = FieldOptimizerConfig(weight_decay=0.01)
    model = network()
    optimizer = config.setup(model.parameters())
    schedule = (
        ExponentialDecayConfig(lr_final=1e-3, max_steps=20, warmup_steps=3).setup().get_scheduler(optimizer, 0.01)
    )
    for number in range(5):
        step(model, optimizer, number)
        schedule.step()
    path = tmp_path / "step.ckpt"
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(states, path)
    saved = torch.load(path, weights_only=True)

    other = network()
    resumed = config.setup(other.parameters())
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    before = copy.deepcopy(other.state_dict())
    for each, its in ((model, optimizer), (other, resumed)):
        step(each, its, 5)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert not torch.equal(before["0.weight"], other.state_dict()["0.weight"])
    fresh = config.setup(other.parameters())
    other.load_state_dict(before)
    step(other, fresh, 5)
    assert not torch.equal(model.state_dict()["0.weight"], other.state_dict()["0.weight"]), "the state matters"


def test_the_schedule_gives_plain_floats() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = FieldOptimizerConfig(lr=0.01).setup([parameter])
    schedule = ExponentialDecayConfig(lr_final=1e-4, max_steps=10).setup().get_scheduler(optimizer, 0.01)
    rates = []
    for _ in range(10):
        parameter.grad = torch.ones(4, 4)
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert {type(rate) for rate in rates} == {float}
    assert {type(rate) for rate in schedule.get_last_lr()} == {float}
    assert rates[4] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4)


def test_the_kind_chooses_the_optimizer() -> None:
    def parameters() -> list[nn.Parameter]:
        return [nn.Parameter(torch.ones(4, 4))]

    muon = FieldOptimizerConfig(lr=0.3, betas=(0.8, 0.95), momentum=0.8, weight_decay=0.1).setup(parameters())
    adam = FieldOptimizerConfig(kind="adam", lr=0.3, betas=(0.8, 0.95), weight_decay=0.1).setup(parameters())
    assert isinstance(muon, Muon) and muon.defaults["momentum"] == 0.8
    assert isinstance(adam, torch.optim.AdamW)
    assert {each.defaults["lr"] for each in (muon, adam)} == {0.3}
    assert {each.defaults["betas"] for each in (muon, adam)} == {(0.8, 0.95)}
    assert {each.defaults["weight_decay"] for each in (muon, adam)} == {0.1}
