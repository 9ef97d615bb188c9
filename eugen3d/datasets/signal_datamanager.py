"""A datamanager of one signal: its points and what it is at them, as training asks for them."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from torch import Tensor
from torch.nn import Parameter

from eugen3d.datasets.dataparser import SceneError
from eugen3d.datasets.signals import SampledSignal, ShapeSignal, grid_coordinates, grid_points, open_signal
from eugen3d.datasets.signals.differences import Supervision, targets_of
from eugen3d.datasets.stop import stop

POINTS_AROUND = 1 << 18
"""Points of the cube around a shape that the steps draw from."""


class SignalBatch(NamedTuple):
    """Points of a signal."""

    coordinates: Tensor
    """(n, d) in [-1, 1]."""
    targets: Tensor
    """Of an image, a sound or a video: what is supervised at these points, (n, channels), of a gradient (n, d,
    channels). Of a shape: the normals (m, 3) of the first m points, which are on the surface; the others are not."""
    signs: Tensor | None = None
    """Of a closed mesh: (n - m,), -1 for those others that are in it, 1 for those outside."""


@dataclass
class SignalDataManagerConfig(DataManagerConfig):
    """A file with an image, a sound, a video or a shape."""

    _target: type = field(default_factory=lambda: SignalDataManager)
    """Target class to instantiate."""
    data: Path | None = None
    """The file, or a folder of frames."""
    num_points: int = 65536
    """Points of a step, drawn anew for each; all of a signal that has no more. Of a shape half are on its surface."""
    supervision: Supervision = "values"
    """What of an image is fitted: its values, or their gradient or Laplacian (Poisson), the values up to what these
    leave open."""
    allow_open: bool = False
    """Whether a mesh may have open edges: then no side of it is inside."""
    seed: int = 0
    """Of the points."""

    def __post_init__(self) -> None:
        if self.num_points < 2:
            raise ValueError(f"num_points is {self.num_points}, expected at least 2")

    def open_or_exit(self) -> SampledSignal | ShapeSignal:
        """The signal. One that cannot be used ends the process with one line and exit code 2, as in other methods."""
        try:
            if self.data is None:
                raise SceneError("--data: found none, expected a file with an image, a sound, a video or a shape")
            signal = open_signal(self.data, allow_open=self.allow_open)
            is_image = isinstance(signal, SampledSignal) and signal.format.kind == "image"
            if self.supervision != "values" and not is_image:
                raise SceneError(f"{self.data}: is no image, expected one with supervision by its {self.supervision}")
        except SceneError as error:
            stop(str(error))
        return signal


class SignalDataManager(DataManager):
    """Draws the points of training steps; those of a step depend on its number and the seed alone.

    Attributes:
        signal: what is fitted; None where only a model is wanted ("inference").
    """

    config: SignalDataManagerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, config: SignalDataManagerConfig, device: torch.device | str = "cpu", test_mode: str = "val", **_: Any
    ) -> None:
        super().__init__()
        self.config, self.device, self.test_mode = config, device, test_mode
        self.signal = None if test_mode == "inference" else config.open_or_exit()
        # nerfstudio asks whether there is one, and for no more
        self.train_dataset = self.eval_dataset = self.signal  # pyright: ignore[reportAttributeAccessIssue]
        self._targets: Tensor | None = None
        if isinstance(self.signal, SampledSignal):
            self._targets = targets_of(self.signal.values, config.supervision).to(device)

    def next_batch(self, step: int) -> SignalBatch:
        """The points of a training step."""
        generator = torch.Generator().manual_seed((self.config.seed << 32) + step)
        if isinstance(self.signal, ShapeSignal):
            on_surface = self.config.num_points // 2
            points, normals = self.signal.draw(on_surface, generator)
            around, signs = self._around
            chosen = torch.randint(len(around), (self.config.num_points - on_surface,), generator=generator)
            signs = None if signs is None else signs[chosen].to(self.device)
            coordinates = torch.cat([points, around[chosen]]).to(self.device)
            return SignalBatch(coordinates, normals.to(self.device), signs)
        assert self.signal is not None and self._targets is not None
        size, total = self.signal.format.size, len(self._targets)
        if total <= self.config.num_points:
            return SignalBatch(grid_coordinates(size, device=self.device), self._targets)
        drawn = torch.randint(total, (self.config.num_points,), generator=generator).to(self.device)
        return SignalBatch(grid_points(size, drawn), self._targets[drawn])

    @cached_property
    def _around(self) -> tuple[Tensor, Tensor | None]:
        """Points of the cube around a shape and their signs; only training asks for them."""
        assert isinstance(self.signal, ShapeSignal)
        return self.signal.draw_around(POINTS_AROUND, torch.Generator().manual_seed(self.config.seed))

    def get_train_rays_per_batch(self) -> int:
        """Points of a step."""
        return self.config.num_points

    def get_eval_rays_per_batch(self) -> int:
        """None."""
        return 0

    def get_datapath(self) -> Path:
        """The file."""
        return self.config.data or Path()

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """None."""
        return {}
