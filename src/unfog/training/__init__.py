"""training: one readable loop, its draws, its averages and its checkpoints."""
