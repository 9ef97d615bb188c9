"""Several draws of one layer at once: what differs between them is a leading axis, so that one product serves all.

Symbols: s draws, n rows, d inputs, p features, l outputs; each draw is ŷ = f(W φ(x) + b), f the identity where the
layer has its activation inside.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from eugen3d.distill.moments import Covariances
from eugen3d.distill.solve import solve_readout
from eugen3d.layers import EUGenLinear, LowRankLinear, SNNKLinear

TwoMaps = EUGenLinear | LowRankLinear | SNNKLinear

LEARNING_RATE = 5e-3
BATCH_ROWS = 256
CHUNK_VALUES = 1 << 22
"""Numbers, at most, of outputs that are held at once."""


class Draws:
    """Layers of one kind and one shape, each its features and its readout, which are fitted and judged together.

    Args:
        layers: the draws; their parameters are copied. Features that require no gradient stay as they are.
        activation: f.
    """

    def __init__(self, layers: Sequence[TwoMaps], activation: Callable[[Tensor], Tensor]) -> None:
        pairs = [layer.maps() for layer in layers]
        self.map = pairs[0][0]
        self.activation = activation
        self.parameters: dict[str, Tensor] = {
            name: torch.stack([features.get_parameter(name).detach() for features, _ in pairs])
            for name, _ in self.map.named_parameters()
        }
        self.trained = [name for name, parameter in self.map.named_parameters() if parameter.requires_grad]
        self.weight = torch.stack([readout.get_parameter("weight").detach() for _, readout in pairs])
        self.bias = torch.stack([readout.get_parameter("bias").detach() for _, readout in pairs])

    def __len__(self) -> int:
        return len(self.weight)

    def features(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """φ (s, n, p) of rows that all draws see, (n, d), or of each one's own, (s, n, d)."""

        def one(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
            return functional_call(self.map, parameters, (rows,))

        return torch.vmap(one, in_dims=(0, 0 if x.ndim == 3 else None))(parameters or self.parameters, x)

    def __call__(self, x: Tensor) -> Tensor:
        """ŷ (s, n, l)."""
        return self.activation(torch.baddbmm(self.bias[:, None], self.features(x), self.weight.mT))

    @torch.no_grad()
    def relative_errors(self, x: Tensor, y: Tensor) -> Tensor:
        """‖ŷ − y‖ / ‖y‖ of every draw, (s,), in float64."""
        squares = torch.zeros(len(self), dtype=torch.float64)
        for rows, wanted in self._chunks(x, y):
            squares += (self(rows) - wanted).square().sum(dim=2).double().sum(dim=1)
        return (squares / y.double().square().sum().clamp(min=1e-300)).sqrt()

    @torch.no_grad()
    def solve(self, x: Tensor, y: Tensor) -> None:
        """Set every readout to the ridge regression of y, which has to be what the layer itself gives."""
        p, mean_y = self.weight.shape[2], y.double().mean(dim=0)
        shift = self.features(x[: self._chunk_rows]).double().mean(dim=1)
        sums, cross, total = shift.new_zeros(len(self), p, p), shift.new_zeros(len(self), p, y.shape[1]), shift * 0
        for rows, wanted in self._chunks(x, y):
            centred = self.features(rows).double() - shift[:, None]
            sums += centred.mT @ centred
            cross += centred.mT @ (wanted.double() - mean_y)
            total += centred.sum(dim=1)
        for draw, offset in enumerate(total / len(x)):
            xx = sums[draw] / len(x) - torch.outer(offset, offset)
            moments = Covariances(shift[draw] + offset, mean_y, xx, cross[draw] / len(x), y.new_zeros(0, 0))
            weight, bias = solve_readout(moments)
            self.weight[draw], self.bias[draw] = weight.float(), bias.float()

    def descend(self, x: Tensor, y: Tensor, unit: float, steps: int, generators: Sequence[torch.Generator]) -> None:
        """Adam on ‖ŷ − y‖² from where the draws are, with a rate that falls to zero along a cosine.

        Adam moves all parameters alike, while features and outputs of different layers differ in scale by orders of
        magnitude. So every projection is trained in units of its norm at the start, and the readout is one between
        features of mean zero and unit variance and outputs of unit mean square.

        Args:
            unit: root mean square of what the layer itself has to give.
            generators: of the rows that each draw sees, 256 a step.
        """
        mean, scale = self._standardisation(x)
        norms = {name: self._row_norms(name) for name in self.trained}
        free = {name: self.parameters[name] / norms[name] for name in self.trained}
        weight = self.weight / (scale * unit)
        bias = (self.bias + (self.weight @ mean.mT)[..., 0]) / unit
        tensors = [tensor.requires_grad_() for tensor in (*free.values(), weight, bias)]
        total = len(self) / y.square().mean()
        optimizer = torch.optim.Adam(tensors, lr=LEARNING_RATE, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + math.cos(math.pi * n / steps)) / 2)
        for _ in range(steps):
            rows = torch.stack([torch.randint(len(x), (BATCH_ROWS,), generator=one) for one in generators])
            features = self.features(x[rows], self.parameters | {name: free[name] * norms[name] for name in free})
            given = torch.baddbmm(bias[:, None], (features - mean) * scale, weight.mT)
            loss = (self.activation(unit * given) - y[rows]).square().mean() * total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self.parameters |= {name: (free[name] * norms[name]).detach() for name in free}
        self.weight = (weight * scale * unit).detach()
        self.bias = (bias * unit).detach() - (self.weight @ mean.mT)[..., 0]

    def state(self) -> list[Tensor]:
        """Copies of all parameters."""
        return [tensor.detach().clone() for tensor in (*self.parameters.values(), self.weight, self.bias)]

    def keep(self, state: Sequence[Tensor], where: Tensor) -> None:
        """Go back to a former state in the draws where a mask (s,) says so."""
        tensors = (*self.parameters.values(), self.weight, self.bias)
        for tensor, before in zip(tensors, state, strict=True):
            tensor[where] = before[where]

    @torch.no_grad()
    def _standardisation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of every feature, (s, 1, p), over some of the rows."""
        features = self.features(x[: self._chunk_rows])
        deviation = features.std(dim=1, keepdim=True)
        least = 1e-3 * deviation.amax(dim=2, keepdim=True).clamp(min=1e-30)
        return features.mean(dim=1, keepdim=True), 1 / deviation.clamp(min=least)

    def _row_norms(self, name: str) -> Tensor:
        """Norms of the projections that a parameter, their matrix or their constants, belongs to."""
        matrix = self.parameters[name.removesuffix("bias").removesuffix("weight") + "weight"]
        norms = torch.linalg.vector_norm(matrix, dim=2, keepdim=True).clamp(min=1e-30)
        return norms if self.parameters[name].ndim == 3 else norms[..., 0]

    @property
    def _chunk_rows(self) -> int:
        return max(1, CHUNK_VALUES // (len(self) * max(self.weight.shape[1:])))

    def _chunks(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(x.split(self._chunk_rows), y.split(self._chunk_rows), strict=True)
