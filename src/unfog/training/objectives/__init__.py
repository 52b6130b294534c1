"""What is learnt: one module for each objective."""
