"""The mathematics: schedules, targets, times, weights, solvers; no files and no architecture."""
