"""What training takes beside the layers: the optimizer and the precision. Torch alone."""

from eugen3d.training.muon import Muon
from eugen3d.training.precision import has_bfloat16

__all__ = ["Muon", "has_bfloat16"]
