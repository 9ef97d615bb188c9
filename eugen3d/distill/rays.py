"""Rows for distillation: points along a teacher's rays, some drawn by how much they show in the picture.

A teacher's ray has many samples, of which a few carry all the colour. Rows drawn by rendering weight put the fit
where pixels come from; rows drawn evenly keep it right in empty and hidden space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from eugen3d.distill.network import Batch

CHUNK_ROWS = 1 << 14
HELD_OUT = 8
"""One row in so many is kept for the errors that are reported."""


@dataclass
class RaySamples:
    """What a teacher's field saw along a batch of rays."""

    inputs: tuple[Tensor, ...]
    """What the field takes at every sample, such as positions and view directions, (rays, samples, …) each."""
    weights: Tensor
    """Rendering weights, (rays, samples)."""
    deltas: Tensor
    """Lengths of the samples' intervals in scene units, (rays, samples)."""


@dataclass
class Rows:
    """Points at which a field is distilled."""

    inputs: tuple[Tensor, ...]
    """What the field takes, such as positions and view directions, (n, …) each."""
    deltas: Tensor
    """Lengths of the intervals in scene units, (n,)."""
    visibility: Tensor
    """Rendering weight over the density with which the row was drawn, (n,): weighed by it, rows stand for what the
    picture shows. Its expectation is 1."""
    sizes: tuple[int, ...] | None = None
    """Lengths of the parts that they were drawn in, one after the other; one part where it is not said. Networks see
    each part on its own, so that not a bit of what they give depends on the parts beside it."""

    def __len__(self) -> int:
        return len(self.deltas)

    def __getitem__(self, part: slice | Tensor) -> "Rows":
        return Rows(tuple(x[part] for x in self.inputs), self.deltas[part], self.visibility[part])

    def batches(self, num_rows: int = CHUNK_ROWS) -> list[Batch]:
        """The inputs, part by part, in batches of at most so many rows; views, no copies."""
        parts = [part for part in self._parts() if len(part)]
        return [batch for part in parts for batch in zip(*(x.split(num_rows) for x in part.inputs), strict=True)]

    def split(self) -> tuple["Rows", "Rows"]:
        """The rows that solves and fits may see, and those that are held out: the first eighth of every part."""
        parts = [(part, len(part) // HELD_OUT) for part in self._parts()]
        return join_rows([part[count:] for part, count in parts]), join_rows([part[:count] for part, count in parts])

    def _parts(self) -> list["Rows"]:
        ends = list(accumulate(self.sizes or (len(self),)))
        return [self[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def draw_rows(samples: RaySamples, pair_fraction: float, weighted_fraction: float, generator: torch.Generator) -> Rows:
    """Keep a share of the samples of a batch of rays, in random order.

    Args:
        pair_fraction: share of the samples that become rows, in (0, 1].
        weighted_fraction: share of these rows that is drawn by rendering weight, the rest evenly; in [0, 1].
    """
    weights = samples.weights.flatten().clamp(min=0)  # a sample of zero length may come out at -1e-9
    count = max(1, round(pair_fraction * len(weights)))
    weighted = round(weighted_fraction * count) if weights.sum() > 0 else 0
    chosen = torch.randperm(len(weights), generator=generator)[: count - weighted]
    if weighted:
        by_weight = torch.multinomial(weights.cpu().float(), weighted, replacement=True, generator=generator)
        chosen = torch.cat([chosen, by_weight])[torch.randperm(count, generator=generator)]
    chosen = chosen.to(weights.device)
    share = weights[chosen] / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    density = (count - weighted) / count / len(weights) + weighted / count * share
    return Rows(
        tuple(x.flatten(0, 1)[chosen] for x in samples.inputs),
        samples.deltas.flatten()[chosen],
        share / density.clamp(min=torch.finfo(weights.dtype).tiny),
    )


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of several parts, one after the other."""
    inputs = tuple(torch.cat(columns) for columns in zip(*(part.inputs for part in parts), strict=True))
    deltas, visibility = (torch.cat([getattr(part, name) for part in parts]) for name in ("deltas", "visibility"))
    return Rows(inputs, deltas, visibility, tuple(map(len, parts)))
