"""`distill`: students of any module, from batches of its inputs."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eugen3d.distill import DistillConfig, Examples, FitConfig, LayerwiseConfig, OutputLoss, RefineConfig, distill
from eugen3d.distill.examples import run_module
from eugen3d.distill.network import Network
from eugen3d.layers import EUGenConfig, EUGenLinear, LowRankConfig, LowRankLinear, fold

timm_layers = pytest.importorskip("timm.models.layers", reason="timm is not installed")


def eugen(num_features: int) -> LayerwiseConfig:
    return LayerwiseConfig(EUGenConfig(num_features, use_norm=False))


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.fixture
def batches() -> list[Tensor]:
    return [torch.randn(64, 4) for _ in range(8)]


def test_all_neurons_as_features_give_the_teacher_back(model: nn.Sequential, batches: list[Tensor]) -> None:
    before = copy.deepcopy(model.state_dict())
    student, report = distill(model, batches, DistillConfig(eugen(16), layers=("0", "2")))
    torch.testing.assert_close(student(batches[0]), model(batches[0]), rtol=1e-3, atol=1e-4)
    assert [type(student.get_submodule(name)) for name in ("0", "2")] == [EUGenLinear, EUGenLinear] and student.training
    assert report.output_error < 1e-8 and report.output_error == report.unrefined_error
    assert [(layer.name, layer.relative_error < 1e-4) for layer in report.layers] == [("0", True), ("2", True)]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()) and model.training


def test_gradients_lower_the_error_that_is_reported(model: nn.Sequential, batches: list[Tensor]) -> None:
    closed, start = distill(model, batches, DistillConfig(eugen(5)))
    config = DistillConfig(eugen(5), fit=FitConfig(15, 1), refine=RefineConfig(30, 1e-2, check_every=10))
    student, report = distill(model, lambda: iter(batches), config)
    assert 0 < report.output_error <= report.unrefined_error < start.output_error
    assert report.seconds["fit"] > 0 and report.seconds["refine"] > 0 and start.seconds["fit"] == 0
    again, _ = distill(model, batches, config)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in student.state_dict().items())
    expected = student(batches[0])
    torch.testing.assert_close(fold(student)(batches[0]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(closed(batches[0]), expected)


def test_a_block_of_timm_with_rows_along_two_axes(batches: list[Tensor]) -> None:
    block = timm_layers.Mlp(4, 12, 3)
    config = DistillConfig(LayerwiseConfig(LowRankConfig(3)), filter_fn=lambda layer, name: name == "fc1")
    student, report = distill(block, [batch.view(2, 32, 4) for batch in batches], config)
    assert isinstance(student.fc1, LowRankLinear) and isinstance(student.act, nn.GELU)
    assert student(batches[0]).shape == (64, 3) and 0 < report.output_error < 1


def test_a_shared_layer_stays_shared(batches: list[Tensor]) -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    student, _ = distill(nn.Sequential(block, block), batches, DistillConfig(eugen(4), layers=("0",)))
    assert isinstance(student.get_submodule("0.0"), EUGenLinear)
    assert student.get_submodule("0") is student.get_submodule("1")


def test_weight_norm_is_taken_off(batches: list[Tensor]) -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    student, report = distill(model, batches, DistillConfig(eugen(8), layers=("0",)))
    assert report.output_error < 1e-8 and isinstance(student.get_submodule("0"), EUGenLinear)
    assert hasattr(model[0], "weight_g"), "the model stays as it is"


def test_an_error_of_ones_own_and_several_outputs(batches: list[Tensor]) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.first(self.trunk(x)), "b": self.second(self.trunk(x))}

    config = DistillConfig(
        LayerwiseConfig(LowRankConfig(1)), layers=("trunk",), error=lambda y, t: (y[1] - t[1]).abs().max() + 7
    )
    _, report = distill(TwoHeads(), batches, config)
    assert 7 < report.output_error < 10


def test_the_loss_by_hand() -> None:
    """The teacher gives x, the student 0: Σ x² over Σ (x − mean)², of 1, 2, 3 that is 14 / 2."""
    network = Network.trace(nn.Sequential(nn.Identity()), (torch.zeros(1, 1),), run_module)
    loss = OutputLoss(network, Examples([torch.tensor([[1.0], [2.0], [3.0]])]))
    zero = Network(nn.Sequential(), {}, {}, lambda module, batch: (batch[0] * 0,))
    assert float(loss.at(zero, 0)) == pytest.approx(7)
    assert float(loss.at(network, 0)) == 0


@pytest.mark.parametrize(
    ("batches", "config", "message"),
    [
        ([], DistillConfig(), "found 0 batches, expected at least 2"),
        ([torch.zeros(3, 4)], DistillConfig(), "found 1 batches, expected at least 2"),
        ([["words"], ["more"]], DistillConfig(), "batch 0 holds str, expected"),
        (2, DistillConfig(layers=("7",)), "'7' matches none"),
        (2, DistillConfig(filter_fn=lambda layer, name: False), "no dense layer matched, expected of 0, 2, 4"),
        (2, DistillConfig(layers=("0",), filter_fn=lambda layer, name: True), "layers and filter_fn are given"),
        (2, DistillConfig(held_out=1.0), "held_out is 1.0"),
        (2, DistillConfig(eugen(40), layers=("2",)), "rows for layer 2 with m = 40"),
    ],
)
def test_what_cannot_be_distilled_is_said(model: nn.Sequential, batches, config: DistillConfig, message: str) -> None:
    given = [torch.randn(32, 4) for _ in range(batches)] if isinstance(batches, int) else batches
    with pytest.raises(ValueError, match=message):
        distill(model, given, config)


def test_hooks_and_tied_weights_are_refused(model: nn.Sequential, batches: list[Tensor]) -> None:
    handle = model[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="2: has hooks"):
        distill(model, batches, DistillConfig(eugen(4)))
    handle.remove()
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="shares its weight"):
        distill(tied, batches, DistillConfig(eugen(4)))
