"""SdfMapper: trains a field of signed distance while depth frames arrive (Ortiz et al. 2022)."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.fields import distance_and_gradient
from eugen3d.layers import fold
from eugen3d.mapping.bounds import find_bounds
from eugen3d.mapping.config import SdfMapperConfig
from eugen3d.mapping.keyframes import Keyframe, Keyframes, frame_to, why_unusable
from eugen3d.mapping.losses import sdf_losses
from eugen3d.mapping.rays import Rays, draw_rays, draw_samples
from eugen3d.mapping.render import render_depth

NUM_RECENT = 2
"""Frames at the end that every step of a stream looks at."""


class SdfMapper:
    """Trains a field on frames, one after the other, or on a set of them.

    `add_frame` does all that a frame is worth. Who has an optimizer of their own calls `begin` where `wants_frame()`
    says so, and descends along `losses()` else.

    Args:
        field: takes positions (n, 3) in metres to distances (n,); trained in place, on the device that it is on.
        seed: of all random draws.

    Attributes:
        num_frames: frames that were taken, those skipped not counted.
        num_skipped: frames from which nothing could be learned.
        num_steps: steps that were taken.
    """

    def __init__(self, field: nn.Module, config: SdfMapperConfig, seed: int = 0) -> None:
        self.field, self.config = field, config
        self.keyframes = Keyframes(config.keyframes.max_keyframes)
        self.num_frames = self.num_skipped = self.num_steps = self.steps_left = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._frozen: nn.Module | None = None
        self._is_settled = True

    @property
    def device(self) -> torch.device:
        """Where the field is."""
        return next(self.field.parameters()).device

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, for `step`; made when it is first asked for."""
        trained = [parameter for parameter in self.field.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.config.learning_rate, weight_decay=self.config.weight_decay)

    def add_frame(self, frame: DepthFrame) -> bool:
        """Take a frame and all the steps that it is worth; whether it became a keyframe."""
        if not self.begin(frame):
            return False
        while not self.wants_frame():
            self.step()
        return self.keyframes.last_is_keyframe

    def add_keyframes(self, frames: Iterable[DepthFrame]) -> None:
        """Take frames as keyframes, without a step: training on a set of frames instead of a stream."""
        for frame in frames:
            if self._take(frame):
                self.keyframes.last_is_keyframe = True

    def begin(self, frame: DepthFrame) -> bool:
        """Take a frame, the steps of which follow; whether it can be used. Skipped frames are counted and warned of."""
        was_keyframe = self.keyframes.last_is_keyframe
        if not self._take(frame):
            return False
        is_first = len(self.keyframes) == 1
        if was_keyframe and not is_first:
            self._freeze()
        self.keyframes.last_is_keyframe = is_first
        self.steps_left = self.config.num_first_steps if is_first else self.config.num_frame_steps
        self._is_settled = is_first
        return True

    def wants_frame(self) -> bool:
        """Whether the steps of the last frame are done; it is tested then, and as a keyframe it is worth more."""
        if self.steps_left == 0 and not self._is_settled:
            self._is_settled = True
            if self._is_news(self.keyframes.entries[-1].frame):
                self.keyframes.last_is_keyframe = True
                self.steps_left = self.config.num_keyframe_steps
        return self.steps_left == 0

    def step(self) -> dict[str, float]:
        """One step of the optimizer; the losses before it."""
        losses = self.losses(NUM_RECENT)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def losses(self, num_recent: int = NUM_RECENT) -> dict[str, Tensor]:
        """The means of the losses over a fresh batch; counts as a step, and what the losses say of frames is kept.

        Args:
            num_recent: frames at the end that are in every batch; 0 where no frame is newer than the others.

        Raises:
            ValueError: there is no frame yet.
        """
        if not len(self.keyframes):
            raise ValueError("the mapper has no frame yet, expected one")
        window = self.keyframes.draw_window(self.config.keyframes.window_size, num_recent, self._generator)
        parts = [self._draw(entry) for entry in window]
        rays = Rays.cat(parts)
        self.num_steps += 1
        self.steps_left = max(self.steps_left - 1, 0)
        samples = draw_samples(rays, self.config.rays, self._generator)
        distance, gradient = distance_and_gradient(self.field, samples.points.reshape(-1, 3), create_graph=True)
        shape = samples.depth.shape
        bounds = find_bounds(rays, samples, self.config.losses)
        losses = sdf_losses(distance.view(shape), gradient.view(*shape, 3), bounds, self.config.losses)
        of_rays = torch.stack([loss.detach() for loss in losses.values()]).sum(dim=0).mean(dim=1)
        for entry, part, of_frame in zip(window, parts, of_rays.split([len(p.depth) for p in parts]), strict=True):
            entry.update(part.blocks, of_frame)
        count = max(len(rays.depth), 1)  # no ray of a batch may be usable: no loss then, rather than NaN
        return {name: loss.sum() / (count * shape[1]) for name, loss in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that goes on from here needs, as tensors and plain values, less the configuration."""
        return {"field": self.field.state_dict(), "optimizer": self.optimizer.state_dict(), **self.progress()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another mapper of the same configuration was; strict."""
        self.field.load_state_dict(state["field"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.load_progress(state)

    def progress(self) -> dict[str, Any]:
        """The state less the field and the optimizer: for who keeps these elsewhere."""
        return {
            "frozen": None if self._frozen is None else self._frozen.state_dict(),
            "keyframes": self.keyframes.state_dict(),
            "generator": self._generator.get_state(),
            "is_settled": self._is_settled,
            **{name: getattr(self, name) for name in ("num_frames", "num_skipped", "num_steps", "steps_left")},
        }

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Go on where another mapper was, with the field as it is."""
        self._frozen = None
        if state["frozen"] is not None:
            self._freeze()
            assert self._frozen is not None
            self._frozen.load_state_dict(state["frozen"], strict=True)
        self.keyframes.load_state_dict(state["keyframes"], self.device)
        self._generator.set_state(state["generator"].cpu())
        self._is_settled = state["is_settled"]
        for name in ("num_frames", "num_skipped", "num_steps", "steps_left"):
            setattr(self, name, state[name])

    def _take(self, frame: DepthFrame) -> bool:
        reason = why_unusable(frame, self.config.rays.min_depth, self.config.rays.max_depth)
        if reason is not None:
            self.num_skipped += 1
            warnings.warn(f"{frame.name}: skipped, {reason} ({self.num_skipped} so far)", stacklevel=3)
            return False
        self.keyframes.add(frame_to(frame, self.device))
        self.num_frames += 1
        return True

    def _draw(self, entry: Keyframe) -> Rays:
        return draw_rays(entry.frame, self.config.rays.num_rays, self.config.rays, self._generator, entry.losses)

    def _freeze(self) -> None:
        """Keep the field as it is: what it explains now is no news."""
        self._frozen = fold(copy.deepcopy(self.field)).eval().requires_grad_(False)

    def _is_news(self, frame: DepthFrame) -> bool:
        """Whether the field as it was at the last keyframe explains too little of a frame."""
        config, before = self.config.keyframes, self.keyframes.entries[-2].frame if len(self.keyframes) > 1 else None
        if before is None or self._frozen is None:
            return True
        if frame.time is not None and before.time is not None and frame.time - before.time > config.max_interval:
            return True
        rays = draw_rays(frame, config.num_test_rays, self.config.rays, self._generator)
        rendered = render_depth(self._frozen, rays, self.config.rays, config.test_behind_surface, self._generator)
        explained = (rendered - rays.depth).abs() < config.max_relative_error * rays.depth
        return bool(len(rays.depth)) and float(explained.float().mean()) < config.min_explained
