"""What the networks of `eugen3d bench training` learn: rows with the outputs that they are to have.

- sdf: an analytic signed distance, of the union of a sphere and a box, at encoded positions in [−1, 1]³.
- nerf: opacity and colour, times the opacity, that the fine field of a teacher run has at rows drawn as
  `eugen3d distill` draws them; positions and directions are encoded as the field does it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from torch import Tensor

from eugen3d.cli.bench.approximation_targets import signed_distance
from eugen3d.cli.runs import load_run
from eugen3d.cli.teacher_rows import SamplingConfig, sample_rows
from eugen3d.cli.teachers import teacher_of
from eugen3d.fields import FrequencyEncoding, NerfField

TaskName = Literal["sdf", "nerf"]
ROWS_PER_CALL = 4096


@dataclass(frozen=True)
class Task:
    """Rows to train on and held-out ones."""

    inputs: Tensor
    """Shape (n, in_dim)."""
    outputs: Tensor
    """Shape (n, out_dim)."""
    held_out_inputs: Tensor
    held_out_outputs: Tensor


@torch.no_grad()
def make_task(name: TaskName, load_config: Path, num_rows: int, seed: int) -> Task:
    """Draw a task's rows, a fifth of them held out.

    Args:
        load_config: the teacher's config.yml, for the task nerf.
        num_rows: in all.
    """
    inputs, outputs = _sdf(num_rows, seed) if name == "sdf" else _nerf(load_config, num_rows, seed)
    held_out = len(inputs) // 5
    return Task(inputs[held_out:], outputs[held_out:], inputs[:held_out], outputs[:held_out])


def _sdf(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    points = 2 * torch.rand(num_rows, 3, generator=torch.Generator().manual_seed(seed)) - 1
    return FrequencyEncoding(6)(points), signed_distance(points)


def _nerf(load_config: Path, num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    run = load_run(load_config, "cpu")
    teacher, manager = teacher_of(run), run.pipeline.datamanager
    assert isinstance(manager, VanillaDataManager)
    network = teacher.networks()["fine"]
    field = network.module
    assert isinstance(field, NerfField)
    rows = sample_rows(manager, teacher, SamplingConfig(num_rays=8192), num_rows, seed)["fine"][:num_rows]
    inputs, outputs = [], []
    for (positions, directions), deltas in zip(
        rows.batches(ROWS_PER_CALL), rows.deltas.split(ROWS_PER_CALL), strict=True
    ):
        density, rgb = field(positions, directions)
        opacity = 1 - torch.exp(-density * deltas)
        inputs.append(torch.cat([field.encode_position(positions), field.encode_direction(directions)], dim=-1))
        outputs.append(torch.cat([opacity[:, None], opacity[:, None] * rgb], dim=-1))
    return torch.cat(inputs), torch.cat(outputs)
