"""Fields of signed distance from depth frames as they arrive: iSDF (Ortiz et al. 2022), in torch alone."""

from eugen3d.mapping.config import KeyframeConfig, RaySamplingConfig, SdfLossConfig, SdfMapperConfig
from eugen3d.mapping.mapper import SdfMapper
from eugen3d.mapping.query import SdfQuery

__all__ = ["KeyframeConfig", "RaySamplingConfig", "SdfLossConfig", "SdfMapper", "SdfMapperConfig", "SdfQuery"]
