"""Networks: their sites, in which order they are run, what they see, and who reads them."""

import pytest
import torch
from torch import nn

from eugen3d.distill import Network, Reader
from eugen3d.layers import EUGenConfig, LayerStack


class Branched(nn.Module):
    """Two heads over a chain, run in another order than they were made, and a layer that is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 2)
        self.unused = nn.Linear(6, 2)
        self.first = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.LeakyReLU())

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) * scale


def test_sites_come_in_the_order_of_evaluation() -> None:
    network = Network.trace(Branched(), (torch.ones(1, 4), torch.ones(1, 1)))
    assert list(network.sites) == ["first.0", "first.2", "second"], "what is not run is no site"
    assert [site.phi for site in network.sites.values()] == ["relu", "identity", "identity"]
    assert network.readers == {"first.0": [Reader("first.2", slice(None))]}
    assert torch.equal(network.read_by("first.0")[0], network.dense("first.2").weight)
    assert network.read_by("first.2") == [], "a leaky ReLU stands between, of which nothing is known"


def test_what_a_site_sees() -> None:
    module = Branched()
    network = Network.trace(module, (torch.ones(1, 4), torch.ones(1, 1)))
    x, scale = torch.randn(3, 7, 4), torch.ones(1)
    expected = module.first(x).reshape(21, 6)
    torch.testing.assert_close(network.seen("second", (x, scale)), expected)
    assert torch.equal(network.seen("first.0", (x, scale)), x.reshape(21, 4))
    assert not any(part._forward_pre_hooks for part in module.modules()), "no hook is left behind"


def test_a_pass_ends_where_the_site_is_reached() -> None:
    module = Branched()
    network = Network.trace(module, (torch.ones(1, 4), torch.ones(1, 1)))
    wrong = torch.ones(2, 9)  # would fail where the outputs are scaled
    assert len(network.seen("second", (torch.ones(3, 4), wrong))) == 3
    with pytest.raises(RuntimeError):
        network((torch.ones(3, 4), wrong))


def test_a_copy_is_changed_alone() -> None:
    network = Network.trace(Branched(), (torch.ones(1, 4), torch.ones(1, 1)))
    student = network.copy()
    student.place_drawn("first.0", EUGenConfig(3))
    assert isinstance(student.module.get_submodule("first.1"), nn.Identity)
    assert isinstance(network.module.get_submodule("first.1"), nn.ReLU) and network.dense("first.0")
    with pytest.raises(ValueError, match=r"first\.0 is a EUGenLinear, expected a dense layer"):
        student.dense("first.0")


def test_a_shared_layer_is_one_site() -> None:
    shared = nn.Linear(4, 4)
    module = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared, nn.ReLU()), nn.Linear(4, 1))
    network = Network.trace(module, (torch.ones(1, 4),))
    assert [site.places for site in network.sites.values()] == [("0", "2.0"), ("3",)]
    network.place_drawn("0", EUGenConfig(3))
    assert module[0] is module.get_submodule("2.0") and isinstance(module.get_submodule("2.1"), nn.Identity)


def test_readers_of_a_stack_stand_behind_its_input() -> None:
    chains = [nn.Sequential(nn.Linear(i, 5), nn.ReLU()) for i in (3, 5, 8)]
    network = Network.trace(LayerStack(chains, skips={2}), (torch.ones(1, 3),))
    assert network.readers == {"0": [Reader("1", slice(None))], "1": [Reader("2", slice(3, None))]}
    assert torch.equal(network.read_by("1")[0], network.dense("2").weight[:, 3:])


def test_the_readers_of_a_field(teacher: Network) -> None:
    weight = teacher.dense("trunk.2").weight
    assert weight.shape[1] > 32 and torch.equal(teacher.read_by("trunk.1")[0], weight[:, -32:])
    density, feature = teacher.read_by("trunk.3")
    assert torch.equal(density, teacher.dense("density_head").weight) and feature.shape == (32, 32)
    assert teacher.read_by("rgb_head") == []
