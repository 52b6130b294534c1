"""What `unfog verify` proves: orders of convergence, exact moments, closed forms."""
