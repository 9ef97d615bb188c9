"""Sites: where dense layers stand, by names that outlive the layers."""

import copy

import pytest
import torch
from torch import nn

from eugen3d.layers import EUGenConfig, EUGenLinear, LowRankConfig, LowRankLinear, Site, find_sites, place_drawn
from eugen3d.layers.sites import place_layer


def make_model() -> nn.Module:
    """A chain of its own, a longer chain, and a layer alone."""
    return nn.ModuleDict(
        {
            "hidden": nn.Sequential(nn.Linear(3, 4), nn.ReLU()),
            "head": nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)),
            "alone": nn.Linear(4, 1),
        }
    )


def test_sites_by_hand() -> None:
    assert list(find_sites(make_model()).values()) == [
        Site("hidden", ("hidden.0",), ("hidden.1",), "relu"),
        Site("head.0", ("head.0",), ("head.1",), "gelu"),
        Site("head.2", ("head.2",)),
        Site("alone", ("alone",)),
    ]


def test_a_chain_alone_is_named_by_its_layers() -> None:
    assert list(find_sites(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0"]
    assert find_sites(nn.Linear(2, 2)) == {}, "the model itself has no place"


def test_parts_of_other_layers_are_no_sites() -> None:
    model = nn.Sequential(EUGenLinear(3, 4), nn.Linear(4, 2), LowRankLinear(2, 2))
    assert list(find_sites(model)) == ["1"]


def test_a_layer_takes_the_places_of_the_dense_one_and_its_activation() -> None:
    model = make_model().eval()
    site, layer = find_sites(model)["hidden"], EUGenLinear(3, 4)
    place_layer(model, site, layer, includes_activation=True)
    assert site.layer(model) is layer and not layer.training
    assert isinstance(model.get_submodule("hidden.1"), nn.Identity)
    x = torch.randn(5, 3)
    assert torch.equal(site.block(model)(x), layer(x))


def test_beside_a_layer_without_one_the_activation_stays() -> None:
    model = make_model()
    site, layer = find_sites(model)["head.0"], LowRankLinear(4, 4)
    place_layer(model, site, layer, includes_activation=False)
    assert isinstance(model.get_submodule("head.1"), nn.GELU)
    x = torch.randn(5, 4)
    torch.testing.assert_close(site.block(model)(x), nn.functional.gelu(layer(x)))


def test_drawn_layers_make_the_structure_that_a_state_loads_into() -> None:
    layers = {"hidden": EUGenConfig(5), "head.2": LowRankConfig(2)}
    model, other = make_model(), make_model()
    place_drawn(model, layers)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(model.state_dict())
    place_drawn(other, layers)
    other.load_state_dict(model.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(find_sites(make_model())["hidden"].block(other)(x), model.get_submodule("hidden")(x))


def test_what_cannot_be_replaced_is_refused_by_name() -> None:
    expected = r"'head.1' is no dense layer, expected one of hidden, head\.0, head\.2, alone"
    with pytest.raises(ValueError, match=expected):
        place_drawn(make_model(), {"head.1": EUGenConfig(5)})
    hooked = make_model()
    hooked.get_submodule("alone").register_forward_hook(lambda *_: None)
    before = copy.deepcopy(hooked.state_dict())
    with pytest.raises(ValueError, match=r"alone: has hooks"):
        place_drawn(hooked, {"alone": EUGenConfig(5)})
    assert before.keys() == hooked.state_dict().keys()
