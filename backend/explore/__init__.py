"""Numbers that are computed from stored predictions when somebody asks. Torch-free."""
