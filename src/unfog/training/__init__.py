"""Training: one readable loop, its random draws, averaged weights and checkpoints."""
