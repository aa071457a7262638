"""Predictions that people made elsewhere: NPZ, Parquet and CSV files."""
