"""nerfstudio's MLPs as stacks: exactly the same function, shared where they were shared."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from nerfstudio.field_components.mlp import MLP, MLPWithHashEncoding
from torch import nn

from eugen3d.layers import EUGenConfig, find_sites, fold, place_drawn
from eugen3d.models.stacks import FieldStack, set_runtime, to_stacks

MLPS = {
    "plain": MLP(5, 3, 7, 4),
    "skip": MLP(5, 5, 7, 4, skip_connections=cast(Any, (2, 3)), out_activation=nn.ReLU()),
    "one layer": MLP(5, 1, 7, 4, out_activation=nn.Sigmoid()),
    "no activation": MLP(5, 3, 7, activation=None),
    "softplus": MLP(5, 3, 7, 4, activation=nn.Softplus(beta=100)),
}


@pytest.mark.parametrize("mlp", MLPS.values(), ids=MLPS)
def test_a_stack_computes_what_the_mlp_did(mlp: MLP) -> None:
    x = torch.randn(3, 6, 5)
    expected = mlp(x)
    stack = to_stacks(copy.deepcopy(mlp))
    assert type(stack) is FieldStack
    torch.testing.assert_close(stack(x), expected, rtol=1e-6, atol=1e-6)  # a product's rounding depends on addresses
    assert not torch.allclose(stack(x + 1), expected)


def test_mlps_inside_a_model_are_replaced_and_stay_shared() -> None:
    encoded = MLPWithHashEncoding(num_levels=2, log2_hashmap_size=4, max_res=8, layer_width=6, out_dim=3)
    head = MLP(3, 2, 6, 2)
    model = nn.ModuleDict({"base": encoded, "head": head, "again": head}).eval()
    points = torch.rand(9, 3)
    expected = head(encoded(points))
    assert to_stacks(model) is model
    torch.testing.assert_close(model["again"](model["base"](points)), expected, rtol=1e-6, atol=1e-6)
    assert model["head"] is model["again"] and not model["head"].training
    assert list(find_sites(model)) == ["base.model.1.0", "base.model.1.1", "head.0", "head.1"]


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_norm_is_taken_off_exactly(norm) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 3)))
    x = torch.randn(5, 4)
    expected = model(x)
    torch.testing.assert_close(to_stacks(model)(x), expected, rtol=1e-6, atol=1e-6)
    assert list(model.state_dict()) in (["0.weight", "0.bias"], ["0.bias", "0.weight"])


def test_tiny_cuda_nn_is_refused_with_the_flag() -> None:
    mlp = MLP(3, 2, 6, 2)
    setattr(mlp, "tcnn_encoding", SimpleNamespace())  # noqa: B010 - its class says None
    with pytest.raises(ValueError, match=r"^head is tiny-cuda-nn's.*--pipeline.model.implementation torch$"):
        to_stacks(nn.ModuleDict({"head": mlp}))


def test_rendering_evaluates_a_folded_copy_that_follows_the_parameters() -> None:
    stack = cast(FieldStack, to_stacks(MLP(5, 4, 12, 4, skip_connections=(2,))).eval())
    place_drawn(stack, {"1": EUGenConfig(4, use_norm=False)})
    x = torch.randn(2, 7, 5)
    expected = stack(x)
    state = list(stack.state_dict())
    set_runtime(stack, "eager")
    with torch.no_grad():
        torch.testing.assert_close(stack(x), expected)
        first = stack._evaluation._kept
        stack(x)
        assert first is not None and stack._evaluation._kept is first, "made once"
        folded = cast(tuple[Any, nn.Module], first)[1].get_submodule("module")
        assert sum(p.numel() for p in folded.parameters()) < sum(p.numel() for p in stack.parameters())
        stack.get_parameter("3.0.weight").mul_(2)
        changed = stack(x)
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(changed, stack(x).detach())
    assert list(stack.state_dict()) == state, "the copy is no part of the state"


def test_copies_and_folded_stacks_render_for_themselves() -> None:
    stack = to_stacks(MLP(5, 3, 6, 4)).eval()
    set_runtime(stack, "eager")
    x = torch.randn(7, 5)
    with torch.no_grad():
        expected = stack(x)
        twin = copy.deepcopy(stack)
        twin.get_parameter("0.0.weight").zero_()
        torch.testing.assert_close(stack(x), expected)
        assert not torch.allclose(twin(x), expected)
        torch.testing.assert_close(fold(copy.deepcopy(stack))(x), expected)
