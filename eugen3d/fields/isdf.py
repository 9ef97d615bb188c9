"""The iSDF field: encoded positions through a trunk with one skip to a signed distance.

    e(x) = [x, sin(2⁰ Dx), …, sin(2^{L−1} Dx), cos(2⁰ Dx), …, cos(2^{L−1} Dx)],    x = input_scale · position
    distance = output_scale · head(trunk(e(x)))                                  (Ortiz et al. 2022, section IV)

The rows of D are 21 directions of an icosahedron, which see the space more evenly than its axes do. Every layer of the
trunk ends in softplus(100 u)/100, so that the gradient in the position has a gradient itself, which the eikonal loss
takes. Every layer is of the kind that its configuration chooses; in training a readout is merged with what reads it.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eugen3d.layers import (
    Deferred,
    EUGenConfig,
    KindConfig,
    LayerConfig,
    LayerStack,
    LinearConfig,
    Link,
    fold_links,
    make_layer,
)


@dataclass(frozen=True)
class IsdfFieldConfig:
    """Shape of an iSDF field; the defaults are the paper's network with two EUGen layers."""

    num_layers: int = 6
    """Hidden layers of the trunk."""
    layer_width: int = 256
    """Width of the trunk."""
    skip: int = 3
    """The layer before which the encoded position is concatenated again; 0 for no skip."""
    num_frequencies: int = 6
    """L: octaves of the encoding."""
    input_scale: float = 0.0594
    """What positions in metres are multiplied by; 2π/(2^{L−1} · input_scale) is the finest period, 3.3 m by default."""
    output_scale: float = 0.14
    """Metres that an output of one is."""
    layer: LayerConfig = LayerConfig("eugen", EUGenConfig(128, phi="softplus-100", use_norm=False))  # noqa: RUF009 (frozen)
    """Kind of the replaced layers."""
    replaced_layers: tuple[int, ...] = (3, 4)
    """Indices of the trunk's layers that are of that kind; the others are dense."""
    merged: bool = False
    """Whether the field is kept in its folded form: thinner, cheaper to train, no longer over-parametrised."""

    def __post_init__(self) -> None:
        out_of_range = [index for index in self.replaced_layers if not 0 <= index < self.num_layers]
        if out_of_range:
            raise ValueError(f"replaced_layers has {out_of_range}, expected indices of 0 to {self.num_layers - 1}")
        if not 0 <= self.skip < self.num_layers:
            raise ValueError(f"skip is {self.skip}, expected 0 to {self.num_layers - 1}")
        for name in ("input_scale", "output_scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")

    def layer_at(self, index: int) -> KindConfig:
        """The configuration of trunk layer `index`."""
        return self.layer.chosen if index in self.replaced_layers else LinearConfig()


def icosahedron_directions() -> Tensor:
    """The 21 unit directions, (21, 3) float64, of an icosahedron's vertices and edges, one of every opposite pair."""
    golden = (1 + math.sqrt(5)) / 2
    vertex = torch.tensor([golden, 0.0, 1.0], dtype=torch.float64) / math.sqrt(golden**2 + 1)
    edge = torch.tensor([golden / 2, 0.5, 1 / (2 * golden)], dtype=torch.float64)
    signs = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]], dtype=torch.float64)
    seeds = [torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), vertex * signs[:2], edge * signs]
    return torch.cat([seed.roll(shift, dims=1) for seed in seeds for shift in range(3)])


class IcosahedralEncoding(nn.Module):
    """Fourier features along 21 directions: (..., 3) → (..., 3 + 42·L), the coordinates themselves first."""

    directions: Tensor
    frequencies: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        directions = icosahedron_directions().float()
        self.out_dim = 3 + 2 * len(directions) * num_frequencies
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("frequencies", 2.0 ** torch.arange(num_frequencies), persistent=False)

    def forward(self, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch out_dim"]:
        along = x @ self.directions.T
        angles = (along[..., None, :] * self.frequencies[:, None]).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class IsdfField(nn.Module):
    """Ortiz et al.'s field with hidden layers of a chosen kind.

    Dense layers start as iSDF's do: Xavier normal weights, biases in U(±1/√d).

    Shape: positions (n, 3) in metres → signed distance (n,) in metres, negative behind surfaces.
    """

    def __init__(self, config: IsdfFieldConfig) -> None:
        super().__init__()
        self.config = config
        self.encode = IcosahedralEncoding(config.num_frequencies)
        encoded, width = self.encode.out_dim, config.layer_width
        skips = {config.skip} - {0}
        in_dims = [encoded, *(width + encoded * (index in skips) for index in range(1, config.num_layers))]
        layers = [
            make_layer(config.layer_at(index), in_dim, width, "softplus-100") for index, in_dim in enumerate(in_dims)
        ]
        self.trunk = LayerStack(layers, skips)
        self.head = nn.Sequential(nn.Linear(width, 1))
        for chain in (*layers, self.head):
            if isinstance(linear := chain[0], nn.Linear):
                _start_as_published(linear)
        if config.merged:
            self.fold_()

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        encoded = self.encode(positions * self.config.input_scale)
        if torch.is_grad_enabled():
            outputs = Deferred.of(encoded).through(self.trunk).through(self.head).form()
        else:  # folded where it is evaluated often
            outputs = self.head(self.trunk(encoded))
        return self.config.output_scale * outputs.squeeze(-1)

    def links(self) -> list[Link]:
        """Every chain of the field with the chains that take its output and the columns where they take it."""
        last = self.trunk[-1]
        assert isinstance(last, nn.Sequential)
        return [*self.trunk.links(), (last, [(self.head, slice(None))])]

    def fold_(self) -> None:
        """Fold in place: every readout is merged into the layer that takes it (see `eugen3d.layers.fold`)."""
        trunk = [chain for chain in self.trunk if isinstance(chain, nn.Sequential)]
        fold_links([*trunk, self.head], self.links)


def distance_and_gradient(
    network: nn.Module, positions: Float[Tensor, "n 3"], create_graph: bool = False
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
    """Signed distances and their gradients in the positions.

    Args:
        network: an `IsdfField`, or any module that takes positions to one number each.
        create_graph: whether the gradient can be differentiated itself, as a loss on it takes.
    """
    with torch.enable_grad():
        x = positions.detach().requires_grad_()
        distance = network(x)
        (gradient,) = torch.autograd.grad(distance.sum(), x, create_graph=create_graph)
    return (distance, gradient) if create_graph else (distance.detach(), gradient)


@torch.no_grad()
def _start_as_published(linear: nn.Linear) -> None:
    nn.init.xavier_normal_(linear.weight)
    if linear.bias is not None:
        nn.init.uniform_(linear.bias, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))
