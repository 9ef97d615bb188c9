"""Dataparsers and datamanagers, and sequences of depth frames, recorded or live."""

from eugen3d.datasets.datamanager import ForegroundPixelSamplerConfig, SceneDataManagerConfig
from eugen3d.datasets.dataparser import SceneDataParserConfig, SceneError
from eugen3d.datasets.depth_checks import BadFrameError
from eugen3d.datasets.depth_frame import DepthFrame
from eugen3d.datasets.depth_sequence import DepthSequence, open_depth_sequence
from eugen3d.datasets.depth_stream import live_sequence, watch_depth_folder

__all__ = [
    "BadFrameError",
    "DepthFrame",
    "DepthSequence",
    "ForegroundPixelSamplerConfig",
    "SceneDataManagerConfig",
    "SceneDataParserConfig",
    "SceneError",
    "live_sequence",
    "open_depth_sequence",
    "watch_depth_folder",
]
