"""Which activations go into the dense layer before them, and which stay where they are."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d import EUGenConfig, EUGenLinear, LowRankConfig, SNNKConfig, convert, fold, layer_status
from eugen3d.layers import EUGenFeatures, KindConfig, Pattern, Patterns, kind_of

SMALL = EUGenConfig(num_features=4)


def kinds(chain: nn.Module) -> list[str]:
    return [type(module).__name__ for module in chain._modules.values()]


@torch.no_grad()
def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.Softplus(), nn.Softplus(beta=100), nn.ReLU(inplace=True)]
)
def test_the_layer_computes_the_activation_that_it_took_in(activation: nn.Module) -> None:
    dense = nn.Sequential(nn.Linear(3, 8), activation).eval()
    x = torch.randn(2000, 3)
    model = convert(copy.deepcopy(dense), EUGenConfig(num_features=128), inputs=x)
    assert kinds(model) == ["EUGenLinear", "Identity"] and not any(m.training for m in model.modules())
    assert relative_error(model(x), dense(x)) < 0.15, "the projections start without offsets: every kink is at zero"
    assert relative_error(model(x), dense[0](x)) > 0.4, "without the activation it is another function"


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(approximate="tanh"),
        nn.Softplus(beta=10),
        nn.Softplus(threshold=1),
        nn.ReLU6(),
        nn.Tanh(),
        nn.LayerNorm(8),
    ],
)
def test_what_is_no_function_of_phi_stays_outside(activation: nn.Module) -> None:
    assert kinds(convert(nn.Sequential(nn.Linear(3, 8), activation), SMALL)) == [
        "EUGenLinear",
        type(activation).__name__,
    ]


def test_with_phi_identity_the_activation_stays_outside() -> None:
    model = convert(nn.Sequential(nn.Linear(3, 8), nn.ReLU()), EUGenConfig(num_features=4, phi="identity"))
    assert kinds(model) == ["EUGenLinear", "ReLU"]


def test_only_what_follows_directly_is_taken_in() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 8), nn.Identity(), nn.ReLU())
    expected = ["EUGenLinear", "Dropout", "ReLU", "EUGenLinear", "Identity", "Identity"]
    assert kinds(convert(model, SMALL)) == expected


def test_chains_within_chains_are_read_through() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 8)), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    convert(model, SMALL)
    assert [kinds(part) for part in model] == [["EUGenLinear"], ["Identity", "EUGenLinear"]]


def test_one_activation_at_several_places_is_kept_at_the_others() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 2))
    expected = model[2:](torch.ones(1, 8))
    convert(model, SMALL, lambda _, fqn: fqn == "0")
    assert kinds(model) == ["EUGenLinear", "Identity", "Linear", "ReLU", "Linear"] and model[3] is shared
    assert torch.equal(model[2:](torch.ones(1, 8)), expected)


def test_a_layer_whose_places_differ_keeps_its_activation_outside() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 2))
    convert(model, SMALL)
    assert kinds(model) == ["EUGenLinear", "ReLU", "EUGenLinear", "EUGenLinear"] and model[0] is model[2]
    alike = nn.Sequential(layer := nn.Linear(8, 8), nn.ReLU(), layer, nn.ReLU())
    assert kinds(convert(alike, SMALL)) == ["EUGenLinear", "Identity", "EUGenLinear", "Identity"]
    assert alike[0] is alike[2]
    torn = nn.Sequential(layer := nn.Linear(8, 8), nn.ReLU(), layer, nn.GELU())
    assert kinds(convert(torn, SMALL)) == ["EUGenLinear", "ReLU", "EUGenLinear", "GELU"]


def test_an_activation_that_other_layers_run_too_stays() -> None:
    tail = nn.Sequential(nn.ReLU(), nn.Linear(8, 2))
    model = nn.ModuleList([nn.Sequential(nn.Linear(3, 8), tail), nn.Sequential(nn.Linear(4, 8), tail)])
    convert(model, SMALL, lambda _, fqn: fqn == "0.0")
    assert kinds(tail) == ["ReLU", "Linear"] and isinstance(model[0][0], EUGenLinear)  # pyright: ignore


def test_an_activation_with_hooks_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    handle = model[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="1: has hooks, which would be lost"):
        convert(model, SMALL)
    assert kinds(model) == ["Linear", "ReLU"]
    convert(copy.deepcopy(model), EUGenConfig(num_features=4, phi="identity"))
    handle.remove()
    convert(model, SMALL)


class Block(nn.Module):
    """A residual block of a class that no table has."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(6, 24), activation or nn.ReLU(), nn.Linear(24, 6)
        self.register_module("drop", None)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Reversed(Block):
    """The same attributes, in another order."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.down(self.up(x)))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


PATTERN: Patterns = {Block: Pattern("up", "act", "down", after=("drop",))}


@pytest.mark.parametrize("key", [Block, f"{Block.__module__.partition('.')[0]}.Block"])
def test_a_class_of_the_users_own_is_added_by_a_pattern(key: Any) -> None:
    assert type(convert(Block(), SMALL).act) is nn.ReLU, "unknown classes are left as they are"
    model = convert(Block(), SMALL, patterns={key: PATTERN[Block]})
    assert type(model.act) is nn.Identity and isinstance(model.up, EUGenLinear)


def test_a_subclass_counts_while_it_keeps_the_forward() -> None:
    assert type(convert(type("Named", (Block,), {})(), SMALL, patterns=PATTERN).act) is nn.Identity
    assert type(convert(Reversed(), SMALL, patterns=PATTERN).act) is nn.ReLU


@pytest.mark.usefixtures("unchecked")
def test_an_activation_of_the_users_own_is_added_by_its_phi() -> None:
    assert type(convert(Block(Swish()), SMALL, patterns=PATTERN).act) is Swish
    model = convert(Block(Swish()), SMALL, patterns={**PATTERN, Swish: "relu"})
    assert type(model.act) is nn.Identity
    with pytest.raises(ValueError, match="as 'swish', expected one of identity, relu"):
        convert(Block(Swish()), SMALL, patterns={**PATTERN, Swish: "swish"})  # pyright: ignore[reportArgumentType]


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return module


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def assert_folds(model: nn.Module, x: Tensor, patterns: Patterns | None = None) -> Any:
    """The folded model computes the same to rounding with fewer parameters; folded again it stays as it is."""
    folded = fold(copy.deepcopy(model), patterns)
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
    assert relative_error(folded(x), model(x)) < tolerance
    assert num_parameters(folded) < num_parameters(model)
    assert num_parameters(fold(copy.deepcopy(folded), patterns)) == num_parameters(folded)
    return folded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_norm", [True, False])
@pytest.mark.parametrize("replaced", [("up",), ("up", "down")])
def test_a_block_folds_across_its_former_activation(
    replaced: tuple[str, ...], use_norm: bool, dtype: torch.dtype
) -> None:
    config = EUGenConfig(num_features=4, use_norm=use_norm)
    model = randomised(convert(Block(), config, lambda _, fqn: fqn in replaced, patterns=PATTERN)).to(dtype)
    folded = assert_folds(model, torch.randn(50, 6, dtype=dtype), PATTERN)
    assert isinstance(folded.up, EUGenFeatures)
    assert kinds(folded.down) == ([] if replaced == ("up",) else ["EUGenFeatures", "Linear"])
    assert num_parameters(fold(copy.deepcopy(model))) == num_parameters(model), "a class that no pattern names"


@pytest.mark.parametrize("config", [SNNKConfig(4), SNNKConfig(4, "fourier")])
@pytest.mark.parametrize("following", [SNNKConfig(4), LowRankConfig(4), SMALL])
def test_a_block_of_other_kinds_folds(config: KindConfig, following: KindConfig) -> None:
    model = convert(Block(), config, lambda _, fqn: fqn == "up", patterns=PATTERN)
    randomised(convert(model, following, lambda _, fqn: fqn == "down", patterns=PATTERN)).double()
    assert kind_of(model.get_submodule("up")) == "snnk" and type(model.act) is nn.Identity
    assert isinstance(assert_folds(model, torch.randn(50, 6, dtype=torch.float64), PATTERN).up, EUGenFeatures)


def test_a_low_rank_layer_leaves_the_activation_of_its_block() -> None:
    model = randomised(convert(Block(), LowRankConfig(2), patterns=PATTERN))
    assert type(model.act) is nn.ReLU and [row["kind"] for row in layer_status(model)] == ["low-rank"] * 2
    assert num_parameters(fold(copy.deepcopy(model), PATTERN)) == num_parameters(model)


def test_a_block_with_its_activation_outside_does_not_fold() -> None:
    model = randomised(convert(Block(nn.Tanh()), SMALL, patterns=PATTERN))
    assert num_parameters(fold(copy.deepcopy(model), PATTERN)) == num_parameters(model)


@pytest.mark.parametrize(
    ("between", "folds"),
    [(None, True), (nn.Identity(), True), (nn.Dropout(0.0), True), (nn.Dropout(0.1), False), (nn.LayerNorm(24), False)],
)
def test_a_block_folds_if_nothing_stands_between_its_layers(between: nn.Module | None, folds: bool) -> None:
    model = convert(Block(), SMALL, patterns=PATTERN)
    model._modules["drop"] = between
    assert isinstance(fold(model, PATTERN).up, EUGenFeatures) is folds


def test_hooks_in_a_block_are_refused_before_anything_is_folded() -> None:
    model = convert(Block(), SMALL, patterns=PATTERN)
    assert isinstance(model.up, EUGenLinear)
    handle = model.up.readout.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"up\.readout: has hooks, which would be lost; remove them before folding"):
        fold(model, PATTERN)
    assert isinstance(model.up, EUGenLinear)
    handle.remove()
    assert isinstance(fold(model, PATTERN).up, EUGenFeatures)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(6, 24), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class Outer(nn.Module):
    """A block whose first half may be another's, too."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


def test_what_two_blocks_share_is_not_folded_into_one_of_them() -> None:
    patterns: Patterns = {Inner: Pattern("dense", "act"), Outer: Pattern("inner.dense", "inner.act", "out")}
    shared, x = Inner(), torch.randn(20, 6)
    model = nn.Sequential(Outer(shared), Outer(shared))
    convert(model, SMALL, lambda _, fqn: fqn.endswith("dense"), patterns=patterns)
    randomised(model)
    expected = model(x)
    assert type(shared.act) is nn.Identity
    assert torch.equal(fold(model, patterns)(x), expected) and isinstance(shared.dense, EUGenLinear)
    alone = randomised(convert(Outer(Inner()), SMALL, lambda _, fqn: fqn.endswith("dense"), patterns=patterns))
    assert_folds(alone, x, patterns)


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_timms_mlp(drop: float) -> None:
    layers = pytest.importorskip("timm.models.layers")
    model = layers.Mlp(6, 24, drop=drop).double().eval()
    convert(model, SMALL, lambda _, fqn: fqn == "fc1")
    randomised(model)
    assert type(model.act) is nn.Identity, "dropout comes after the activation"
    x = torch.randn(50, 6, dtype=torch.float64)
    if drop:
        assert isinstance(fold(copy.deepcopy(model)).fc1, EUGenLinear), "dropout comes before fc2"
    else:
        folded = assert_folds(model, x)
        assert isinstance(folded.fc1, EUGenFeatures) and folded.fc2.weight.shape == (6, 4)


def test_timms_gated_mlp_is_another_function() -> None:
    layers = pytest.importorskip("timm.models.layers")
    assert type(convert(layers.GluMlp(6, 24, act_layer=nn.ReLU), SMALL).act) is nn.ReLU


def bert() -> Any:
    transformers = pytest.importorskip("transformers")
    config = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(hidden_size=16, intermediate_size=64, **config)).eval()


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def test_berts_mlp_takes_in_its_activation_and_folds() -> None:
    model, tokens = bert().double(), torch.arange(8)[None]
    before = model(tokens)[0]
    convert(model, SMALL, lambda _, fqn: fqn.endswith("intermediate.dense"), inputs=torch.arange(48).reshape(3, 16))
    assert all(type(layer.intermediate.intermediate_act_fn) is nn.Identity for layer in model.encoder.layer)
    expected = model(tokens)[0]
    assert not torch.allclose(expected, before)
    folded: Any = fold(copy.deepcopy(model))
    assert relative_error(folded(tokens)[0], expected) < 1e-12
    assert folded.encoder.layer[0].output.dense.weight.shape == (16, 4)


def test_gpt2s_transposed_layers_are_replaced_and_fold() -> None:
    model, tokens = gpt2().double(), torch.arange(8)[None]

    def is_up(_: nn.Module, fqn: str) -> bool:
        return fqn.endswith("mlp.c_fc")

    with pytest.raises(ValueError, match=r"lm_head: shares its weight with transformer\.wte"):
        convert(model, SMALL)
    before = model(tokens)[0]
    outside: Any = convert(copy.deepcopy(model), SMALL, is_up)
    assert type(outside.transformer.h[0].mlp.act).__name__ == "NewGELUActivation", "the tanh form is no function of phi"
    convert(model, SMALL, is_up, patterns={"transformers.NewGELUActivation": "gelu"})
    expected = model(tokens)[0]
    assert not torch.allclose(expected, before)
    folded: Any = fold(copy.deepcopy(model))
    assert relative_error(folded(tokens)[0], expected) < 1e-12
    assert folded.transformer.h[0].mlp.c_proj.weight.shape == (16, 4)
    assert model.lm_head.weight is model.transformer.wte.weight
