"""Studies of what the methods claim."""
