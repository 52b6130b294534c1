"""Floor 10, exchange: models of other toolkits in, and ours out."""
