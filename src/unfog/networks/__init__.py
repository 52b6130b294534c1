"""Networks: map (x, time, cond) to an output, and know nothing of diffusion."""
