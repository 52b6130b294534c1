"""Data sets as tensors with labels, and reading and writing images."""
