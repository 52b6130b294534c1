"""What a run consists of, as values: the recipe, its parts, their names, and models built from them."""
