"""A folded chain on an NVIDIA GPU, handed over to the fully fused networks of tiny-cuda-nn (Müller et al. 2021).

Such a network has hidden layers of one width, ReLU between them, no biases, and half precision throughout. Narrower
layers are padded with zeros. A constant input of 1 gives the first bias; one hidden neuron more hands it on, since
ReLU(1) = 1, and its weights are the later biases.

Its parameters are one vector: the matrices (outputs, inputs) in order, each row after row, with the inputs of the
first and the outputs of the last one padded to multiples of `ALIGNMENT`.
"""

import contextlib
import importlib
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eugen3d.layers.features import Phi, input_norm
from eugen3d.layers.maps import chain_maps, is_features
from eugen3d.layers.structure import is_affine_map
from eugen3d.runtime.chains import flat_maps
from eugen3d.runtime.machine import why_no_cuda
from eugen3d.runtime.steps import activation_of, why_no_step

WIDTHS = (16, 32, 64, 128)
"""Hidden widths that tiny-cuda-nn has fully fused networks for."""
ALIGNMENT = 16
MAX_HALF = torch.finfo(torch.float16).max


class TcnnUnavailable(RuntimeError):  # noqa: N818 (as NativeUnavailable)
    """tiny-cuda-nn cannot be had here, or cannot evaluate this module; the message says why, in one line."""


class TcnnChain(nn.Module):
    """A chain of dense layers and EUGen features of order 1, evaluated without gradients by tiny-cuda-nn.

    Inputs, weights, activations and, inside the network, sums are float16: outputs agree with eager to a relative error
    of 1e-2 while all of them stay well below 65,504. The weights are copied: later changes to the chain are not seen.

    Args:
        chain: at least two dense layers or features of order 1, each but the last with ReLU and at most 128 wide, or
            127 where a later one has a bias; the last with ReLU or none. The first may project its input's norm.

    Raises:
        TcnnUnavailable: no tiny-cuda-nn or no GPU, or the chain does not fit.

    Shape: (..., in_features) → (..., out_features), in the input's dtype.
    """

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        tcnn = load_tcnn()
        layers = _layers(chain)
        device = layers[0].weight.device
        for parameter in chain.parameters():
            _require_gpu(parameter.device)
        self.in_features, self.out_features = layers[0].weight.shape[1], layers[-1].weight.shape[0]
        self.has_norm, self.norm_factor = layers[0].norm_weight is not None, layers[0].norm_factor
        self.has_constant = any(layer.bias is not None for layer in layers)
        self.width = _width(layers)
        columns = self.in_features + self.has_norm + self.has_constant
        config = {
            "otype": "FullyFusedMLP",
            "activation": "ReLU",
            "output_activation": "ReLU" if layers[-1].phi == "relu" else "None",
            "n_neurons": self.width,
            "n_hidden_layers": len(layers) - 1,
        }
        packed = _pack(layers, self.width, columns)
        if not packed.abs().max() <= MAX_HALF:
            raise TcnnUnavailable(f"a chain has a weight of {packed.abs().max():.3g}, expected at most {MAX_HALF:g}")
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.network = tcnn.Network(columns, self.out_features, config).requires_grad_(False)
        if self.network.params.shape != packed.shape:  # on GPUs before Turing it is another kind of network
            found = self.network.params.numel()
            raise TcnnUnavailable(f"tiny-cuda-nn has {found} parameters for a chain, expected {len(packed)}")
        self.network.params.data.copy_(packed)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the input has {x.shape[-1]} columns, expected {self.in_features}")
        device = self.network.params.device
        if x.device != device or not x.is_floating_point():
            raise ValueError(f"the input is {x.dtype} on {x.device}, expected floating point on {device}")
        rows = x.reshape(x.shape[:-1].numel(), self.in_features)
        if not len(rows):
            return x.new_empty(*x.shape[:-1], self.out_features)
        columns = [rows.float()]
        if self.has_norm:
            seen = rows if self.norm_factor is None else self.norm_factor(rows.to(self.norm_factor.weight.dtype))
            columns.append(input_norm(seen).float().clamp(max=MAX_HALF))  # an infinite one times a zero weight is NaN
        if self.has_constant:
            columns.append(torch.ones_like(columns[0][:, :1]))
        y = self.network(torch.cat(columns, dim=1) if len(columns) > 1 else columns[0])
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, hidden width {self.width}, torch.float16"


def make_tcnn(chain: nn.Sequential) -> nn.Module:
    """A `TcnnChain` in the place of a chain; a chain of one dense layer alone stays as it is.

    Raises:
        TcnnUnavailable: when tiny-cuda-nn cannot be had here, or the chain does not fit.
    """
    num_matrices = sum(activation_of(module) is None for module in chain_maps(chain))
    return chain if num_matrices == 1 else TcnnChain(chain)


def load_tcnn() -> ModuleType:
    """The module `tinycudann`, imported at first use.

    Raises:
        TcnnUnavailable: there is no CUDA device, or it is not installed.
    """
    if (reason := why_no_cuda()) is not None:
        raise TcnnUnavailable(reason)
    try:
        return importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:  # an OSError where it was built for other GPUs
        raise TcnnUnavailable(f"tinycudann cannot be imported ({error}), expected tiny-cuda-nn installed") from None


class _Layer(NamedTuple):
    """y = Φ(W x + b + ‖x‖ n), or ‖F x + f‖ in the norm's place where there is a factor."""

    weight: Tensor
    bias: Tensor | None
    phi: Phi
    norm_weight: Tensor | None = None
    norm_factor: nn.Linear | None = None


def _layers(chain: nn.Sequential) -> list[_Layer]:
    """The layers of a chain that fits."""
    try:
        maps = flat_maps(chain)
    except ValueError as error:
        raise TcnnUnavailable(str(error)) from None
    layers: list[_Layer] = []
    for index, module in enumerate(maps):
        if (reason := why_no_step(module, maps[:index], "tcnn")) is not None:
            raise TcnnUnavailable(reason)
        if is_affine_map(module):
            layers.append(_Layer(module.weight, module.bias, "identity"))
        elif is_features(module):
            if module.order > 1:
                raise TcnnUnavailable(f"a chain holds features of order {module.order}, expected order 1")
            if module.use_norm and layers:
                raise TcnnUnavailable("a chain projects a norm after its first layer, expected its input's alone")
            matrix = module.projection
            layers.append(_Layer(matrix.weight, matrix.bias, module.phi, module.norm_weight, module.norm_factor))
        elif (phi := activation_of(module)) is not None:
            layers[-1] = layers[-1]._replace(phi=phi)
    if len(layers) < 2:
        raise TcnnUnavailable(f"a chain has {len(layers)} dense layers, expected at least 2")
    for layer in layers[:-1]:
        if layer.phi != "relu":
            raise TcnnUnavailable(f"a chain has Φ = {layer.phi} between its layers, expected relu")
    if layers[-1].phi not in ("identity", "relu"):
        raise TcnnUnavailable(f"a chain ends in Φ = {layers[-1].phi}, expected relu or none")
    return layers


def _width(layers: list[_Layer]) -> int:
    """The narrowest network that holds the hidden layers and, where a later one has a bias, the constant."""
    hands_on = any(layer.bias is not None for layer in layers[1:])
    neurons = max(len(layer.weight) for layer in layers[:-1]) + hands_on
    if neurons > max(WIDTHS):
        constant = ", one of them for the biases" if hands_on else ""
        raise TcnnUnavailable(f"a chain takes {neurons} hidden neurons{constant}, expected at most {max(WIDTHS)}")
    return min(width for width in WIDTHS if width >= neurons)


def _pack(layers: list[_Layer], width: int, columns: int) -> Tensor:
    """All matrices as one float32 vector; the constant is the last column of the input and the last hidden neuron."""
    hands_on = any(layer.bias is not None for layer in layers[1:])
    matrices = []
    for index, layer in enumerate(layers):
        outputs, inputs = layer.weight.shape
        is_first, is_last = index == 0, index == len(layers) - 1
        shape = (_aligned(outputs) if is_last else width, _aligned(columns) if is_first else width)
        matrix = torch.zeros(shape, device=layer.weight.device)
        matrix[:outputs, :inputs] = layer.weight.detach()
        constant = columns - 1 if is_first else width - 1
        if layer.norm_weight is not None:
            matrix[:outputs, inputs] = layer.norm_weight.detach()
        if layer.bias is not None:
            matrix[:outputs, constant] = layer.bias.detach()
        if hands_on and not is_last:
            matrix[-1, constant] = 1
        matrices.append(matrix.flatten())
    return torch.cat(matrices)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _require_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise TcnnUnavailable(f"parameters on {device}, expected a CUDA device")
