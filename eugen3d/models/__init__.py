"""nerfstudio models over the fields."""
