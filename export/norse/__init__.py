"""Convert Norse modules to NIR."""
