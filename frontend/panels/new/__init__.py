"""The parts of the form of a new run: what it begins with, its fields, its check."""
