"""Find the plain chains in a module and put something else that computes the same in their place."""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from eugen3d.layers import EUGenFeatures, EUGenLinear
from eugen3d.layers.fold import chain_maps, is_chain, is_dense


class CastChain(nn.Module):
    """A chain evaluated in a precision of its own: inputs are cast on the way in, outputs back to the input's dtype.

    Args:
        chain: dense layers, EUGen features and torch's activations; its parameters are cast in place.

    Raises:
        ValueError: when the chain holds anything else: an encoding's angles, say, do not survive bfloat16.
    """

    def __init__(self, chain: nn.Sequential, dtype: torch.dtype) -> None:
        super().__init__()
        for module in chain_maps(chain):
            is_activation = type(module).__module__ == nn.ReLU.__module__
            if not (is_dense(module) or isinstance(module, EUGenFeatures) or is_activation):
                raise ValueError(
                    f"dtype {dtype}: a chain holds {type(module).__name__}, expected layers and activations"
                )
        self.chain = chain.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x.to(self.dtype)).to(x.dtype)


def replace_chains(module: nn.Module, replace: Callable[[nn.Sequential], nn.Module]) -> nn.Module:
    """Replace every plain chain in a module, in place, and return it (a root that is a chain comes back replaced).

    A chain is an `nn.Sequential`, or an `EUGenLinear`, with a dense layer or features among its maps once nested
    chains are flattened; one dense layer is enough. The outermost one counts. A lone `nn.Linear` is a chain only at
    the root, since others may read its weight. A chain that stands at several places stays shared.

    Args:
        replace: takes the flattened chain, returns what stands in its place.

    Raises:
        ValueError: when the module has no chain, or a chain has hooks, which would be lost.
    """
    if is_dense(module) or isinstance(module, EUGenFeatures):
        module = nn.Sequential(module).train(module.training)
    replaced: dict[nn.Module, nn.Module] = {}

    def visit(part: nn.Module) -> nn.Module:
        if part not in replaced:
            replaced[part] = part
            if _is_plain_chain(part):
                if part._forward_hooks or part._forward_pre_hooks:
                    raise ValueError(f"a chain ({type(part).__name__}) has hooks, which would be lost")
                replaced[part] = replace(nn.Sequential(*chain_maps(part)))
            else:
                for name, child in part._modules.items():
                    part._modules[name] = child and visit(child)
        return replaced[part]

    root = visit(module)
    if all(new is old for old, new in replaced.items()):
        raise ValueError(f"{type(module).__name__} has no chain of dense layers (nn.Sequential)")
    return root


def _is_plain_chain(part: nn.Module) -> TypeGuard[nn.Sequential | EUGenLinear]:
    if not (is_chain(part) or isinstance(part, EUGenLinear)):
        return False
    return any(is_dense(module) or isinstance(module, EUGenFeatures) for module in chain_maps(part))
