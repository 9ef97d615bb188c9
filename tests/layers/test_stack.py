"""Stacks of layers with skip connections."""

import copy

import pytest
import torch
from torch import Tensor, nn

from eugen3d.layers import (
    EUGenConfig,
    KindConfig,
    LayerStack,
    LinearConfig,
    LowRankConfig,
    first_matrix,
    fold,
    make_layer,
    num_products,
)

KINDS = [LinearConfig(), LowRankConfig(3), EUGenConfig(4, 2), EUGenConfig(4, use_norm=False)]


def make_stack(config: KindConfig, skips: tuple[int, ...] = (2,), count: int = 4) -> LayerStack:
    """Layers of width 9 over inputs of 5, the first one dense."""
    in_dims = [5, *(9 + 5 * (index in skips) for index in range(1, count))]
    chains = [make_layer(config if i else LinearConfig(), in_dim, 9) for i, in_dim in enumerate(in_dims)]
    return LayerStack(chains, skips)


def test_the_skip_concatenates_the_input_first() -> None:
    stack, x = make_stack(LinearConfig()), torch.randn(6, 5)
    hidden = stack[1](stack[0](x))
    expected = stack[3](stack[2](torch.cat([x, hidden], dim=1)))
    assert torch.equal(stack(x), expected) and stack(x).any()
    assert stack(x.view(2, 3, 5)).shape == (2, 3, 9)


@pytest.mark.parametrize("skips", [{0}, {4}, {-1, 2}])
def test_a_skip_that_is_not_there_is_refused(skips: set[int]) -> None:
    with pytest.raises(ValueError, match=r"skips has \[.*\], expected indices of 1 to 3"):
        LayerStack(make_stack(LinearConfig()), skips)


@pytest.mark.parametrize("skips", [(), (1,), (2,), (1, 3)])
@pytest.mark.parametrize("config", KINDS)
def test_a_folded_stack_is_the_same_function(config: KindConfig, skips: tuple[int, ...]) -> None:
    stack, x = make_stack(config, skips).double(), torch.randn(20, 5, dtype=torch.float64)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_(std=0.5)
    folded = fold(copy.deepcopy(stack))
    torch.testing.assert_close(folded(x), stack(x), rtol=1e-9, atol=1e-9)
    if isinstance(config, EUGenConfig):  # elsewhere the activations stand between
        assert num_products(folded) < num_products(stack)


@pytest.mark.parametrize(("skips", "chains"), [((), 1), ((1,), 2), ((2,), 2), ((1, 3), 3)])
def test_a_joined_stack_is_the_same_function_of_fewer_chains(skips: tuple[int, ...], chains: int) -> None:
    stack, x = make_stack(EUGenConfig(4), skips), torch.randn(20, 5)
    expected = stack(x)
    stack.join_()
    assert len(stack) == chains and torch.equal(stack(x), expected)


def test_what_a_layer_does_not_read_changes_nothing() -> None:
    """The columns of the links are those where the output stands."""
    stack, x = make_stack(EUGenConfig(4, use_norm=False)), torch.randn(20, 5)
    (producer, [(consumer, columns)]) = stack.links()[1]
    assert producer is stack[1] and consumer is stack[2] and columns == slice(5, None)
    readers = first_matrix(consumer)[:, columns].detach()
    assert readers.shape == (4, 9)
    unread, hidden = torch.linalg.svd(readers).Vh[4:], torch.randn(20, 9)

    def after(hidden: Tensor) -> Tensor:
        return consumer(torch.cat([x, hidden], dim=1))

    torch.testing.assert_close(after(hidden + unread[0]), after(hidden), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after(hidden + readers[0]), after(hidden))


def test_an_empty_stack_gives_its_input_back() -> None:
    assert torch.equal(LayerStack()(torch.ones(2, 3)), torch.ones(2, 3)) and LayerStack().links() == []


def test_its_state_is_that_of_a_list() -> None:
    stack = make_stack(LinearConfig())
    assert stack.state_dict().keys() == nn.ModuleList(stack).state_dict().keys()
