"""Floor 2, the mathematics: schedules, targets, times, weights, solvers; no files and no architecture."""
