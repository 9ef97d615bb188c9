"""The settings of a mapper; the defaults are those that Ortiz et al. (2022) report."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

BoundsMethod = Literal["ray", "normal", "nearest"]
PixelSampling = Literal["uniform", "active"]


@dataclass(frozen=True)
class RaySamplingConfig:
    """Which rays of a frame are taken, and where on them samples stand."""

    num_rays: int = 200
    """Rays of a frame; those without a measurement or a normal are left out."""
    num_surface_samples: int = 7
    """Samples of a ray around its surface, beside the one on it."""
    surface_std: float = 0.1
    """Standard deviation of those along the optical axis, in metres."""
    num_stratified_samples: int = 19
    """Samples of a ray between the camera and behind the surface, one in each of as many equal parts."""
    min_depth: float = 0.07
    """Where rays begin, in metres along the optical axis."""
    max_depth: float = 12.0
    """Measurements beyond are not used, in metres."""
    behind_surface: float = 0.1
    """How far behind the surface rays end, in metres."""
    pixels: PixelSampling = "uniform"
    """Whether all pixels are as likely, or those of blocks with a large loss more ("active", Sucar et al. 2021)."""

    def __post_init__(self) -> None:
        if self.num_rays < 1 or self.num_stratified_samples < 1 or self.num_surface_samples < 0:
            raise ValueError("num_rays and num_stratified_samples are at least 1, num_surface_samples at least 0")
        if not 0 < self.min_depth < self.max_depth < math.inf:
            raise ValueError(f"min_depth is {self.min_depth}, max_depth {self.max_depth}, expected 0 < min < max")
        if self.surface_std < 0 or self.behind_surface < 0:
            raise ValueError("surface_std and behind_surface are distances, expected at least 0")
        if self.pixels not in get_args(PixelSampling):
            raise ValueError(f"pixels is {self.pixels!r}, expected one of {', '.join(get_args(PixelSampling))}")

    @property
    def num_samples(self) -> int:
        """Samples of a ray."""
        return 1 + self.num_surface_samples + self.num_stratified_samples


@dataclass(frozen=True)
class SdfLossConfig:
    """What the field is held to."""

    bounds: BoundsMethod = "nearest"
    """Where the bound of a distance comes from: the ray's own surface, that with the normal's angle, or the nearest
    surface point of the batch."""
    truncation: float = 0.29365
    """Bounds up to it, in metres, are taken for the distance itself."""
    truncation_mult: float = 5.38344
    """Weight of the loss there; in free space it is 1."""
    free_space_rate: float = 5.0
    """β of the loss e^{−βs} − 1 of a negative distance in free space."""
    gradient_mult: float = 0.018
    """Weight of the loss of the gradient's direction."""
    eikonal_mult: float = 0.268
    """Weight of the loss of the gradient's length."""
    eikonal_min_bound: float = 0.1
    """Bounds from which on the eikonal loss is taken, in metres: nearer, surfaces may have edges."""

    def __post_init__(self) -> None:
        if self.bounds not in get_args(BoundsMethod):
            raise ValueError(f"bounds is {self.bounds!r}, expected one of {', '.join(get_args(BoundsMethod))}")


@dataclass(frozen=True)
class KeyframeConfig:
    """Which frames are kept, and which of them a step looks at."""

    window_size: int = 5
    """Frames of a step: the latest two and others, drawn by their losses."""
    max_keyframes: int = 128
    """Keyframes that are kept at most; the one with the least loss goes first."""
    num_test_rays: int = 400
    """Rays by which a frame is tested."""
    test_behind_surface: float = 0.8
    """How far behind the surface their samples reach, in metres."""
    max_relative_error: float = 0.1
    """A ray is explained if its depth in the field is off by less than this share of the measured one."""
    min_explained: float = 0.65
    """A frame with a smaller share of explained rays becomes a keyframe."""
    max_interval: float = 5.0
    """Seconds of the sequence after which a frame becomes a keyframe anyway."""

    def __post_init__(self) -> None:
        if self.window_size < 2 or self.max_keyframes < self.window_size:
            raise ValueError(
                f"window_size is {self.window_size} and max_keyframes {self.max_keyframes}, "
                "expected at least 2 and at least as many keyframes"
            )
        if self.num_test_rays < 1:
            raise ValueError(f"num_test_rays is {self.num_test_rays}, expected at least 1")


@dataclass(frozen=True)
class TraceConfig:
    """How rays are traced to the surface."""

    near_plane: float = 0.05
    """Where rays begin, in metres."""
    far_plane: float = 12.0
    """Where they end."""
    num_steps: int = 64
    """Steps of a ray at most."""
    tolerance: float = 0.003
    """Distance at which a ray has met the surface, in metres."""

    def __post_init__(self) -> None:
        if not 0 <= self.near_plane < self.far_plane or self.num_steps < 1 or self.tolerance <= 0:
            raise ValueError(f"rays cannot be traced by {self}, expected 0 <= near < far, steps and a tolerance")


@dataclass(frozen=True)
class SdfMapperConfig:
    """How a field is trained as frames arrive."""

    rays: RaySamplingConfig = field(default_factory=RaySamplingConfig)
    """Rays and their samples."""
    losses: SdfLossConfig = field(default_factory=SdfLossConfig)
    """Bounds and losses."""
    keyframes: KeyframeConfig = field(default_factory=KeyframeConfig)
    """Which frames are kept."""
    num_first_steps: int = 200
    """Steps at the first frame."""
    num_frame_steps: int = 10
    """Steps at every other frame."""
    num_keyframe_steps: int = 60
    """Steps more at a frame that becomes a keyframe."""
    learning_rate: float = 1.3e-3
    """AdamW's."""
    weight_decay: float = 0.012
    """AdamW's."""

    def __post_init__(self) -> None:
        if min(self.num_first_steps, self.num_frame_steps, self.num_keyframe_steps) < 1:
            raise ValueError("numbers of steps have to be at least 1")
