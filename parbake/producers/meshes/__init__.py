"""Mesh series, and the interpolation between them."""
