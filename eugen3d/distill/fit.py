"""Gradient steps on one layer at a time, for what its network gives at the end.

While a layer moves, all others stay as they are. Of a field, with the teacher's values marked t, what is minimised over
rows is

    E (α − α_t)² / var α_t  +  E v ‖c − c_t‖² / E v var c_t

c is the colour, α = 1 − exp(−density · δ) the opacity over the mean interval δ between samples, and v how much a
row's colour shows in the picture (`eugen3d.distill.rays`). Only the rows are needed: no ray is rendered.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from eugen3d.distill.network import Batch, Network
from eugen3d.distill.rays import CHUNK_ROWS, Rows
from eugen3d.distill.whitening import WhitenedMuon
from eugen3d.training import Muon, has_bfloat16
from eugen3d.training.distributed import all_reduce_sum, average_gradients, broadcast_module, world_size

FitTarget = Literal["output", "layer"]
SWEEP_DECAY = 0.7  # of the learning rate, from one sweep to the next
RATE_SHARES = (1.0, 0.1)
"""Shares of the learning rate that are tried until a layer is better: a good closed form is lost by large steps."""


@dataclass(frozen=True)
class FitConfig:
    """How long, and how fast, layers are fitted."""

    steps: int = 0
    """Gradient steps on a layer right after its closed form; 0 for none."""
    sweeps: int = 2
    """Further rounds of such steps, when every layer has its closed form: layer by layer through the whole field."""
    target: FitTarget = "output"
    """What the steps on a layer bring near the teacher's: what the whole network gives, or the layer alone, by Huber's
    loss, which takes less time and knows nothing of what the layers after it make of an error."""
    batch_rows: int = 2048
    """Rows per step."""
    learning_rate: float = 1e-3
    """About the share by which a layer's outputs change in a step. For every layer anew it decays along a cosine."""


class Loss(Protocol):
    """What a network's outputs differ from the teacher's, at rows that it draws."""

    def __call__(self, network: Network, generator: torch.Generator, num_rows: int, /) -> Tensor:
        """The loss at so many rows, with a graph; over several processes its mean over them is the loss."""
        ...

    def of(self, network: Network, /) -> float:
        """The loss at all rows of all processes."""
        ...


class FieldLoss:
    """What a field's opacity and colour differ from the teacher's at some rows of its rays.

    The teacher's values are kept for all rows: half the memory of the rows themselves, whose number is bounded.

    Args:
        teacher: a field whose outputs begin with density (n,) and rgb (n, 3).
        rows: those that may be drawn.
    """

    @torch.no_grad()
    def __init__(self, teacher: Network, rows: Rows) -> None:
        self.rows = rows
        count, length = all_reduce_sum(torch.stack([rows.deltas.new_tensor(len(rows)), rows.deltas.sum()]).double())
        self.delta = (length / count).float()
        self.share = float(len(rows) * world_size() / count)
        values = [self._opacity_and_rgb(teacher, batch) for batch in rows.batches()]
        self.opacity, self.rgb = (torch.cat(parts) for parts in zip(*values, strict=True))
        seen, rgb, opacity = rows.visibility[:, None].double(), self.rgb.double(), self.opacity.double()
        mean_seen, *mean = all_reduce_sum(torch.cat([seen.sum(dim=0), (seen * rgb).sum(dim=0)])) / count
        colour = torch.stack(mean) / mean_seen.clamp(min=1e-8)
        mean_opacity = all_reduce_sum(opacity.sum()) / count
        squares = torch.stack(
            [(seen * (rgb - colour).square()).mean(dim=1).sum(), (opacity - mean_opacity).square().sum()]
        )
        squares = all_reduce_sum(squares) / torch.stack([count, count - 1])
        self.rgb_scale, self.opacity_scale = squares.clamp(min=1e-8).float()

    def __call__(self, network: Network, generator: torch.Generator, num_rows: int) -> Tensor:
        chosen = torch.randint(len(self.rows), (num_rows,), generator=generator)
        return self.at(network, chosen.to(self.rgb.device))

    def at(self, network: Network, chosen: Tensor) -> Tensor:
        """The loss at the rows whose numbers (n,) are given."""
        rows = self.rows[chosen]
        opacity, rgb = self._opacity_and_rgb(network, rows.inputs)
        in_opacity = (opacity - self.opacity[chosen]).square().mean()
        in_rgb = (rows.visibility[:, None] * (rgb - self.rgb[chosen]).square()).mean()
        return self.share * (in_opacity / self.opacity_scale + in_rgb / self.rgb_scale)

    @torch.no_grad()
    def of(self, network: Network) -> float:
        """The loss at all rows of all processes."""
        parts = torch.arange(len(self.rows), device=self.rgb.device).split(CHUNK_ROWS)
        total = torch.stack([self.at(network, part).double() * len(part) for part in parts]).sum() / len(self.rows)
        return float(all_reduce_sum(total)) / world_size()

    def _opacity_and_rgb(self, network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        density, rgb = network(batch)[:2]
        return -torch.expm1(-density.float() * self.delta), rgb.float()


def fit_layer(
    network: Network,
    name: str,
    losses: tuple[Loss, Loss],
    config: FitConfig,
    generator: torch.Generator,
    sweep: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> bool:
    """Fit the parameters of one layer of a network, in place; it stays as it is where that brings nothing.

    Several processes share the rows of a step and the mean of their gradients.

    Args:
        name: the layer's site.
        losses: what falls, and what has to be less afterwards, at rows that are held out.
        sweep: how many times the layers were gone through before.
        on_step: called after every step at the full learning rate.

    Returns:
        Whether the layer was changed.
    """
    loss_of, held_out = losses
    learning_rate = config.learning_rate * SWEEP_DECAY ** max(sweep - 1, 0)
    layer = network.layer(name)
    start, optimizer = copy.deepcopy(layer.state_dict()), WhitenedMuon(layer)
    with optimizer.measuring():
        before = held_out.of(network)
    for share in RATE_SHARES:
        optimizer.forget()
        _descend(network, layer, optimizer, loss_of, config, share * learning_rate, generator, on_step)
        if held_out.of(network) < before:
            return True
        layer.load_state_dict(start)
        on_step = _ignore
    return False


def fit_network(
    network: Network,
    loss_of: Loss,
    config: FitConfig,
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fit all parameters of a network at once, in place, by `config.steps` steps; sweeps are of no matter."""
    module = network.module
    optimizer = Muon([p for p in module.parameters() if p.requires_grad])
    _descend(network, module, optimizer, loss_of, config, config.learning_rate, generator, on_step)


def _ignore() -> None:
    pass


def _descend(
    network: Network,
    moving: nn.Module,
    optimizer: Muon,
    loss_of: Loss,
    config: FitConfig,
    learning_rate: float,
    generator: torch.Generator,
    on_step: Callable[[], None],
) -> None:
    """Gradient steps on the parameters of a module inside a network."""
    parameters = optimizer.param_groups[0]["params"]
    device = parameters[0].device
    in_bfloat16, num_rows = has_bfloat16(device), math.ceil(config.batch_rows / world_size())
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
            loss = loss_of(network, generator, num_rows)
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        average_gradients(parameters)
        optimizer.step()
        on_step()
    broadcast_module(moving)
