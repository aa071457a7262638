"""Evaluating finished models: every data set predicted once, every number from that."""
