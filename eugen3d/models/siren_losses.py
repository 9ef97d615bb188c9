"""The losses of eugen-siren (Sitzmann et al. 2020, sections 3 and 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen3d.datasets.signal_datamanager import SignalBatch
from eugen3d.datasets.signals.differences import Supervision


@dataclass(frozen=True)
class ShapeLossConfig:
    """Weights of the losses of a shape; the defaults are the paper's code's."""

    surface_mult: float = 3e3
    """Of |s| at points of the surface."""
    off_surface_mult: float = 1e2
    """Of exp(-α |s|) at other points, which keeps the zero level off them. Where their sign is known and s has the
    other one it is 1 + α |s|, which goes on as smoothly: exp(-α |s|) alone would hold the wrong sign in its place."""
    off_surface_decay: float = 1e2
    """α, per unit of the cube that holds the shape."""
    normal_mult: float = 1e2
    """Of 1 - cos between gradient and normal at points of the surface."""
    eikonal_mult: float = 50.0
    """Of | ‖∇s‖ - 1 | at all points."""


def signal_losses(field: nn.Module, batch: SignalBatch, supervision: Supervision) -> dict[str, Tensor]:
    """The mean squared error of values, or of their derivatives, at a batch's points."""
    if supervision == "values":
        return {"value_loss": (field(batch.coordinates) - batch.targets).square().mean()}
    x = batch.coordinates.detach().requires_grad_()
    values = field(x)
    channels = [_derivative(values[:, channel], x) for channel in range(values.shape[1])]
    if supervision == "gradient":
        return {"gradient_loss": (torch.stack(channels, dim=-1) - batch.targets).square().mean()}
    laplacian = [
        sum(
            (_derivative(gradient[:, axis], x)[:, axis] for axis in range(x.shape[1])),
            torch.zeros((), device=x.device),
        )
        for gradient in channels
    ]
    return {"laplacian_loss": (torch.stack(laplacian, dim=-1) - batch.targets).square().mean()}


def shape_losses(field: nn.Module, batch: SignalBatch, config: ShapeLossConfig) -> dict[str, Tensor]:
    """The losses of a signed distance s whose zero level is a surface (Sitzmann et al. 2020, eq. 6).

    Theirs know nothing of the sign of other points, so that levels of zero stay where none should be; see
    `ShapeLossConfig.off_surface_mult` for what is done where it is known.
    """
    x = batch.coordinates.detach().requires_grad_()
    distance = field(x)[:, 0]
    gradient = _derivative(distance, x)
    count = len(batch.targets)
    away = config.off_surface_decay * (
        distance[count:].abs() if batch.signs is None else distance[count:] * batch.signs
    )
    off_surface = torch.where(away < 0, 1 - away, torch.exp(-away.clamp_min(0.0)))
    cosine = torch.nn.functional.cosine_similarity(gradient[:count], batch.targets, dim=-1)
    return {
        "surface_loss": config.surface_mult * distance[:count].abs().mean(),
        "off_surface_loss": config.off_surface_mult * off_surface.mean(),
        "normal_loss": config.normal_mult * (1 - cosine).mean(),
        "eikonal_loss": config.eikonal_mult * (gradient.norm(dim=-1) - 1).abs().mean(),
    }


def _derivative(values: Tensor, x: Tensor) -> Tensor:
    """The gradient (n, d) of values (n,) in x, to be differentiated again."""
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]
