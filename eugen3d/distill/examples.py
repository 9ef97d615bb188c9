"""What a network is run on, and what its outputs should be: batches of any module's inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.distill.network import Batch, Network

OutputError = Callable[[Batch, Batch], Tensor]
"""What a student's outputs differ from the teacher's, a scalar."""


class Examples:
    """Batches of a module's positional arguments, kept in memory.

    Args:
        batches: tuples of tensors, or lone tensors.
        held_out: share of the batches that is kept for the errors that are reported; at least one is.

    Raises:
        ValueError: there are fewer than two batches, or one is no tuple of tensors.
    """

    def __init__(self, batches: Iterable[Tensor | Sequence[Tensor]], held_out: float = 0.125) -> None:
        self._batches = [(batch,) if isinstance(batch, Tensor) else tuple(batch) for batch in batches]
        self.held_out = held_out
        for number, batch in enumerate(self._batches):
            if not batch or not all(isinstance(part, Tensor) for part in batch):
                kinds = ", ".join(type(part).__name__ for part in batch) or "nothing"
                raise ValueError(f"batch {number} holds {kinds}, expected the module's positional arguments: tensors")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is {held_out}, expected more than 0, less than 1")

    def __len__(self) -> int:
        return len(self._batches)

    def batches(self) -> list[Batch]:
        """The batches, in order."""
        return self._batches

    def split(self) -> tuple["Examples", "Examples"]:
        """The batches that solves and fits may see, and those that are held out."""
        count = max(1, round(self.held_out * len(self)))
        if len(self) <= count:
            raise ValueError(f"found {len(self)} batches, expected at least {count + 1}: {count} are held out")
        return Examples(self._batches[count:], self.held_out), Examples(self._batches[:count], self.held_out)


def run_module(module: nn.Module, batch: Batch) -> Batch:
    """What a module gives as a tuple of tensors: itself, or those in a tuple, a list or a mapping (transformers)."""
    outputs: Any = module(*batch)
    if isinstance(outputs, Tensor):
        return (outputs,)
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    tensors = tuple(part for part in parts if isinstance(part, Tensor) and part.is_floating_point())
    if not tensors:
        raise ValueError(f"{type(module).__name__} gives a {type(outputs).__name__} without tensors, expected some")
    return tensors


class OutputLoss:
    """How far a network's outputs are from its teacher's, over the examples of one batch a step.

    By default it is Σ ‖y − y_t‖² / Σ ‖y_t − mean y_t‖² over all outputs y: one for a network that gives the mean.

    Args:
        teacher: the network to follow; its outputs are computed once and kept.
        examples: those that may be drawn.
        error: another error of (outputs, teacher's outputs).
    """

    @torch.no_grad()
    def __init__(self, teacher: Network, examples: Examples, error: OutputError | None = None) -> None:
        self.batches = examples.batches()
        self.targets = [teacher(batch) for batch in self.batches]
        self.error = error or self._relative
        columns = list(zip(*self.targets, strict=True))
        means = [torch.cat([y.flatten(0, -2) for y in column]).mean(dim=0) for column in columns]
        numbers = [sum(y.numel() for y in column) for column in columns]
        spreads = [
            sum(float((y - mean).square().sum()) for y in column) / number
            for column, mean, number in zip(columns, means, numbers, strict=True)
        ]
        self.scales = [max(spread, torch.finfo(torch.float32).tiny) for spread in spreads]

    def __call__(self, network: Network, generator: torch.Generator, num_rows: int) -> Tensor:
        return self.at(network, int(torch.randint(len(self.batches), (1,), generator=generator)))

    def at(self, network: Network, number: int) -> Tensor:
        """The loss on the batch of that number."""
        return self.error(network(self.batches[number]), self.targets[number])

    @torch.no_grad()
    def of(self, network: Network) -> float:
        """The mean over all batches."""
        return float(torch.stack([self.at(network, number) for number in range(len(self.batches))]).mean())

    def _relative(self, outputs: Batch, targets: Batch) -> Tensor:
        errors = [
            (y.float() - target).square().mean() / scale
            for y, target, scale in zip(outputs, targets, self.scales, strict=True)
        ]
        return torch.stack(errors).mean()
