"""eugen3d: smaller and faster neural fields. Importing it loads neither nerfstudio nor CUDA."""

from eugen3d.distill import (
    DistillConfig,
    DistillReport,
    FitConfig,
    LayerwiseConfig,
    RefineConfig,
    distill,
)
from eugen3d.layers import (
    EUGenConfig,
    EUGenLinear,
    LayerConfig,
    LinearConfig,
    LowRankConfig,
    LowRankLinear,
    SineConfig,
    SineLinear,
    SNNKConfig,
    SNNKLinear,
    convert,
    fold,
    forward_merged,
    layer_status,
)

__all__ = [
    "DistillConfig",
    "DistillReport",
    "EUGenConfig",
    "EUGenLinear",
    "FitConfig",
    "LayerConfig",
    "LayerwiseConfig",
    "LinearConfig",
    "LowRankConfig",
    "LowRankLinear",
    "RefineConfig",
    "SNNKConfig",
    "SNNKLinear",
    "SineConfig",
    "SineLinear",
    "convert",
    "distill",
    "fold",
    "forward_merged",
    "layer_status",
]
__version__ = "0.1.0"
