"""Depth images in few bytes, without loss: most come from 16-bit sensors, whose neighbouring pixels are alike."""

import zlib
from typing import TypedDict

import torch
from torch import Tensor

LEVEL = 1
"""zlib's; more takes several times as long for a few percent."""
MAX_VALUES = 1 << 16


class PackedDepth(TypedDict):
    """A depth image as plain values and tensors of bytes."""

    height: int
    width: int
    values: Tensor
    """(n,) float32, what occurs, in ascending order; empty where that is more than 16 bits can count."""
    packed: Tensor
    """(bytes,) uint8."""


def pack_depth(depth: Tensor) -> PackedDepth:
    """A depth image (height, width) float32 packed, on the CPU; `unpack_depth` gives it back bit by bit.

    Pixels are numbers of values, of which differences along rows are taken, the low bytes of all before the high ones.
    """
    height, width = depth.shape
    values, numbers = torch.unique(depth.cpu().contiguous(), return_inverse=True)
    if len(values) <= MAX_VALUES:
        difference = numbers.diff(dim=1, prepend=torch.zeros(height, 1, dtype=numbers.dtype)) & 0xFFFF
        content = torch.stack([difference & 0xFF, difference >> 8]).to(torch.uint8)
    else:
        values, content = values[:0], _planes(depth.cpu())
    packed = bytearray(zlib.compress(content.numpy().tobytes(), LEVEL))
    return PackedDepth(height=height, width=width, values=values, packed=torch.frombuffer(packed, dtype=torch.uint8))


def unpack_depth(packed: PackedDepth) -> Tensor:
    """The depth image (height, width) float32.

    Raises:
        ValueError: it is damaged.
    """
    height, width = packed["height"], packed["width"]
    try:
        content = bytearray(zlib.decompress(packed["packed"].numpy().tobytes()))
        planes = torch.frombuffer(content, dtype=torch.uint8).view(-1, height, width)
        if not len(packed["values"]):
            return _from_planes(planes)
        low, high = planes.long()
        return packed["values"][((low | high << 8).cumsum(dim=1)) & 0xFFFF]
    except (zlib.error, RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"a packed depth image of {width}x{height} is damaged ({error})") from None


def _planes(depth: Tensor) -> Tensor:
    """The bytes (4, height, width) of float32."""
    return depth.contiguous().view(torch.uint8).view(*depth.shape, 4).permute(2, 0, 1).contiguous()


def _from_planes(planes: Tensor) -> Tensor:
    return planes.permute(1, 2, 0).contiguous().view(torch.float32).squeeze(-1)
