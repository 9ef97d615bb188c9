"""Fast evaluation of folded networks."""

from eugen3d.runtime.auto import AutoModule
from eugen3d.runtime.backends import Backend, RuntimeFallbackWarning, build
from eugen3d.runtime.library import NativeUnavailable
from eugen3d.runtime.memory import keep_freed_memory
from eugen3d.runtime.native import NativeChain
from eugen3d.runtime.tcnn_chain import TcnnChain, TcnnUnavailable
from eugen3d.runtime.tiled import TiledModule
from eugen3d.runtime.triton_chain import TritonChain, TritonUnavailable

__all__ = [
    "AutoModule",
    "Backend",
    "NativeChain",
    "NativeUnavailable",
    "RuntimeFallbackWarning",
    "TcnnChain",
    "TcnnUnavailable",
    "TiledModule",
    "TritonChain",
    "TritonUnavailable",
    "build",
    "keep_freed_memory",
]
