"""Child processes, and the ones that load models."""
