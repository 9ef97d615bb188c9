"""Cost: counted by hand, and against what torch counts while a field is evaluated."""

import copy

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.ray_samplers import PDFSampler, UniformSampler
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eugen3d.fields import NerfField, NerfFieldConfig
from eugen3d.layers import fold
from eugen3d.metrics.cost import field_cost, flops_per_row, nerf_samples_per_ray


def test_a_hand_computed_field() -> None:
    coarse, fine = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Linear(3, 5, bias=False)
    assert (flops_per_row(coarse), flops_per_row(fine)) == (2 * (12 + 8), 2 * 15)
    cost = field_cost({"coarse": coarse, "fine": fine}, {"coarse": 1, "fine": 3})
    assert cost.num_parameters == (16 + 10) + 15
    assert cost.flops_per_sample == (40 + 3 * 30) / 4
    shared = field_cost({"coarse": fine, "fine": fine}, {"coarse": 1, "fine": 3})
    assert (shared.num_parameters, shared.flops_per_sample) == (15, 30)
    with pytest.raises(ValueError, match=r"names \['fine'\], expected \['coarse', 'fine'\]"):
        field_cost({"coarse": coarse, "fine": fine}, {"fine": 3})


def test_it_counts_what_torch_counts_while_the_folded_field_is_evaluated(field_config: NerfFieldConfig) -> None:
    field = NerfField(field_config)
    folded = fold(copy.deepcopy(field))
    counted = []
    for module in (field, folded):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.rand(7, 3), torch.rand(7, 3))
        counted.append(counter.get_total_flops())
        assert 7 * flops_per_row(module) == counted[-1]
    assert counted[1] < counted[0]


def test_samples_per_ray_are_those_that_nerfstudio_draws() -> None:
    ones = torch.ones(2, 1)
    rays = RayBundle(torch.zeros(2, 3), torch.eye(3)[:2], ones, nears=2 * ones, fars=6 * ones)
    coarse = UniformSampler(num_samples=8)(rays)
    fine = PDFSampler(num_samples=16)(rays, coarse, torch.rand(2, 8, 1))
    counts = nerf_samples_per_ray(8, 16)
    assert (counts["coarse"], counts["fine"]) == (coarse.shape[1], fine.shape[1]) == (8, 25)
