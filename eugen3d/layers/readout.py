"""The closed form of a readout: the least-squares fit of what a dense layer and its activation put out."""

import torch
from torch import Tensor, nn

from eugen3d.layers.eugen_features import EUGenFeatures
from eugen3d.layers.features import ACTIVATIONS, Phi


@torch.no_grad()
def fit_readout(
    features: EUGenFeatures,
    readout: nn.Linear,
    linear: nn.Linear,
    activation: Phi,
    inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Set a readout so that readout(features(x)) is the least-squares fit of activation(linear(x)), in float64.

    Args:
        inputs: rows to fit, shape (..., in_features); standard normal ones by default.
        generator: source of those.

    Raises:
        ValueError: when there are fewer rows than unknowns.
    """
    if inputs is None:
        num_rows = 8 * (features.out_features + linear.in_features + 1)
        inputs = torch.randn(num_rows, linear.in_features, generator=generator, dtype=torch.float64)
    rows = inputs.reshape(-1, linear.in_features).to(linear.weight.device, linear.weight.dtype)
    phi = features(rows).double()
    if readout.bias is not None:
        phi = torch.cat([phi, phi.new_ones(len(phi), 1)], dim=-1)
    if len(phi) < phi.shape[1]:
        raise ValueError(f"{len(phi)} input rows for {phi.shape[1]} unknowns, expected at least as many rows")
    target = ACTIVATIONS[activation](linear(rows)).double()
    solution = torch.linalg.lstsq(phi.cpu(), target.cpu(), driver="gelsd").solution.T
    readout.weight.copy_(solution[:, : readout.in_features])
    if readout.bias is not None:
        readout.bias.copy_(solution[:, -1])
