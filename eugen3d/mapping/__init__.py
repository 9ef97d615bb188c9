"""Fields of signed distance from depth frames as they arrive: iSDF (Ortiz et al. 2022), in torch alone."""

from eugen3d.mapping.config import KeyframeConfig, RaySamplingConfig, SdfLossConfig, SdfMapperConfig, TraceConfig
from eugen3d.mapping.mapper import SdfMapper
from eugen3d.mapping.query import SdfQuery
from eugen3d.mapping.render import trace_rays

__all__ = [
    "KeyframeConfig",
    "RaySamplingConfig",
    "SdfLossConfig",
    "SdfMapper",
    "SdfMapperConfig",
    "SdfQuery",
    "TraceConfig",
    "trace_rays",
]
