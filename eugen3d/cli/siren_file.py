"""A network that stands for a signal as one small file: folded weights in safetensors, the format in its header."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eugen3d.cli.errors import UsageError, first_line
from eugen3d.datasets.signals import ShapeFormat, SignalFormat
from eugen3d.layers.packed import PackedChain, Precision, pack_chain, unpack_chain
from eugen3d.runtime import Backend, build

SUFFIX = ".safetensors"
VERSION = "1"
_FORMATS = {"sampled": SignalFormat, "shape": ShapeFormat}


@dataclass
class PackedSiren:
    """A network read from such a file."""

    chain: nn.Sequential
    signal: SignalFormat | ShapeFormat
    """What it stands for."""
    runtime: Backend = "eager"
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.chain = self.chain.to(self.device)
        self._evaluate = build(self.chain, self.runtime)

    @torch.no_grad()
    def values_at(self, coordinates: Tensor) -> Tensor:
        """Values (n, channels) at coordinates (n, d) in [-1, 1]."""
        outputs = self._evaluate(coordinates)
        assert isinstance(outputs, Tensor)
        return outputs


def encode_packed(network: nn.Module, signal: SignalFormat | ShapeFormat, precision: Precision) -> bytes:
    """The content of the file of a folded network.

    Raises:
        ValueError: a parameter cannot be stored.
    """
    packed = pack_chain(network, precision)
    kind = "shape" if isinstance(signal, ShapeFormat) else "sampled"
    header = {"eugen3d": VERSION, "steps": json.dumps(packed.steps), "precision": precision}
    header |= {"signal": json.dumps({"format": kind, **dataclasses.asdict(signal)})}
    return safetensors.torch.save(packed.tensors, header)


def read_packed(path: Path, device: torch.device, runtime: Backend = "eager") -> PackedSiren:
    """Read such a file.

    Raises:
        UsageError: it is missing, is no such file or is broken; the message names it.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path}: not found, expected a file of `eugen3d compress`") from None
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path}: cannot be read ({first_line(error)}), expected a file of `eugen3d compress`"
        ) from None
    if header.get("eugen3d") != VERSION:
        raise UsageError(f"{path}: holds other tensors, expected a file of `eugen3d compress`, version {VERSION}")
    try:
        signal = _signal(json.loads(header["signal"]))
        chain = unpack_chain(PackedChain(json.loads(header["steps"]), tensors))
        return PackedSiren(chain, signal, runtime, device)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is broken ({first_line(error)}), expected a file of `eugen3d compress`") from None


def _signal(values: dict[str, Any]) -> SignalFormat | ShapeFormat:
    kind = _FORMATS[values.pop("format")]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
