"""Fields: coordinates to density, colour and signed distance. Plain torch modules over the layers."""

from eugen3d.fields.nerf import FrequencyEncoding, NerfField, NerfFieldConfig

__all__ = ["FrequencyEncoding", "NerfField", "NerfFieldConfig"]
