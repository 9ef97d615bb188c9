"""Rows for distillation: points along a teacher's rays, some drawn by how much they show in the picture.

A teacher's ray has many samples, of which a few carry all the colour. Rows drawn by rendering weight put the fit
where pixels come from; rows drawn evenly keep it right in empty and hidden space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class RaySamples:
    """What a teacher's field saw along a batch of rays."""

    positions: Tensor
    """Sample positions in scene units, (rays, samples, 3)."""
    directions: Tensor
    """Unit view directions, (rays, samples, 3)."""
    weights: Tensor
    """Rendering weights, (rays, samples)."""
    deltas: Tensor
    """Lengths of the samples' intervals in scene units, (rays, samples)."""


@dataclass
class Rows:
    """Points at which a field is distilled."""

    positions: Tensor
    """In scene units, (n, 3)."""
    directions: Tensor
    """Unit view directions, (n, 3)."""
    deltas: Tensor
    """Lengths of the intervals in scene units, (n,)."""
    visibility: Tensor
    """Rendering weight over the density with which the row was drawn, (n,): weighed by it, rows stand for what the
    picture shows. Its expectation is 1."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(*(getattr(self, field.name)[part] for field in fields(self)))


def draw_rows(samples: RaySamples, pair_fraction: float, weighted_fraction: float, generator: torch.Generator) -> Rows:
    """Keep a share of the samples of a batch of rays.

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
        chosen = torch.cat([chosen, by_weight])
    chosen = chosen.to(samples.positions.device)
    share = weights[chosen] / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    density = (count - weighted) / count / len(weights) + weighted / count * share
    return Rows(
        samples.positions.reshape(-1, 3)[chosen],
        samples.directions.reshape(-1, 3)[chosen],
        samples.deltas.flatten()[chosen],
        share / density.clamp(min=torch.finfo(weights.dtype).tiny),
    )


def shuffle_rows(parts: Sequence[Rows], generator: torch.Generator) -> Rows:
    """All rows of several parts, in an order that mixes them: any slice of it is a sample of the whole."""
    order = torch.randperm(sum(map(len, parts)), generator=generator).to(parts[0].positions.device)
    names = (field.name for field in fields(Rows))
    return Rows(*(torch.cat([getattr(part, name) for part in parts])[order] for name in names))
