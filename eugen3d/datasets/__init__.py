"""Dataparsers and datamanagers."""

from eugen3d.datasets.datamanager import ForegroundPixelSamplerConfig, SceneDataManagerConfig
from eugen3d.datasets.dataparser import SceneDataParserConfig, SceneError

__all__ = ["ForegroundPixelSamplerConfig", "SceneDataManagerConfig", "SceneDataParserConfig", "SceneError"]
