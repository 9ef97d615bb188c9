"""Trained layers whose activations `eugen3d bench approximation` approximates.

- nerf: trunk layers of a teacher run's fine field, at rows drawn as `eugen3d distill` draws them.
- sdf: a layer of a softplus network fitted to an analytic signed distance, the union of a sphere and a box, as in iSDF
  (β = 100, encoded positions).
- siren: a layer of a sine network (Sitzmann et al. 2020) fitted to the same distance.
- synthetic-relu, synthetic-softplus: f(W x) of Gaussian rows and weights, the setting of EUGens (2025), Theorems 3.1 to
  3.3. The sizes are ours.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from torch import Tensor, nn

from eugen3d.cli.errors import UsageError
from eugen3d.cli.runs import load_run
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.cli.teachers import teacher_of
from eugen3d.distill import LayerProblem, Network
from eugen3d.distill.approximation import Activations
from eugen3d.fields.nerf import FrequencyEncoding
from eugen3d.layers import SineLinear

TargetName = Literal["nerf", "sdf", "siren", "synthetic-relu", "synthetic-softplus"]

BATCH_ROWS = 2048
SOFTPLUS_BETA = 100
MEASURED_LAYER = 2
"""The layer of the small networks whose activations are taken; it sees those of two others."""


@dataclass(frozen=True)
class TargetConfig:
    """Where activations come from."""

    load_config: Path
    layers: tuple[int, ...]
    """Trunk layers of the teacher."""
    sampling: SamplingConfig
    num_rows: int
    width: int
    """Of the networks that are made here."""
    train_steps: int
    """Of these."""
    seed: int


@torch.no_grad()
def activations_of(name: TargetName, config: TargetConfig) -> dict[str, Activations]:
    """The rows of a target by the name that result files have for it; "nerf" is one for every layer."""
    assert name in get_args(TargetName)
    if name == "nerf":
        return _teacher(config)
    generator = torch.Generator().manual_seed(config.seed)
    if name == "sdf":
        return {name: _network(_sdf_layers(config.width), config, generator)}
    if name == "siren":
        return {name: _network(_siren_layers(config.width, generator), config, generator)}
    x = torch.randn(config.num_rows, config.width, generator=generator)
    weight = torch.randn(config.width, config.width, generator=generator) / config.width**0.5
    if name == "synthetic-relu":
        return {name: Activations(x, x @ weight.T, F.relu, "relu")}
    return {name: Activations(x, x @ weight.T, F.softplus, "softplus")}


def signed_distance(points: Tensor) -> Tensor:
    """Distance (n, 1) to the union of a sphere of radius 0.4 and a box, negative inside, at points (n, 3)."""
    sphere = torch.linalg.vector_norm(points - points.new_tensor([0.3, 0.1, 0.0]), dim=1) - 0.4
    beyond = (points - points.new_tensor([-0.3, -0.1, 0.1])).abs() - points.new_tensor([0.35, 0.25, 0.45])
    box = torch.linalg.vector_norm(beyond.clamp(min=0), dim=1) + beyond.amax(dim=1).clamp(max=0)
    return torch.minimum(sphere, box)[:, None]


def _teacher(config: TargetConfig) -> dict[str, Activations]:
    run = load_run(config.load_config, "cpu")
    teacher, manager = teacher_of(run), run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    network = teacher.networks()["fine"]
    names = {index: _square_layer(config.load_config, network, index) for index in config.layers}
    rows = sample_rows(manager, teacher, config.sampling, config.num_rows, config.seed)["fine"][: config.num_rows]
    found = {}
    for index, name in names.items():
        parts = list(LayerProblem(network, network, name, rows.batches()).chunks())
        x, z = (torch.cat(part).float() for part in zip(*parts, strict=True))
        found[f"nerf.trunk.{index}"] = Activations(x, z, F.relu, "relu")
    return found


def _square_layer(path: Path, network: Network, index: int) -> str:
    name = f"trunk.{index}"
    layer = network.layer(name) if name in network.sites else None
    if not isinstance(layer, nn.Linear) or layer.in_features != layer.out_features:
        raise UsageError(f"--layers {index}: is no dense trunk layer of {path} that is as wide as its input")
    return name


def _sdf_layers(width: int) -> nn.Sequential:
    encoding = FrequencyEncoding(6)
    widths = [encoding.out_dim, width, width, width, width]
    layers = [nn.Sequential(nn.Linear(a, b), nn.Softplus(beta=SOFTPLUS_BETA)) for a, b in pairwise(widths)]
    return nn.Sequential(nn.Sequential(encoding, *layers[0]), *layers[1:], nn.Linear(width, 1))


def _siren_layers(width: int, generator: torch.Generator) -> nn.Sequential:
    first = SineLinear(3, width, position="first", generator=generator)
    hidden = [SineLinear(width, width, generator=generator) for _ in range(3)]
    return nn.Sequential(first, *hidden, nn.Linear(width, 1))


def _network(layers: nn.Sequential, config: TargetConfig, generator: torch.Generator) -> Activations:
    """Fit a network to the signed distance and see what its measured layer sees."""
    with torch.no_grad():
        for linear in (part for part in layers.modules() if type(part) is nn.Linear):
            if not any(isinstance(part, SineLinear) and part.linear is linear for part in layers):
                bound = (6 / linear.in_features) ** 0.5
                linear.weight.copy_((2 * torch.rand(linear.weight.shape, generator=generator) - 1) * bound)
                linear.bias.zero_()
    rate = 1e-4 if isinstance(layers[0], SineLinear) else 1e-3
    optimizer = torch.optim.Adam(layers.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(config.train_steps):
            points = 2 * torch.rand(BATCH_ROWS, 3, generator=generator) - 1
            loss = (layers(points) - signed_distance(points)).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x = layers[:MEASURED_LAYER](2 * torch.rand(config.num_rows, 3, generator=generator) - 1)
    measured = layers[MEASURED_LAYER]
    if isinstance(measured, SineLinear):
        return Activations(x, measured.omega_0 * measured.linear(x), torch.sin, "sine")
    assert isinstance(measured, nn.Sequential)
    return Activations(x, measured[0](x), measured[1], "softplus", SOFTPLUS_BETA)
