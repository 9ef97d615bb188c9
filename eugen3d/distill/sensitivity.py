"""What a network loses when one layer alone is replaced, for every kind and size at once: one pass over the rows.

Where all layers before it are the teacher's, everything follows from one set of moments. Ranks are nested: the best
matrix of rank r is the first r of the strongest directions. Features are nested too, in the order in which they
are picked, and since they are the layer's own neurons, the regression on them is a part of the outputs' covariance.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from eugen3d.distill.fit import FieldLoss
from eugen3d.distill.layerwise import picked_neurons, reader_metric
from eugen3d.distill.moments import Covariances
from eugen3d.distill.network import Batch, Network
from eugen3d.distill.problem import LayerProblem
from eugen3d.distill.solve import reduced_rank_regression, solve_readout
from eugen3d.layers import EUGenConfig, EUGenLinear, KindConfig, LowRankConfig, LowRankLinear


class NestedSolutions:
    """The closed forms of one layer of a teacher, of all sizes.

    Args:
        teacher: the trained network, dense.
        name: the layer's site.
        batches: what the network is run on.
        options: low rank, and EUGen features of order 1 without the norm, with the layer's own activation inside.

    Raises:
        ValueError: the rows are too few, or hold values that are not finite.
    """

    @torch.no_grad()
    def __init__(self, teacher: Network, name: str, batches: Iterable[Batch], options: Sequence[KindConfig]) -> None:
        problem = LayerProblem(teacher, teacher, name, batches)
        moments = problem.moments()
        self.dense, self.outputs = problem.dense, moments.outputs
        self.mean_input, self.mean_target = moments.linear.mean_x, moments.linear.mean_y
        ranks = [option.rank for option in options if isinstance(option, LowRankConfig)]
        counts = [option.num_features for option in options if isinstance(option, EUGenConfig)]
        if ranks:
            metric = reader_metric(problem, moments)
            self.up, self.down, _ = reduced_rank_regression(moments.linear, max(ranks), metric=metric)
        if counts:
            self.picked = picked_neurons(problem, moments, max(counts), "picked")

    @torch.no_grad()
    def layer(self, option: KindConfig) -> nn.Module:
        """The layer of one size.

        Raises:
            TypeError: an option of another kind.
        """
        dense = self.dense
        like = {"device": dense.weight.device, "dtype": dense.weight.dtype, "generator": torch.Generator()}
        if isinstance(option, LowRankConfig):
            low_rank = LowRankLinear.from_config(option, dense.in_features, dense.out_features, **like)
            up, down = self.up[:, : option.rank], self.down[: option.rank]
            _set(low_rank.up, up, self.mean_target - up @ (down @ self.mean_input))
            _set(low_rank.down, down, None)
            return low_rank
        if not isinstance(option, EUGenConfig):
            raise TypeError(f"{type(option).__name__} is not nested, expected low rank or EUGen features")
        layer = EUGenLinear.from_config(option, dense.in_features, dense.out_features, **like)
        own = self.picked[: option.num_features]
        projection = layer.features.projection
        _set(projection, dense.weight[own], None if dense.bias is None else dense.bias[own])
        weight, bias = solve_readout(self._features(own))
        _set(layer.readout, weight, bias)
        return layer

    def _features(self, own: Tensor) -> Covariances:
        """Some of the outputs against all of them."""
        mean, whole = self.outputs.mean_x, self.outputs.xx
        return Covariances(mean[own], mean, whole[own][:, own], whole[own], whole)


def layer_losses(
    teacher: Network, name: str, batches: Iterable[Batch], options: Sequence[KindConfig], loss: FieldLoss
) -> dict[KindConfig, float]:
    """What a network loses by every option at one site, at all rows of the loss."""
    solutions = NestedSolutions(teacher, name, batches, options)
    losses: dict[KindConfig, float] = {}
    for option in options:
        student = teacher.copy()
        student.place(name, solutions.layer(option), option)
        losses[option] = loss.of(student)
    return losses


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Fill the first rows and columns of a dense layer, and leave nothing in the rest of it."""
    linear.weight.zero_()
    linear.weight[: weight.shape[0], : weight.shape[1]] = weight.to(linear.weight)
    if linear.bias is not None:
        linear.bias.zero_()
        if bias is not None:
            linear.bias[: len(bias)] = bias.to(linear.bias)
