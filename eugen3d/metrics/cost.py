"""What a field costs to evaluate: parameters, and floating-point operations per sample.

Counted are the products with the matrices of the field's dense layers, two operations (multiply, add) each.
Left out are biases, activations, norms, encodings, sampling and compositing, which are linear in the width where the
matrices are quadratic. Pass folded fields: the numbers are those of inference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from eugen3d.layers import kind_of, num_products


@dataclass(frozen=True)
class Cost:
    """Cost of inference."""

    num_parameters: int
    """Parameters of all fields' layers, each shared one counted once; grids and embeddings are none."""
    flops_per_sample: float
    """Operations of all field evaluations of one ray, divided by the number of evaluations."""


def flops_per_row(module: nn.Module) -> int:
    """Operations that one row takes in a module's dense layers, each of which is applied once."""
    return 2 * num_products(module)


def dense_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module's layers of whatever kind; those of hash grids, embeddings and the like are none."""
    layers = (part for part in module.modules() if kind_of(part) is not None)
    return list({id(p): p for layer in layers for p in layer.parameters()}.values())


def field_cost(fields: Mapping[str, nn.Module], samples_per_ray: Mapping[str, int]) -> Cost:
    """Cost of rendering with folded fields.

    Args:
        fields: the folded fields by name.
        samples_per_ray: at how many samples of a ray the field of that name is evaluated.
    """
    if fields.keys() != samples_per_ray.keys():
        raise ValueError(f"samples_per_ray names {sorted(samples_per_ray)}, expected {sorted(fields)}")
    flops = sum(samples_per_ray[name] * flops_per_row(field) for name, field in fields.items())
    parameters = {id(p): p.numel() for field in fields.values() for p in dense_parameters(field)}
    return Cost(sum(parameters.values()), flops / sum(samples_per_ray.values()))


def nerf_samples_per_ray(num_coarse_samples: int, num_importance_samples: int) -> dict[str, int]:
    """Evaluations per ray of a coarse and a fine field behind nerfstudio's `PDFSampler`.

    It draws `num_importance_samples + 1` bin edges and sorts them among the `num_coarse_samples + 1` that were there,
    so the fine field is evaluated in `num_coarse_samples + num_importance_samples + 1` bins.
    """
    return {"coarse": num_coarse_samples, "fine": num_coarse_samples + num_importance_samples + 1}
