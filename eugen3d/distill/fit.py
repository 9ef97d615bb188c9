"""Gradient steps on one layer at a time, for what its field gives at the rows.

While a layer moves, all others stay as they are. With the teacher's values marked t, what is minimised over rows is

    E (α − α_t)² / var α_t  +  E v ‖c − c_t‖² / E v var c_t

c is the colour, α = 1 − exp(−density · δ) the opacity over the mean interval δ between samples, and v how much a
row's colour shows in the picture (`eugen3d.distill.rays`). Only the rows are needed: no ray is rendered.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen3d.distill.problem import CHUNK_ROWS, LayeredField
from eugen3d.distill.rays import Rows
from eugen3d.training import Muon, has_bfloat16

SWEEP_DECAY = 0.7  # of the learning rate, from one sweep to the next


@dataclass(frozen=True)
class FitConfig:
    """How long, and how fast, layers are fitted."""

    steps: int = 0
    """Gradient steps on a layer right after its closed form; 0 for none."""
    sweeps: int = 2
    """Further rounds of such steps, when every layer has its closed form: layer by layer through the whole field."""
    batch_rows: int = 2048
    """Rows per step."""
    learning_rate: float = 3e-3
    """Muon's, decayed to zero along a cosine for every layer anew."""


class FieldLoss:
    """What a field's opacity and colour at some rows differ from the teacher's."""

    @torch.no_grad()
    def __init__(self, teacher: LayeredField, rows: Rows) -> None:
        self.rows = rows
        self.delta = rows.deltas.mean()
        chunks = zip(rows.positions.split(CHUNK_ROWS), rows.directions.split(CHUNK_ROWS), strict=True)
        values = [self._opacity_and_rgb(teacher, *chunk) for chunk in chunks]
        self.opacity, self.rgb = (torch.cat(parts) for parts in zip(*values, strict=True))
        visibility = rows.visibility[:, None]
        mean = (visibility * self.rgb).mean(dim=0) / visibility.mean().clamp(min=1e-8)
        self.rgb_scale = (visibility * (self.rgb - mean).square()).mean().clamp(min=1e-8)
        self.opacity_scale = self.opacity.var().clamp(min=1e-8)

    def __call__(self, field: LayeredField, batch: Tensor) -> Tensor:
        """The loss of a field at the rows whose numbers (n,) are given."""
        opacity, rgb = self._opacity_and_rgb(field, self.rows.positions[batch], self.rows.directions[batch])
        in_opacity = (opacity - self.opacity[batch]).square().mean()
        in_rgb = (self.rows.visibility[batch, None] * (rgb - self.rgb[batch]).square()).mean()
        return in_opacity / self.opacity_scale + in_rgb / self.rgb_scale

    def _opacity_and_rgb(self, field: LayeredField, positions: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        density, rgb = field(positions, directions)
        return -torch.expm1(-density.float() * self.delta), rgb.float()


def fit_layer(
    field: LayeredField,
    layer: nn.Module,
    loss_of: FieldLoss,
    config: FitConfig,
    generator: torch.Generator,
    sweep: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fit the parameters of one layer of a field, in place.

    Args:
        sweep: how many times the layers were gone through before.
        on_step: called after every step.
    """
    parameters = [p for p in layer.parameters() if p.requires_grad]
    optimizer = Muon(parameters, lr=config.learning_rate * SWEEP_DECAY ** max(sweep - 1, 0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    device, count = loss_of.rgb.device, len(loss_of.rgb)
    in_bfloat16 = has_bfloat16(device)
    for _ in range(config.steps):
        batch = torch.randint(count, (config.batch_rows,), generator=generator).to(device)
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            loss = loss_of(field, batch)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        optimizer.step()
        schedule.step()
        on_step()
