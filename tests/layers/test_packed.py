"""Chains that are stored and built again."""

import json

import pytest
import torch
from torch import nn

from eugen3d.layers import EUGenConfig, Sine, fold, make_layer
from eugen3d.layers.packed import PackedChain, pack_chain, unpack_chain


def chain_of(*configs: EUGenConfig) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [make_layer(config, 3 if not index else 48, 48, "sine") for index, config in enumerate(configs)]
    chain = nn.Sequential(*layers, Sine(2.0), nn.Linear(48, 8), nn.GELU(), nn.Softplus(beta=100), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.normal_(std=0.2)
    return chain


CONFIGS = [
    (EUGenConfig(8, 2, "sine"), EUGenConfig(8, 2, "sine", shared=False)),
    (EUGenConfig(8, 1, "identity"), EUGenConfig(8, 1, "relu", projection_rank=3)),
]


@pytest.mark.parametrize("configs", CONFIGS)
@pytest.mark.parametrize("folded", [False, True])
def test_a_chain_comes_back(configs: tuple[EUGenConfig, ...], folded: bool) -> None:
    chain = chain_of(*configs)
    if folded:
        fold(chain)
    packed = pack_chain(chain, "float32")
    back = unpack_chain(PackedChain(json.loads(json.dumps(packed.steps)), packed.tensors))
    x = torch.randn(20, 3)
    assert torch.equal(back(x), chain(x))


@pytest.mark.parametrize(("precision", "error"), [("float16", 2e-3), ("int8", 5e-2)])
def test_less_precision_takes_less_room(precision, error: float) -> None:
    chain, x = chain_of(*CONFIGS[0]), torch.randn(200, 3)
    packed = pack_chain(chain, precision)
    found, wanted = unpack_chain(packed)(x), chain(x)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < error
    whole = sum(t.nbytes for t in pack_chain(chain, "float32").tensors.values())
    assert sum(t.nbytes for t in packed.tensors.values()) < (0.8 if precision == "float16" else 0.7) * whole
    assert packed.tensors["0.projection.weight"].dtype == torch.float32, "what reads the input stays as it is"


def test_int8_by_hand() -> None:
    chain = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        chain[1].weight.copy_(torch.tensor([[12.7, -6.35], [0.0, 0.0]]))  # pyright: ignore
    tensors = pack_chain(chain, "int8").tensors
    assert tensors["1.weight"].tolist() == [[127, -64], [0, 0]]  # -63.5 rounds to the even number
    assert tensors["1.weight.scale"].flatten().tolist() == pytest.approx([0.1, 0.0])


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="a chain holds Tanh"):
        pack_chain(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "float32")
    chain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        chain[1].weight.fill_(1e6)  # pyright: ignore
    with pytest.raises(ValueError, match=r"a parameter of 1e\+06 is too large for float16"):
        pack_chain(chain, "float16")
    with torch.no_grad():
        chain[0].bias.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(ValueError, match="map 0's bias is not finite"):
        pack_chain(chain, "float32")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.tensors.pop("0.bias"), "0.bias is missing"),
        (lambda p: p.tensors.update(x=torch.zeros(1)), "x belongs to no map"),
        (lambda p: p.tensors.update({"0.bias": torch.zeros(3)}), r"0.bias has shape \(3,\), expected \(2,\)"),
        (lambda p: p.steps[0].update(map="conv"), "describes no map"),
        (lambda p: p.steps[0].update(width=3), "describes no map"),
    ],
)
def test_what_is_broken_is_refused(change, reason: str) -> None:
    packed = pack_chain(nn.Sequential(nn.Linear(2, 2)), "float32")
    change(packed)
    with pytest.raises(ValueError, match=reason):
        unpack_chain(packed)
