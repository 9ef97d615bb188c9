"""Folding keeps the function and lowers the cost."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear, LayerConfig, LowRankConfig, SNNKConfig, convert, fold
from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import (
    EUGenFeatures,
    LowRankLinear,
    SineLinear,
    SNNKLinear,
    compose,
    fold_sequential,
    push_readout,
)
from eugen3d.layers.features import Phi

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def randomised(module: nn.Module) -> nn.Module:
    """The module with every parameter drawn anew: norm columns and biases start at zero, where folding is easy."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return module


def num_products(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


@torch.no_grad()
def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def eugen(
    in_features: int, out_features: int, order: int, use_norm: bool, phi: Phi = "relu", bias: bool = True
) -> nn.Module:
    return EUGenLinear(in_features, out_features, 4, order, phi, use_norm, bias=bias)


CHAINS: dict[str, Callable[[int, bool], nn.Sequential]] = {
    "eugen-eugen-linear": lambda k, norm: nn.Sequential(
        eugen(6, 24, k, norm), eugen(24, 24, k, norm), nn.Linear(24, 5)
    ),
    "eugen-relu-eugen-eugen": lambda k, norm: nn.Sequential(
        eugen(6, 24, k, norm), nn.ReLU(), eugen(24, 24, k, norm), eugen(24, 5, k, norm)
    ),
    "no biases": lambda k, norm: nn.Sequential(
        eugen(6, 24, k, norm, bias=False), eugen(24, 24, k, norm, bias=False), nn.Linear(24, 5, bias=False)
    ),
    "identity phi": lambda k, norm: nn.Sequential(
        eugen(6, 24, k, norm, "identity"), eugen(24, 24, k, norm, "identity"), nn.Linear(24, 5)
    ),
    "nested": lambda k, norm: nn.Sequential(
        nn.Sequential(eugen(6, 24, k, norm)), nn.Sequential(nn.Identity(), eugen(24, 24, k, norm), nn.Linear(24, 5))
    ),
    "linear-linear": lambda k, norm: nn.Sequential(nn.Linear(6, 24), nn.Linear(24, 5), eugen(5, 24, k, norm)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_folded_chain_computes_the_same_with_fewer_products(
    chain: str, order: int, use_norm: bool, dtype: torch.dtype
) -> None:
    model = randomised(CHAINS[chain](order, use_norm)).to(dtype)
    folded = fold(copy.deepcopy(model))
    x = torch.randn(50, 6, dtype=dtype)
    assert relative_error(folded(x), model(x)) < TOLERANCE[dtype]
    assert num_products(folded) < num_products(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("phi", ["identity", "relu"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_fold_after_convert_computes_the_same(order: int, phi, use_norm: bool, dtype: torch.dtype) -> None:
    dense = nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).to(dtype)
    config = EUGenConfig(num_features=4, order=order, phi=phi, use_norm=use_norm)
    converted = randomised(convert(copy.deepcopy(dense), config))
    folded = fold(copy.deepcopy(converted))
    x = torch.randn(50, 6, dtype=dtype)
    assert relative_error(folded(x), converted(x)) < TOLERANCE[dtype]
    assert num_products(folded) < num_products(converted)


@pytest.mark.parametrize("chain", CHAINS)
def test_folding_twice_equals_folding_once(chain: str) -> None:
    once = fold(randomised(CHAINS[chain](2, True)))
    twice = fold(copy.deepcopy(once))
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name])


def test_a_chain_folds_to_the_width_of_its_features() -> None:
    folded = fold(CHAINS["eugen-eugen-linear"](2, False))
    assert isinstance(folded, nn.Sequential)
    assert [type(atom).__name__ for atom in folded] == ["EUGenFeatures", "EUGenFeatures", "Linear"]
    assert [value.shape for name, value in folded.named_parameters() if "weight" in name] == [(8, 6), (8, 8), (5, 8)]


def test_the_norm_of_a_value_that_is_never_formed() -> None:
    """‖W φ + b‖ from its triangular factor, whose rows are no more than the features and a constant."""
    producer, consumer = nn.Linear(4, 24), EUGenFeatures(24, 3, use_norm=True, phi="identity")
    randomised(nn.ModuleList([producer, consumer]))
    composed = compose(consumer, producer)
    assert isinstance(composed, EUGenFeatures) and composed.norm_factor is not None
    assert composed.norm_factor.weight.shape == (5, 4)
    phi = torch.randn(10, 4)
    torch.testing.assert_close(composed.norm_factor(phi).norm(dim=1), producer(phi).norm(dim=1))
    torch.testing.assert_close(composed(phi), consumer(producer(phi)))


def test_composing_within_columns_leaves_the_others() -> None:
    inner, outer = randomised(nn.Linear(3, 24).double()), randomised(nn.Linear(24 + 2, 4).double())
    assert isinstance(inner, nn.Linear)
    composed = compose(outer, inner, slice(2, None))
    kept, x = torch.randn(10, 2).double(), torch.randn(10, 3).double()
    expected = outer(torch.cat([kept, inner(x)], dim=1))
    torch.testing.assert_close(composed(torch.cat([kept, x], dim=1)), expected)


@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("phi", ["identity", "relu"])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_chain_with_factored_projections_computes_the_same(rank: int, order: int, phi: Phi, use_norm: bool) -> None:
    config = EUGenConfig(4, order, phi, use_norm, projection_rank=rank)
    model = nn.Sequential(*(EUGenLinear.from_config(config, *widths) for widths in ((6, 24), (24, 24), (24, 5))))
    randomised(model).double()
    folded = fold(copy.deepcopy(model))
    x = torch.randn(50, 6, dtype=torch.float64)
    assert relative_error(folded(x), model(x)) < TOLERANCE[torch.float64]
    assert num_products(folded) < num_products(model)
    again = fold(copy.deepcopy(folded))
    assert all(torch.equal(p, q) for p, q in zip(folded.parameters(), again.parameters(), strict=True))


def matrices(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(layer.weight.shape) for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("use_norm", [True, False])
def test_a_factored_merge_is_as_thin_as_its_rank_where_that_is_cheaper(use_norm: bool) -> None:
    """Readout (24 × 8) and down (r × 24) are one matrix r × 8; at r = 6 the whole 8 × 8 costs less than two factors."""
    for rank, expected in ((2, [(2, 8), (8, 2)]), (6, [(8, 8)])):
        config = EUGenConfig(8, use_norm=use_norm, projection_rank=rank)
        model = nn.Sequential(eugen(6, 24, 2, False), EUGenLinear.from_config(config, 24, 5))
        inner = matrices(fold(randomised(model)))[1:-1]
        norm_factor = [(9, 8)] if use_norm else []
        assert sorted(inner) == sorted(expected + norm_factor)


def test_a_merge_of_factors_within_columns_leaves_the_others() -> None:
    inner, outer = nn.Linear(3, 24), EUGenFeatures(24 + 2, 8, phi="relu", use_norm=True, projection_rank=2)
    randomised(nn.ModuleList([inner, outer])).double()
    composed = compose(outer, inner, slice(2, None))
    kept, x = torch.randn(10, 2).double(), torch.randn(10, 3).double()
    torch.testing.assert_close(composed(torch.cat([kept, x], dim=1)), outer(torch.cat([kept, inner(x)], dim=1)))


@pytest.mark.parametrize("kind", ["low-rank", "snnk", "sine"])
def test_a_field_of_any_kind_folds(kind) -> None:
    config = LayerConfig(kind, low_rank=LowRankConfig(4), snnk=SNNKConfig(4))
    field = randomised(NerfField(NerfFieldConfig(4, 24, 12, 2, 2, 1, config, (1, 2)))).double()
    folded = fold(copy.deepcopy(field))
    positions = torch.randn(40, 3, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, dtype=torch.float64), dim=1)
    for ours, theirs in zip(folded(positions, directions), field(positions, directions), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[torch.float64]
    assert num_products(folded) < num_products(field)


def test_what_would_cost_more_stays_as_it_is() -> None:
    chain = nn.Sequential(nn.Linear(32, 2), nn.Linear(2, 32))
    folded = fold(copy.deepcopy(chain))
    assert folded.state_dict().keys() == chain.state_dict().keys()
    assert num_products(folded) == num_products(chain)


def test_an_activation_is_not_folded_across() -> None:
    producer, consumer = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 2))
    assert not push_readout(producer, [(consumer, slice(None))])
    assert len(producer) == 2 and len(consumer) == 1
    assert not push_readout(consumer, [(producer[1:], slice(None))])


def test_a_producer_with_two_consumers_folds_into_both() -> None:
    producer = randomised(nn.Sequential(eugen(6, 24, 1, False)))
    consumers = [randomised(nn.Sequential(nn.Linear(24, width))) for width in (1, 3)]
    x = torch.randn(10, 6)
    expected = [consumer(producer(x)) for consumer in consumers]
    fold_sequential(producer)  # pyright: ignore[reportArgumentType]
    assert push_readout(producer, [(consumer, slice(None)) for consumer in consumers])  # pyright: ignore
    assert producer(x).shape == (10, 4)
    for consumer, y in zip(consumers, expected, strict=True):
        torch.testing.assert_close(consumer(producer(x)), y)


def test_a_root_layer_comes_back_replaced() -> None:
    layer = EUGenLinear(6, 24, 4, phi="identity", use_norm=False).eval()
    x = torch.randn(10, 6)
    expected = layer(x)
    folded = fold(layer)
    assert isinstance(folded, nn.Sequential) and not folded.training
    torch.testing.assert_close(folded(x), expected)


class Shifted(EUGenLinear):
    """A layer whose data flow is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 + super().forward(x)


class Molecule(nn.Module):
    """A module that has atoms of another sort."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x) ** 2


def test_only_layers_that_their_maps_make_up_are_taken_apart() -> None:
    model = randomised(nn.Sequential(Shifted(6, 24, 4), Molecule(), Shifted(24, 24, 4), nn.Linear(24, 2)))
    structure, x = str(model), torch.randn(10, 6)
    expected = model(x)
    assert torch.equal(fold(model)(x), expected) and str(model) == structure
    assert fold(molecule := Molecule()) is molecule


def test_the_training_flag_is_kept() -> None:
    folded = fold(CHAINS["nested"](1, True).eval())
    assert not any(module.training for module in folded.modules())


def test_a_folded_model_pickles() -> None:
    folded = fold(randomised(CHAINS["nested"](2, True)))
    x = torch.randn(10, 6)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(x), folded(x))


def test_a_layer_at_two_places_folds_at_both() -> None:
    shared = randomised(eugen(8, 8, 1, True))
    model = nn.Sequential(shared, nn.ReLU(), shared, shared)
    x = torch.randn(10, 8)
    expected = model(x)
    torch.testing.assert_close(fold(model)(x), expected)


class Residual(nn.Sequential):
    """A chain whose data flow is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_chain_with_a_forward_of_its_own_is_left_alone() -> None:
    residual = Residual(eugen(8, 8, 1, False))
    model = randomised(nn.Sequential(residual, nn.Linear(8, 8)))
    x = torch.randn(10, 8)
    expected = model(x)
    torch.testing.assert_close(fold(model)(x), expected)
    assert fold_sequential(residual) is residual and isinstance(residual[0], EUGenLinear)


HOOKS = ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("name", ["0", "0.0", "0.0.readout", "1", "1.0", "1.1.features.projection", "1.2"])
def test_hooks_in_a_chain_are_refused_by_name(name: str, register: str) -> None:
    model = CHAINS["nested"](1, True)
    structure = str(model)
    handle = getattr(model.get_submodule(name), register)(lambda *_: None)
    with pytest.raises(ValueError, match=f"^{name.replace('.', '[.]')}: has hooks, which would be lost; remove them"):
        fold(model)
    with pytest.raises(ValueError, match="has hooks"):
        fold_sequential(model)
    assert str(model) == structure, "refused before anything is folded"
    handle.remove()
    assert str(fold(model)) != structure


@pytest.mark.parametrize(
    ("layer", "part"),
    [(LowRankLinear(24, 8, 4), "down"), (SNNKLinear(24, 8, 4), "features.projection"), (SineLinear(24, 8), "linear")],
)
def test_hooks_in_a_layer_of_any_kind_are_refused_by_name(layer: nn.Module, part: str) -> None:
    model = nn.Sequential(nn.Linear(2, 24), layer)
    structure = str(model)
    handle = layer.get_submodule(part).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"^1[.]{part}: has hooks, which would be lost"):
        fold(model)
    assert str(model) == structure
    handle.remove()
    assert str(fold(model)) != structure


def test_hooks_are_named_from_the_root() -> None:
    model = nn.ModuleDict({"first": CHAINS["no biases"](1, True), "second": CHAINS["nested"](1, True)})
    model.get_submodule("second.1.0").register_forward_hook(lambda *_: None)
    structure = str(model)
    with pytest.raises(ValueError, match=r"^second\.1\.0: has hooks"):
        fold(model)
    assert str(model) == structure, "the first chain, too, is as it was"


def test_hooks_that_folding_keeps_are_no_matter() -> None:
    """Those of the chain itself, of an activation in it, and inside a module that it does not look into."""
    model = nn.Sequential(*CHAINS["eugen-relu-eugen-eugen"](1, True), Residual(nn.Linear(5, 5)))
    called: list[str] = []
    for name in ("", "1", "4", "4.0"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    fold(model)(torch.randn(3, 6))
    assert called == ["1", "4.0", "4", ""]


@pytest.mark.parametrize("name", ["0", "1", "2", "2.0", "2.0.features.projection", "2.1", "3"])
def test_hooks_are_no_matter_where_nothing_is_merged(name: str) -> None:
    inner = nn.Sequential(eugen(4, 24, 1, True), nn.Identity())
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), inner, nn.Tanh())
    calls, x = [], torch.randn(3, 6)
    model.get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
    structure = str(model)
    fold(model)(x)
    assert calls == [name] and str(model) == structure
    other = nn.ModuleList([CHAINS["no biases"](1, True), model])
    merged = num_products(other)
    fold(other)
    assert num_products(other) < merged, "what stands beside it folds"


def test_features_with_a_forward_of_their_own_are_left_alone() -> None:
    class DoubledFeatures(EUGenFeatures):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model, x = randomised(nn.Sequential(nn.Linear(6, 24), DoubledFeatures(24, 4), nn.Linear(4, 2))), torch.randn(9, 6)
    expected = model(x)
    assert torch.equal(fold(model)(x), expected)


def test_a_push_refuses_hooks() -> None:
    producer, consumer = nn.Sequential(eugen(6, 24, 1, False)), nn.Sequential(nn.Linear(24, 2))
    consumer[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0: has hooks"):
        push_readout(producer, [(consumer, slice(None))])
    assert isinstance(producer[0], EUGenLinear)


def test_names_are_kept_where_nothing_is_merged() -> None:
    layers = {"in": nn.Linear(4, 4), "act": nn.Tanh(), "nested": nn.Sequential(nn.Identity(), eugen(4, 24, 1, True))}
    model = nn.Sequential(OrderedDict(layers))
    names = list(model.state_dict())
    assert list(fold(model).state_dict()) == names
    model.add_module("out", nn.Linear(24, 2))
    assert list(fold(model).state_dict()) != [*names, "out.weight", "out.bias"]


class Doubled(nn.Linear):
    """A dense layer whose data flow is its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_dense_layer_with_a_forward_of_its_own_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Doubled(8, 8), nn.Linear(8, 2))
    x = torch.randn(10, 8)
    expected = model(x)
    torch.testing.assert_close(fold(model)(x), expected)


def test_composing_what_is_not_affine_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot compose ReLU, expected Linear or EUGenFeatures"):
        compose(nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="columns 0:3 are 3, expected 2"):
        compose(nn.Linear(3, 1), nn.Linear(2, 2))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("replaced", [(), (0,), (1,), (2,), (1, 2), (0, 1, 2, 3), (3,)])
def test_a_folded_field_computes_the_same(
    replaced: tuple[int, ...], order: int, use_norm: bool, rank: int | None
) -> None:
    """Across the concatenation of the skip (layer 2), into both heads, and the feature layer into the view layer."""
    eugen_config = EUGenConfig(num_features=4, order=order, use_norm=use_norm, projection_rank=rank)
    config = NerfFieldConfig(4, 24, 12, 2, 2, 1, LayerConfig("eugen", eugen_config), replaced)
    field = randomised(NerfField(config)).double()
    folded = fold(copy.deepcopy(field))
    positions = torch.randn(40, 3, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(40, 3, dtype=torch.float64), dim=1)
    for ours, theirs in zip(folded(positions, directions), field(positions, directions), strict=True):
        assert relative_error(ours, theirs) < TOLERANCE[torch.float64]
    assert num_products(folded) < num_products(field), "the feature layer folds, with or without EUGen layers"
    again = fold(copy.deepcopy(folded))
    assert all(torch.equal(p, q) for p, q in zip(folded.parameters(), again.parameters(), strict=True))
