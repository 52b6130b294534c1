"""evaluation: numbers that say what they are."""
