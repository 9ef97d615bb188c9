"""The rows that the dense layers of a model really see, taken from a forward pass over sample inputs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def collect_inputs(model: nn.Module, inputs: Any, limits: Mapping[nn.Module, int]) -> dict[nn.Module, Tensor]:
    """Run a model once, in evaluation mode, and keep rows of what its layers take.

    Args:
        inputs: positional arguments of the forward pass, a tensor or a tuple.
        limits: the layers, each with the number of rows that are kept of all its calls, evenly spaced.

    Returns:
        Per layer (rows, in_features). A layer that was not called is absent.
    """
    kept: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        rows = next(iter((*arguments, *keywords.values()))).detach()
        kept.setdefault(module, []).append(_thin(rows.reshape(-1, rows.shape[-1]), limits[module]))

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in limits]
    try:
        with _evaluating(model.modules()):
            model(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: _thin(torch.cat(rows), limits[layer]) for layer, rows in kept.items()}


def _thin(rows: Tensor, limit: int) -> Tensor:
    if len(rows) <= limit:
        return rows.clone()  # what runs later may change it in place
    return rows[torch.linspace(0, len(rows) - 1, limit, dtype=torch.float64).round().long().to(rows.device)]


@contextmanager
def _evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode: no dropout, no running statistics touched. Every module gets its own mode back."""
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
