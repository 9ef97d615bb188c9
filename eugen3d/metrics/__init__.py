"""Image, SDF and cost metrics."""
