"""Fields: coordinates to density, colour and signed distance. Plain torch modules over the layers."""

from eugen3d.fields.isdf import IsdfField, IsdfFieldConfig, distance_and_gradient
from eugen3d.fields.nerf import FrequencyEncoding, NerfField, NerfFieldConfig
from eugen3d.fields.siren import SirenField, SirenFieldConfig

__all__ = [
    "FrequencyEncoding",
    "IsdfField",
    "IsdfFieldConfig",
    "NerfField",
    "NerfFieldConfig",
    "SirenField",
    "SirenFieldConfig",
    "distance_and_gradient",
]
