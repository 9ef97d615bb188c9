"""Gradient steps that are as long in every direction of a layer's input as what the layer sees there.

The inputs of a layer deep in a field are dominated by a few directions: the condition number of their covariance goes
up to 1e9. A closed form reads the small ones with large weights that cancel, and a step that is short for the weights
still breaks it. In the coordinates in which a layer's inputs are white and its outputs have unit variance, a step of
any direction changes the outputs by the same share.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.distill.moments import Moments
from eugen3d.training import Muon
from eugen3d.training.distributed import broadcast_tensors

ROWS_PER_CALL = 4096
"""Rows of a layer's call that are measured at the most, evenly from all."""


class WhitenedMuon(Muon):
    """Muon over the coordinates V of every dense layer's weight W = W₀ + diag(s) V C^(-1/2).

    C is the covariance of the layer's inputs x, damped, and s the deviations of its outputs, as they were measured
    last. The bias is that of the centred input, W (x − E x) + b, in units of s. A layer without one that is trained
    has C = E xxᵀ. Preconditioning by C is one side of K-FAC (Martens and Grosse 2015); the other is Muon's own.
    Layers that were not run while it was measured, and parameters outside of dense layers, are plain Muon's.

    Args:
        module: its parameters that take gradients are stepped.
        lr: Muon's, in these coordinates: the share by which outputs may change in a step is about as large.
        damping: what is added to C's diagonal, as a share of its mean.
    """

    def __init__(self, module: nn.Module, lr: float = 1e-3, damping: float = 1e-4) -> None:
        super().__init__([parameter for parameter in module.parameters() if parameter.requires_grad], lr=lr)
        owners = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
        self.damping = damping
        self._layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, nn.Linear) and layer.weight.requires_grad and owners[id(layer.weight)] == 1
        ]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Measure the inputs and outputs of the layers that are run inside, and step in their coordinates from then on.

        Over several processes the rows of all count.
        """
        seen = {layer: Moments() for layer in self._layers}
        handles = [layer.register_forward_hook(_recorder(moments)) for layer, moments in seen.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for layer, moments in seen.items():
            if (total := moments.all_reduced()).num_rows:
                self._set_coordinates(layer, total)

    def forget(self) -> None:
        """Take the next step as if it were the first, in the same coordinates."""
        for parameter, state in self.state.items():
            self.state[parameter] = {key: state[key] for key in ("mean", "whitening", "scale") if key in state}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        weights = {layer: layer.weight for layer in self._layers}
        moved = [
            layer for layer, weight in weights.items() if weight.grad is not None and "scale" in self.state[weight]
        ]
        starts = [self._enter(layer) for layer in moved]
        super().step()
        for layer, (weight, bias) in zip(moved, starts, strict=True):
            state = self.state[layer.weight]
            change = state["scale"][:, None] * (layer.weight @ state["whitening"])
            layer.weight.copy_(weight + change)
            if bias is not None:
                layer.bias.copy_(bias + state["scale"] * layer.bias - change @ state["mean"])
        return loss

    def _is_measured(self, layer: nn.Linear) -> bool:
        return "scale" in self.state[layer.weight]

    def _enter(self, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Put the gradient and a zero in the coordinates into a layer's parameters; what they were."""
        state, gradient = self.state[layer.weight], layer.weight.grad
        weight, bias = layer.weight.clone(), None
        assert gradient is not None
        if _has_trained_bias(layer) and layer.bias.grad is not None:
            bias = layer.bias.clone()
            gradient = gradient - torch.outer(layer.bias.grad, state["mean"])
            layer.bias.grad = state["scale"] * layer.bias.grad
            layer.bias.zero_()
        layer.weight.grad = state["scale"][:, None] * (gradient @ state["whitening"])
        layer.weight.zero_()
        return weight, bias

    def _set_coordinates(self, layer: nn.Linear, moments: Moments) -> None:
        found = moments.covariances()
        mean, covariance = found.mean_x, found.xx
        if not _has_trained_bias(layer):
            mean, covariance = torch.zeros_like(mean), covariance + torch.outer(mean, mean)
        variances, directions = torch.linalg.eigh(covariance)
        damped = variances.clamp(min=0) + self.damping * variances.mean().clamp(min=1e-30)
        whitening = (directions * damped.rsqrt()) @ directions.T
        scale = found.yy.diagonal().clamp(min=0).sqrt()
        scale = scale.clamp(min=1e-3 * float(scale.max()) + 1e-30)
        coordinates = {"mean": mean, "whitening": whitening, "scale": scale}
        self.state[layer.weight] |= {key: value.to(layer.weight) for key, value in coordinates.items()}
        broadcast_tensors(self.state[layer.weight][key] for key in coordinates)


def _has_trained_bias(layer: nn.Linear) -> bool:
    return layer.bias is not None and layer.bias.requires_grad


def _recorder(moments: Moments) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def record(_layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, z = (value.detach().reshape(-1, value.shape[-1]) for value in (inputs[0], output))
        every = max(1, len(x) // ROWS_PER_CALL)
        moments.update(x[::every], z[::every])

    return record
