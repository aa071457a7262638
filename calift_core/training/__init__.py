"""Training: one readable loop, and what it needs to go on after a stop."""
