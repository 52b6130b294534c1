"""Shared by everything above: errors, files, tensors, randomness, distributed processes and devices."""
