"""Single signals to fit a network to: an image, a sound, a video or a shape, read from a file and written back."""

from eugen3d.datasets.signals.files import KNOWN_SUFFIXES, encode_signal, open_signal, write_frames
from eugen3d.datasets.signals.grid import grid_coordinates, grid_points
from eugen3d.datasets.signals.shapes import ShapeSignal
from eugen3d.datasets.signals.signal import SampledSignal, ShapeFormat, SignalFormat

__all__ = [
    "KNOWN_SUFFIXES",
    "SampledSignal",
    "ShapeFormat",
    "ShapeSignal",
    "SignalFormat",
    "encode_signal",
    "grid_coordinates",
    "grid_points",
    "open_signal",
    "write_frames",
]
