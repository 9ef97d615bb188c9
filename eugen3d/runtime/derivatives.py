"""Derivatives of what a backend evaluates: its values, and the gradients of the folded module that it stands for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
Function = Callable[..., Outputs]


def differentiable(evaluate: Function, reference: Function, *inputs: Tensor) -> Outputs:
    """`evaluate(*inputs)`, differentiated as `reference` is, as often as that can be.

    Every backward pass runs the reference again, so that the forward pass keeps nothing but the inputs.

    Args:
        evaluate: computes the outputs, without gradients.
        reference: the same function of the inputs, of operations that torch differentiates.
    """
    return _Evaluation.apply(evaluate, reference, *inputs)  # pyright: ignore[reportReturnType]


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, evaluate: Function, reference: Function, *inputs: Tensor) -> Outputs:
        ctx.reference = reference
        ctx.save_for_backward(*inputs)
        return evaluate(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        needed = [x for x, is_needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True) if is_needed]
        is_differentiated = torch.is_grad_enabled()  # the backward pass itself is
        with torch.enable_grad():
            outputs = ctx.reference(*ctx.saved_tensors)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            found = torch.autograd.grad(outputs, needed, gradients, create_graph=is_differentiated, allow_unused=True)
        remaining = iter(found)
        return None, None, *(next(remaining) if is_needed else None for is_needed in ctx.needs_input_grad[2:])
