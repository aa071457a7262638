"""Predictions that somebody has, judged without a service and without torch."""
