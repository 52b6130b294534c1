"""From a denoiser to samples and edited pictures."""
