"""Which maps of a chain are steps of the runtimes that evaluate whole chains, native and triton.

A step is a dense layer and its activation, or EUGen features: y = Φ(products(W x + b + ‖F x + f‖ n)), with the symbols
of `eugen3d.layers.features`.
"""

from collections.abc import Sequence

from torch import nn

from eugen3d.layers import Sine
from eugen3d.layers.features import Phi
from eugen3d.layers.maps import is_features
from eugen3d.layers.structure import has_hooks, is_affine_map


def why_no_step(module: nn.Module, before: Sequence[nn.Module], backend: str) -> str | None:
    """Why a map is no step of a backend after the maps before it in a run; None where it is one, or a step's Φ."""
    if any(has_hooks(part) for part in module.modules()):
        return f"a chain's {type(module).__name__} has hooks, which would not be called"
    if is_features(module):
        return None if module.down is None else "a chain holds features with a norm and factored projections"
    if is_affine_map(module):
        return None
    if activation_of(module) is None:
        return f"a chain holds {str(module).splitlines()[0]}, for which there is no {backend} step"
    follows = before and (is_affine_map(before[-1]) or (is_features(before[-1]) and before[-1].phi == "identity"))
    return None if follows else f"a chain's {type(module).__name__} does not follow a dense layer or features"


def activation_of(module: nn.Module) -> Phi | None:
    """The Φ that a module is, with torch's default settings (β = 100, too) and ω₀ = 1; None where it is none."""
    kinds: dict[type[nn.Module], Phi] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.Softplus: "softplus", Sine: "sine"}
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    if isinstance(module, nn.Softplus) and (module.beta != 1 or module.threshold != 20):
        return "softplus-100" if module.beta == 100 and module.threshold == 20 else None
    if isinstance(module, Sine) and module.omega_0 != 1:
        return None
    return kinds.get(type(module))
