"""The table of layer kinds, and the configuration that chooses among them."""

import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import yaml
from torch import nn

from eugen3d import EUGenConfig, EUGenLinear, LayerConfig, LinearConfig, LowRankConfig, LowRankLinear, SNNKConfig
from eugen3d.layers import KindConfig, kind_of, layer_from_linear, make_layer
from eugen3d.layers.linear import linear_from_config
from eugen3d.layers.registry import REGISTRY


def test_a_layer_config_finds_the_settings_of_its_kind() -> None:
    config = LayerConfig("low-rank", low_rank=LowRankConfig(7))
    assert config.chosen == LowRankConfig(7)
    assert LayerConfig().chosen == EUGenConfig()
    assert LayerConfig("linear").chosen == LinearConfig()
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_configuration_that_was_saved_before_a_kind_was_still_loads() -> None:
    """As run folders have it: objects by the names of their class and fields, built without their constructor."""
    saved = """
        !!python/object:eugen3d.layers.config.LayerConfig
        kind: eugen
        eugen: !!python/object:eugen3d.layers.config.EUGenConfig
          {bias: true, num_features: 9, order: 1, phi: relu, projection: orthogonal, shared: true,
           train_projections: true, use_norm: true}
    """
    config = yaml.load(saved, Loader=yaml.Loader)
    assert config == LayerConfig("eugen", EUGenConfig(9)) != LayerConfig()
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


@pytest.mark.parametrize(
    ("config", "modules"),
    [
        (LinearConfig(), [nn.Linear, nn.Softplus]),
        (LowRankConfig(2), [LowRankLinear, nn.Softplus]),
        (EUGenConfig(2, phi="identity"), [EUGenLinear, nn.Softplus]),
        (EUGenConfig(2), [EUGenLinear]),
    ],
)
def test_an_activation_follows_unless_it_is_inside(config: KindConfig, modules: list[type]) -> None:
    assert [type(module) for module in make_layer(config, 3, 4, "softplus")] == modules
    converted = layer_from_linear(nn.Linear(3, 4), "softplus", config)
    assert [type(m) for m in (converted if isinstance(converted, nn.Sequential) else [converted])] == modules


def test_inputs_and_generator_reach_the_layer() -> None:
    linear, x = nn.Linear(6, 5), torch.randn(100, 6) * torch.tensor([10.0, 1, 1, 0.1, 0.1, 0.1])
    fitted, plain = (layer_from_linear(linear, "identity", LowRankConfig(1), inputs) for inputs in (x, None))
    assert (fitted(x) - linear(x)).norm() < (plain(x) - linear(x)).norm()
    seeds = (1, 1, 2)
    draws = [
        layer_from_linear(linear, "relu", SNNKConfig(4), x, torch.Generator().manual_seed(seed))(x) for seed in seeds
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("seed", [None, 1])
def test_a_dense_layer_starts_with_the_variance_of_he(seed: int | None) -> None:
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
    first, second = (linear_from_config(LinearConfig(), 100, 400, generator=generator) for generator in generators)
    assert first.weight.var().item() == pytest.approx(2 / 100, rel=0.05)
    assert first.weight.abs().max() <= math.sqrt(6 / 100) and not first.bias.any()
    assert torch.equal(first.weight, second.weight) == (seed is not None)


def test_a_dense_layer_is_copied() -> None:
    linear = nn.Linear(3, 2).double().eval()
    copied = layer_from_linear(linear, "identity", LinearConfig())
    assert isinstance(copied, nn.Linear) and copied is not linear and not copied.training
    assert torch.equal(copied.weight, linear.weight) and copied.weight is not linear.weight
    with pytest.raises(ValueError, match=r"config\.bias is False, expected True"):
        layer_from_linear(linear, "identity", LinearConfig(bias=False))


def test_parts_of_layers_are_layers_themselves() -> None:
    layer = EUGenLinear(3, 2)
    assert [kind_of(m) for m in (layer, layer.features, layer.readout, nn.Sequential(layer))] == [
        "eugen",
        "eugen",
        "linear",
        None,
    ]
    assert list(REGISTRY) == ["linear", "eugen", "low-rank", "snnk", "sine"]


@dataclass(frozen=True)
class UnregisteredConfig(KindConfig):
    """A kind that the table does not have."""


def test_an_unregistered_configuration_is_named() -> None:
    with pytest.raises(TypeError, match="UnregisteredConfig is no layer kind's configuration, expected one of Linear"):
        make_layer(UnregisteredConfig(), 3, 4)
