"""Fields: coordinates to density, colour and signed distance. Plain torch modules over the layers."""

from eugen3d.fields.isdf import IsdfField, IsdfFieldConfig, distance_and_gradient
from eugen3d.fields.nerf import FrequencyEncoding, NerfField, NerfFieldConfig

__all__ = [
    "FrequencyEncoding",
    "IsdfField",
    "IsdfFieldConfig",
    "NerfField",
    "NerfFieldConfig",
    "distance_and_gradient",
]
