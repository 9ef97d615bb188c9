"""Swapping the dense layers of a model, and the report on what it is made of."""

import copy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from eugen3d import (
    EUGenConfig,
    EUGenLinear,
    LayerConfig,
    LinearConfig,
    LowRankConfig,
    SineConfig,
    SineLinear,
    SNNKConfig,
    convert,
    fold,
    layer_status,
)
from eugen3d.layers import EUGenFeatures, KindConfig, Patterns, Sine, make_activation, make_layer, num_products
from eugen3d.layers.calibration import collect_inputs
from eugen3d.layers.features import ACTIVATIONS, Phi
from eugen3d.layers.patterns import phi_of

SMALL = EUGenConfig(num_features=4)


class Tied(nn.Module):
    """One dense layer under two names, another one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 6)
        self.decode = self.encode
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(x).relu()))


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16)), nn.Linear(16, 2))


def test_every_dense_layer_is_replaced_in_place() -> None:
    model = chain()
    x = torch.randn(5, 6)
    before = model(x)
    assert convert(model, SMALL) is model
    assert [type(m) for m in (model[0], model[2][0], model[3])] == [EUGenLinear] * 3  # pyright: ignore[reportIndexIssue]
    assert type(model[1]) is nn.Identity, "the activation went into the layer before"  # pyright: ignore
    assert model(x).shape == before.shape
    assert not torch.allclose(model(x), before), "a conversion is approximate"


def test_the_filter_sees_module_and_name() -> None:
    model, seen = chain(), []

    def widest(module: nn.Module, fqn: str) -> bool:
        seen.append(fqn)
        assert isinstance(module, nn.Linear)
        return module.in_features == module.out_features

    convert(model, SMALL, widest)
    assert seen == ["0", "2.0", "3"]
    assert [row["kind"] for row in layer_status(model)] == ["linear", "eugen", "linear"]


def test_a_layer_config_chooses_the_kind() -> None:
    model = convert(chain(), LayerConfig("eugen", SMALL))
    assert model[0].config == SMALL  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
    with pytest.raises(ValueError, match="the layer kind is 'linear', expected another"):
        convert(chain(), LayerConfig("linear"))


class OwnSine(nn.Module):
    """The activation of somebody else's SIREN."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


SINE: Patterns = {OwnSine: "sine"}


def before_a_head(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 24), nn.Linear(24, 24), activation, nn.Linear(24, 24), activation, nn.Linear(24, 3)
    )


def hidden(_: nn.Module, fqn: str) -> bool:
    return fqn in ("1", "3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("eugen", EUGenConfig(4, order=2)),
        ("eugen", EUGenConfig(4, projection_rank=2)),
        ("eugen", EUGenConfig(4, phi="identity")),
        ("low-rank", LowRankConfig(4)),
        ("snnk", SNNKConfig(4)),
        ("snnk", SNNKConfig(4, "fourier")),
        ("sine", SineConfig(omega_0=1.5)),
    ],
)
def test_every_kind_converts_is_reported_and_folds(kind: str, config: KindConfig, dtype: torch.dtype) -> None:
    dense = before_a_head(OwnSine() if kind == "sine" else nn.ReLU()).to(dtype)
    x = torch.randn(500, 6, dtype=dtype)
    model = convert(copy.deepcopy(dense), config, hidden, x, SINE)
    rows = layer_status(model, dense, x, SINE)
    assert [(row["name"], row["kind"]) for row in rows] == [("0", "linear"), ("1", kind), ("3", kind), ("5", "linear")]
    taken_in = [isinstance(module, nn.Identity) for module in model._modules.values()]
    assert taken_in == [False, False, config.includes_activation, False, config.includes_activation, False]
    error = rows[1]["relative_error"]
    assert error < 1e-6 if kind == "sine" else 1e-3 < error < 1, "fitted, but approximate"
    with pytest.raises(ValueError, match=r"no dense layer matched; the model's dense layers: 0, 5$"):
        convert(model, config, hidden)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        folded = fold(copy.deepcopy(model))
        difference = (folded(x) - model(x)).norm() / model(x).norm()
    assert difference < {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert num_products(folded) < num_products(model)


def test_a_sine_layer_stands_for_nothing_but_a_sine() -> None:
    model = before_a_head(nn.ReLU())
    with pytest.raises(ValueError, match=r"^1: activation is 'relu', expected 'sine'"):
        convert(model, LayerConfig("sine"), hidden)
    with pytest.raises(ValueError, match=r"^0: activation is 'identity', expected 'sine'"):
        convert(model, LayerConfig("sine"))
    assert [row["kind"] for row in layer_status(model)] == ["linear"] * 4, "refused before anything is replaced"


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_a_shared_layer_stays_shared_whichever_name_matches(name: str) -> None:
    model = Tied()
    convert(model, SMALL, lambda _, fqn: fqn == name)
    assert isinstance(model.encode, EUGenLinear)
    assert model.encode is model.decode
    assert type(model.head) is nn.Linear


def test_a_root_swap_is_returned() -> None:
    root = nn.Linear(6, 3)
    converted = convert(root, SMALL)
    assert isinstance(converted, EUGenLinear)
    assert (converted.in_features, converted.out_features) == (6, 3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("phi", ["identity", "relu"])
def test_mode_dtype_and_requires_grad_carry_over(training: bool, dtype, requires_grad: bool, phi) -> None:
    model = chain().to(dtype).train(training).requires_grad_(requires_grad)
    convert(model, EUGenConfig(num_features=4, phi=phi))
    assert all(module.training is training for module in model.modules())
    assert all(p.dtype == dtype and p.requires_grad is requires_grad for p in model.parameters())
    assert model(torch.randn(5, 6, dtype=dtype)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_carries_over() -> None:
    model = convert(chain().cuda(), SMALL)
    assert all(p.is_cuda for p in model.parameters())
    assert fold(model)(torch.randn(5, 6, device="cuda")).is_cuda


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("attach", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm])
def test_a_parametrised_layer_is_refused_by_name(attach) -> None:
    model = chain()
    attach(model[0])
    with pytest.raises(ValueError, match="0: is parametrised"):
        convert(model, SMALL)
    assert type(model[3]) is nn.Linear, "refused before anything is replaced"
    convert(model, SMALL, lambda _, fqn: fqn == "3")
    assert type(model[3]) is EUGenLinear


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_layer_with_hooks_is_refused_by_name(register: str) -> None:
    model = chain()
    handle = getattr(model[2][0], register)(lambda *_: None)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match=r"2\.0: has hooks, which would be lost"):
        convert(model, SMALL)
    handle.remove()
    convert(model, SMALL)


def test_no_match_names_what_was_seen() -> None:
    with pytest.raises(ValueError, match=r"no dense layer matched; the model's dense layers: 0, 2\.0, 3"):
        convert(chain(), SMALL, lambda *_: False)
    with pytest.raises(ValueError, match="layers: none"):
        convert(nn.Sequential(nn.ReLU()), SMALL)
    with pytest.raises(ValueError, match=r"layers: \(the model itself\)"):
        convert(nn.Linear(2, 2), SMALL, lambda *_: False)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_attention_keeps_its_projection_and_torchs_fused_path_is_left() -> None:
    """The fused evaluation path of torch's transformer reads the weights of `nn.Linear` instead of calling it."""
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
    padding[:, 4] = True
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
    convert(model, SMALL)
    kinds = [row["kind"] for row in layer_status(model)]
    assert kinds == ["linear", "eugen", "eugen"] * 2, "out_proj, linear1, linear2"
    with torch.no_grad():
        fused = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(fused[:, :4], model(x, src_key_padding_mask=padding)[:, :4])
    assert not torch.allclose(fused[:, :4], before[:, :4])


class Doubled(nn.Linear):
    """A dense layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Adapted(nn.Module):
    """A dense layer with an adapter beside it, as fine-tuning libraries wrap one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 6
        self.base_layer, self.down, self.up = nn.Linear(6, 6), nn.Linear(6, 1), nn.Linear(1, 6)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight


class Packed(Tensor):
    """A tensor of a kind of its own, as a quantised weight is."""


def packed() -> nn.Linear:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed))
    return layer


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Doubled(6, 6), r"1: is a .*Doubled"),
        (Adapted, r"1: is a .*Adapted"),
        (packed, r"1: its weight is a Packed of torch\.float32"),
    ],
)
def test_what_only_looks_like_a_dense_layer_is_refused_by_name(make, found: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, 2))
    with pytest.raises(
        ValueError, match=found + r" \(quantised, with adapters or the like\), expected a plain nn.Linear"
    ):
        convert(model, SMALL)
    assert type(model[0]) is nn.Linear, "refused before anything is replaced"
    seen = []
    convert(model, SMALL, lambda _, fqn: not seen.append(fqn) and fqn != "1")
    assert seen == ["0", "1", "2"], "an adapter's parts are not layers of the model"
    assert [type(model[index]) for index in (0, 2)] == [EUGenLinear] * 2


def test_a_tied_parameter_is_refused_and_both_names_are_given() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 6), "inner": nn.Linear(6, 6), "head": nn.Linear(6, 5)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(ValueError, match="head: shares its weight with embed, and a replacement would untie the two"):
        convert(model, SMALL)
    assert type(model["inner"]) is nn.Linear and model["head"].weight is model["embed"].weight
    convert(model, SMALL, lambda _, fqn: fqn == "inner")
    assert type(model["inner"]) is EUGenLinear and model["head"].weight is model["embed"].weight


class Conv1D(nn.Module):
    """GPT-2's dense layer: the weight stands transposed."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_a_transposed_dense_layer_is_replaced() -> None:
    layer = Conv1D(3, 6).eval().requires_grad_(False)
    assert layer_status(layer)[0] | {"name": ""} == layer_status(nn.Linear(6, 3))[0]
    x = torch.randn(200, 6)
    converted = convert(layer, EUGenConfig(num_features=6, phi="identity"), inputs=x)
    assert isinstance(converted, EUGenLinear) and not converted.training
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    torch.testing.assert_close(converted(x), layer(x), rtol=1e-4, atol=1e-4)
    other = Conv1D(3, 6)
    assert not torch.allclose(converted(x), other(x), atol=1e-2)


def test_inputs_fit_every_layer_on_the_rows_that_it_sees() -> None:
    dense = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.ReLU())
    dense[2].train()
    x = torch.randn(3000, 6) * torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1]) + 4
    config = EUGenConfig(num_features=32)

    def error(inputs) -> float:
        model = convert(copy.deepcopy(dense), config, lambda _, fqn: fqn == "3", inputs, generator=seeded(0))
        assert all(module.training for module in model.modules()), "every module has its own mode back"
        assert not any(module._forward_pre_hooks for module in model.modules())
        with torch.no_grad():
            return float((model.eval()(x) - copy.deepcopy(dense).eval()(x)).norm() / model(x).norm())

    assert error(x) == error((x,)) < 0.1
    assert error(None) > 3 * error(x)


def test_the_rows_kept_for_a_fit_are_bounded_and_evenly_spaced() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    rows = torch.arange(1000.0)[:, None]
    kept = collect_inputs(model, rows, {model[0]: 4})[model[0]]
    assert kept.flatten().tolist() == [0, 333, 666, 999]
    assert torch.equal(collect_inputs(model, rows[:3], {model[0]: 4})[model[0]], rows[:3])


class InPlace(nn.Module):
    """A model that writes over what its layer saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x.zero_()


def test_the_rows_kept_are_those_that_were_seen() -> None:
    model = InPlace()
    assert collect_inputs(model, torch.ones(3, 1), {model.layer: 8})[model.layer].flatten().tolist() == [1, 1, 1]


def test_inputs_that_do_not_determine_a_layer_are_refused_by_its_name() -> None:
    model = Tied()
    with pytest.raises(ValueError, match="head: 3 input rows for 5 unknowns, expected at least as many rows"):
        convert(model, SMALL, lambda _, fqn: fqn == "head", inputs=torch.randn(3, 6))
    model.add_module("idle", nn.Linear(6, 6))
    with pytest.raises(ValueError, match="idle: is not run by the inputs, expected every layer to be"):
        convert(model, SMALL, inputs=torch.randn(50, 6))
    assert type(model.encode) is nn.Linear, "refused before anything is replaced"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_generator_makes_the_draw_repeatable() -> None:
    dense, x = chain(), torch.randn(5, 6)
    first, again, other = (convert(copy.deepcopy(dense), SMALL, generator=seeded(seed))(x) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    model = convert(copy.deepcopy(dense), SMALL, generator=seeded(1))
    drawn = EUGenLinear.from_linear(dense[0], "relu", SMALL, generator=seeded(1))  # pyright: ignore[reportArgumentType]
    assert torch.equal(model.get_submodule("0")(x), drawn(x)), "the layers are drawn in their order"


def test_a_model_without_weights_converts_and_folds() -> None:
    model = convert(chain().to("meta").requires_grad_(False).eval(), SMALL)
    assert all(parameter.is_meta and not parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    real = convert(chain(), SMALL)
    assert layer_status(fold(model)) == layer_status(fold(real))


def test_converting_again_leaves_the_parts_of_eugen_layers_alone() -> None:
    model = convert(chain(), SMALL, lambda _, fqn: fqn == "0")
    converted = copy.deepcopy(model)
    convert(converted, SMALL)
    assert [row["kind"] for row in layer_status(converted)] == ["eugen"] * 3
    first = converted[0]  # pyright: ignore[reportIndexIssue]
    assert isinstance(first, EUGenLinear) and type(first.readout) is nn.Linear
    with pytest.raises(ValueError, match="layers: none"):
        convert(converted, SMALL)
    with pytest.raises(ValueError, match="layers: none"):
        convert(nn.Sequential(EUGenFeatures(3, 2)), SMALL)


def test_status_has_one_row_per_layer() -> None:
    model = convert(chain(), SMALL, lambda _, fqn: fqn == "2.0")
    rows = layer_status(model)
    assert rows == [
        {"name": "0", "kind": "linear", "num_parameters": 112, "flops": 2 * 96, "relative_error": None},
        # projection 4x16 + 4, norm column 4, readout 16x4 + 16
        {"name": "2.0", "kind": "eugen", "num_parameters": 152, "flops": 2 * 128, "relative_error": None},
        {"name": "3", "kind": "linear", "num_parameters": 34, "flops": 2 * 32, "relative_error": None},
    ]
    assert [row["name"] for row in layer_status(EUGenLinear(2, 2))] == [""]


@pytest.mark.parametrize("as_tuple", [True, False])
def test_status_measures_the_relative_error_against_a_reference(as_tuple: bool) -> None:
    reference = chain()
    model = convert(copy.deepcopy(reference), SMALL, lambda _, fqn: fqn == "2.0")
    x = torch.randn(50, 6)
    errors = {row["name"]: row["relative_error"] for row in layer_status(model, reference, (x,) if as_tuple else x)}
    assert errors["0"] == 0
    ours, theirs = model[:3](x), reference[:3](x)  # pyright: ignore[reportIndexIssue]
    assert errors["2.0"] == pytest.approx(float((ours - theirs).detach().norm() / theirs.detach().norm()))
    assert errors["3"] > 0
    assert not any(module._forward_hooks for m in (model, reference) for module in m.modules())


def test_status_compares_a_layer_with_the_activation_that_it_took_in() -> None:
    reference, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(500, 6)
    model = convert(copy.deepcopy(reference), EUGenConfig(64), lambda _, fqn: fqn == "0", inputs=x)
    (error, _) = (row["relative_error"] for row in layer_status(model, reference, x))
    ours, theirs = model[0](x).detach(), reference[:2](x).detach()  # pyright: ignore[reportIndexIssue]
    assert error == pytest.approx(float((ours - theirs).norm() / theirs.norm()))
    dense = reference[0](x).detach()
    assert error < float((ours - dense).norm() / dense.norm()) / 2
    outside = convert(copy.deepcopy(reference), EUGenConfig(64, phi="identity"), lambda _, fqn: fqn == "0")
    (error, _) = (row["relative_error"] for row in layer_status(outside, reference, x))
    assert error == pytest.approx(float((outside[0](x) - dense).norm() / dense.norm()))  # pyright: ignore


def test_a_hidden_layer_is_made_with_its_activation() -> None:
    dense = make_layer(LinearConfig(bias=False), 3, 4)
    assert [type(m) for m in dense] == [nn.Linear, nn.ReLU] and dense[0].bias is None
    assert [type(m) for m in make_layer(SMALL, 3, 4)] == [EUGenLinear], "ReLU is inside, as the layer's own phi"
    outside = make_layer(EUGenConfig(num_features=2, phi="identity"), 3, 4, "softplus")
    assert [type(m) for m in outside] == [EUGenLinear, nn.Softplus]


@pytest.mark.parametrize("phi", get_args(Phi))
def test_every_activation_has_a_module_that_conversion_knows(phi: Phi) -> None:
    module, u = make_activation(phi), torch.randn(20)
    assert torch.equal(module(u), ACTIVATIONS[phi](u))
    assert phi_of(module) == (None if phi == "identity" else phi)
    assert phi_of(Sine(30.0)) is None


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation 'tanh' is unknown, expected one of identity, relu, gelu"):
        make_activation("tanh")  # pyright: ignore[reportArgumentType]


def test_a_sine_goes_into_the_layer() -> None:
    siren, x = nn.Sequential(nn.Linear(3, 5), Sine(), nn.Linear(5, 1)), torch.randn(20, 3)
    expected = siren(x)
    converted = convert(siren, SineConfig(), lambda _, name: name == "0")
    assert [type(m) for m in converted.children()] == [SineLinear, nn.Identity, nn.Linear]
    torch.testing.assert_close(converted(x), expected)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer kind 'conv' is unknown, expected one of linear, eugen"):
        LayerConfig("conv")  # pyright: ignore[reportArgumentType]
