"""Data sets, suites, splits and corruptions."""
