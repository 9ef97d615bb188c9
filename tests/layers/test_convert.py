"""Swapping the dense layers of a model, and the report on what it is made of."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from eugen3d import EUGenConfig, EUGenLinear, LayerConfig, LinearConfig, convert, fold, layer_status
from eugen3d.layers import EUGenFeatures, make_activation, make_layer

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


def test_a_hidden_layer_is_made_with_its_activation() -> None:
    dense = make_layer(LinearConfig(bias=False), 3, 4)
    assert [type(m) for m in dense] == [nn.Linear, nn.ReLU] and dense[0].bias is None
    assert [type(m) for m in make_layer(SMALL, 3, 4)] == [EUGenLinear], "ReLU is inside, as the layer's own phi"
    outside = make_layer(EUGenConfig(num_features=2, phi="identity"), 3, 4, "softplus")
    assert [type(m) for m in outside] == [EUGenLinear, nn.Softplus]


def test_an_activation_without_a_module_is_named() -> None:
    with pytest.raises(ValueError, match="activation 'sine' has no module, expected one of relu, gelu, softplus"):
        make_activation("sine")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer kind 'conv' is unknown, expected one of linear, eugen"):
        LayerConfig("conv")  # pyright: ignore[reportArgumentType]
