"""The data: where x0 comes from, as tensors with labels, and how pictures are read and written."""
