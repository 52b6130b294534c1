"""Run folders: train, resume, load, sample."""
