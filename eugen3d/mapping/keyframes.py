"""The frames that a mapper keeps, so that what was seen once is not forgotten, and the choice of those it looks at."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.mapping.packed_depth import PackedDepth, pack_depth, unpack_depth
from eugen3d.mapping.rays import BLOCKS, rays_at


@dataclass(eq=False)
class Keyframe:
    """A frame with what is known of the field's loss on it."""

    frame: DepthFrame
    losses: Tensor
    """(64,), mean loss of the rays of every block of the image when last seen; ones before."""

    @cached_property
    def packed_depth(self) -> PackedDepth:
        """The frame's depth for a checkpoint; every checkpoint holds all keyframes, each is packed once."""
        return pack_depth(self.frame.depth)

    def update(self, blocks: Tensor, losses: Tensor) -> None:
        """Take in the losses (n,) of rays in blocks (n,); blocks without rays stay as they are."""
        sums = torch.zeros_like(self.losses).index_add_(0, blocks, losses)
        counts = torch.bincount(blocks, minlength=len(sums))
        self.losses = torch.where(counts > 0, sums / counts.clamp(min=1), self.losses)


class Keyframes:
    """Keyframes, and last the frame that is looked at now, which becomes one or is replaced by the next.

    Args:
        max_keyframes: how many are kept at most; the one with the least loss goes first, the last two stay.
    """

    def __init__(self, max_keyframes: int) -> None:
        self.max_keyframes = max_keyframes
        self.entries: list[Keyframe] = []
        self.last_is_keyframe = True

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, frame: DepthFrame) -> None:
        """Put a frame last, in the place of the last one if that is no keyframe. Its picture is not kept."""
        if not self.last_is_keyframe:
            self.entries.pop()
        elif len(self.entries) >= self.max_keyframes:
            del self.entries[int(_mean_losses(self.entries[:-1]).argmin())]
        losses = torch.ones(BLOCKS * BLOCKS, device=frame.depth.device)
        self.entries.append(Keyframe(dataclasses.replace(frame, rgb=None), losses))
        self.last_is_keyframe = False

    def draw_window(self, size: int, num_recent: int, generator: torch.Generator) -> list[Keyframe]:
        """The last frames and others, drawn without replacement with probabilities proportional to their losses."""
        if len(self.entries) <= size:
            return list(self.entries)
        older = self.entries[: len(self.entries) - num_recent]
        weights = _mean_losses(older).clamp(min=1e-12)
        drawn = torch.multinomial(weights, size - num_recent, generator=generator).tolist()
        return [older[index] for index in drawn] + self.entries[len(older) :]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and plain values."""
        entries = [
            {
                "name": str(entry.frame.name),
                "depth": dict(entry.packed_depth),
                "camera_to_world": entry.frame.camera_to_world,
                "intrinsics": [float(value) for value in entry.frame.intrinsics],
                "time": None if entry.frame.time is None else float(entry.frame.time),
                "losses": entry.losses,
            }
            for entry in self.entries
        ]
        return {"entries": entries, "last_is_keyframe": bool(self.last_is_keyframe)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over a state; frames go to a device."""
        self.entries = []
        for values in state["entries"]:
            fx, fy, cx, cy = values["intrinsics"]
            frame = DepthFrame(
                values["name"],
                unpack_depth(values["depth"]),
                values["camera_to_world"],
                (fx, fy, cx, cy),
                time=values["time"],
            )
            entry = Keyframe(frame_to(frame, device), values["losses"].to(device))
            entry.packed_depth = values["depth"]
            self.entries.append(entry)
        self.last_is_keyframe = state["last_is_keyframe"]


def _mean_losses(entries: list[Keyframe]) -> Tensor:
    """Per keyframe the mean loss of its blocks, on the CPU (Ortiz et al. 2022, section III-D)."""
    return torch.stack([entry.losses.mean() for entry in entries]).cpu()


def seen_points(entries: Iterable[Keyframe], pixel_step: int) -> Tensor:
    """The points (n, 3) that frames measured, metres, at every `pixel_step`-th row and column."""
    seen = []
    for entry in entries:
        thinned = entry.frame.depth[::pixel_step, ::pixel_step]
        rows, columns = (pixel_step * (thinned > 0).nonzero()).unbind(dim=1)
        rays = rays_at(entry.frame, rows, columns)
        seen.append(rays.origins + rays.depth[:, None] * rays.directions)
    return torch.cat(seen) if seen else torch.zeros(0, 3)


def frame_to(frame: DepthFrame, device: torch.device) -> DepthFrame:
    """A frame without its picture on a device; itself where it is there."""
    return dataclasses.replace(
        frame, depth=frame.depth.to(device), camera_to_world=frame.camera_to_world.to(device), rgb=None
    )


def why_unusable(frame: DepthFrame, min_depth: float, max_depth: float) -> str | None:
    """Why nothing can be learned from a frame, in a few words; None where something can."""
    if frame.depth.dim() != 2 or frame.camera_to_world.shape != (3, 4):
        shapes = f"depth {tuple(frame.depth.shape)} and pose {tuple(frame.camera_to_world.shape)}"
        return f"{shapes}, expected (height, width) and (3, 4)"
    if not frame.camera_to_world.isfinite().all():
        return "its pose is not finite"
    if not ((frame.depth > min_depth) & (frame.depth <= max_depth)).any():
        return f"it has no measurement between {min_depth} and {max_depth} m"
    return None
