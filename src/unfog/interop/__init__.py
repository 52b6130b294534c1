"""exchange: models of other toolkits in, and ours out."""
