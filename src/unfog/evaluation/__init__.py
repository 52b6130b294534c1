"""Scores of samples, with everything that is needed to read them."""
