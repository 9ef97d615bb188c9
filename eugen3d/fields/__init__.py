"""Fields: coordinates to density, colour and signed distance. Plain torch modules over the layers."""

from eugen3d.fields.hash_grid import HashGrid, HashGridConfig
from eugen3d.fields.isdf import IsdfField, IsdfFieldConfig, distance_and_gradient
from eugen3d.fields.nerf import FrequencyEncoding, NerfField, NerfFieldConfig
from eugen3d.fields.siren import SirenField, SirenFieldConfig
from eugen3d.fields.zipnerf import ProposalField, ZipLayer, ZipNerfField, ZipNerfFieldConfig, ZipNerfHead

__all__ = [
    "FrequencyEncoding",
    "HashGrid",
    "HashGridConfig",
    "IsdfField",
    "IsdfFieldConfig",
    "NerfField",
    "NerfFieldConfig",
    "ProposalField",
    "SirenField",
    "SirenFieldConfig",
    "ZipLayer",
    "ZipNerfField",
    "ZipNerfFieldConfig",
    "ZipNerfHead",
    "distance_and_gradient",
]
