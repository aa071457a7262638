"""Sweeps: which runs a question takes, and what their results say. Torch-free.

`arms` makes the contenders of a SweepSpec, `ladder` chooses learning rates, `plan` says what is to
run next from what has finished, `paired` holds the bootstrap over seeds and images, `verdict` the
answer. `benchmarks/results.py` chooses rates and draws intervals by the same code.
"""
