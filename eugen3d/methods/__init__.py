"""nerfstudio method specifications, one a file: data only."""
