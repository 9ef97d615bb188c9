"""Folded copies of fields, kept until a parameter of the original changes."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from eugen3d.runtime import AutoModule, Backend, TiledModule, build

T = TypeVar("T")


class KeptCopy(Generic[T]):
    """What is made of a module, made anew whenever one of its parameters, or what else it depends on, has changed.

    Args:
        make: makes it, of the module and what else it depends on.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._kept: tuple[tuple[Any, ...], T] | None = None

    def of(self, module: nn.Module, *also: Hashable) -> T:
        """The copy of a module."""
        parameters = list(module.parameters())
        state = *also, *((id(p), p._version, p.device) for p in parameters)
        if self._kept is None or self._kept[0] != state:
            gpus = [p.device for p in parameters[:1] if p.device.type == "cuda"]
            with torch.random.fork_rng(gpus):  # new layers draw weights: the jitter of samples must not depend on it
                self._kept = state, self._make(module, *also)
        return self._kept[1]


def kept_runtime() -> KeptCopy[TiledModule | AutoModule]:
    """The folded copy of a module as a backend evaluates it: `of(module, backend)`."""
    return KeptCopy(_build)


def _build(module: nn.Module, backend: Backend) -> TiledModule | AutoModule:
    return build(module, backend)
