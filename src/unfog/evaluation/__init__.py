"""Floor 8, evaluation: numbers that say what they are."""
