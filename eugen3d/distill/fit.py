"""Gradient steps on one layer alone, for what the field loses by it.

The layer's output goes through the teacher's own remaining layers, which stay as they are. With the teacher's values
marked t, what is minimised over rows is

    E (α − α_t)² / var α_t  +  E ‖c − c_t‖² / var c_t  +  λ E ‖W (y − y_t)‖² / var W y_t

c is the colour, α = 1 − exp(−density · δ) the opacity over the mean interval δ between samples, y the layer's output
and W what reads it. The first two terms are what a picture shows; the last keeps the layer close to the teacher's
where they are flat. Only the rows are needed: no rays are rendered, and no other layer of the student moves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eugen3d.distill.problem import CHUNK_ROWS, LayerMoments, LayerProblem
from eugen3d.training import Muon, has_bfloat16

READER_WEIGHT = 0.1  # λ


@dataclass(frozen=True)
class FitConfig:
    """How long, and how fast, a layer is fitted."""

    steps: int = 0
    """Gradient steps; 0 for none."""
    batch_rows: int = 2048
    """Rows per step."""
    learning_rate: float = 3e-3
    """Muon's, decayed to zero along a cosine."""


def fit_block(
    problem: LayerProblem,
    block: nn.Module,
    moments: LayerMoments,
    part: slice,
    config: FitConfig,
    generator: torch.Generator,
    on_step: Callable[[], None],
) -> None:
    """Fit the parameters of a block that stands for a trunk layer and its ReLU, in place.

    Args:
        part: the rows to fit on.
        on_step: called after every step.
    """
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.chunks(part), strict=True))
    loss_of = _FieldLoss(problem, moments, part, F.relu(targets))
    parameters = [p for p in block.parameters() if p.requires_grad]
    optimizer = Muon(parameters, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    device, in_bfloat16 = inputs.device, has_bfloat16(inputs.device)
    for _ in range(config.steps):
        batch = torch.randint(len(inputs), (config.batch_rows,), generator=generator).to(device)
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            loss = loss_of(block(inputs[batch]), batch)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)  # not into the teacher
        optimizer.step()
        schedule.step()
        on_step()


class _FieldLoss:
    """The loss of a layer's output for a batch of rows."""

    def __init__(self, problem: LayerProblem, moments: LayerMoments, part: slice, targets: Tensor) -> None:
        self.field, self.index, self.targets = problem.teacher, problem.index, targets
        self.readers = problem.readers(moments).to(targets)
        self.positions, self.directions = problem.rows.positions[part], problem.rows.directions[part]
        self.delta = problem.rows.deltas.mean()
        rows = range(0, len(targets), CHUNK_ROWS)
        chunks = [self._seen(targets[i : i + CHUNK_ROWS], slice(i, i + CHUNK_ROWS)) for i in rows]
        self.opacity, self.rgb = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        self.scales = [_spread(self.opacity), _spread(self.rgb), _spread(targets @ self.readers.T)]

    def __call__(self, outputs: Tensor, batch: Tensor) -> Tensor:
        opacity, rgb = self._seen(outputs, batch)
        read = F.linear(outputs.float() - self.targets[batch], self.readers)
        return (
            F.mse_loss(opacity, self.opacity[batch]) / self.scales[0]
            + F.mse_loss(rgb, self.rgb[batch]) / self.scales[1]
            + READER_WEIGHT * read.float().square().mean() / self.scales[2]
        )

    def _seen(self, outputs: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Opacity (n,) and rgb (n, 3) of rows whose layer gives `outputs`."""
        encoded = self.field.encode_position(self.positions[rows])
        density, rgb = self.field.outputs_after(self.index, encoded, outputs, self.directions[rows])
        return -torch.expm1(-density.float() * self.delta), rgb.float()


def _spread(values: Tensor) -> Tensor:
    """Mean variance of the columns, never zero."""
    return values.reshape(len(values), -1).var(dim=0).mean().clamp(min=1e-8)
