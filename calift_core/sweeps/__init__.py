"""Sweeps: which runs a question takes, and what their results say. Torch-free.

`arms` makes the contenders of a SweepSpec, `ladder` chooses learning rates, `plan` says what is to
run next from what has finished, `paired` holds the intervals over seeds and images, `verdict` the
answer.
"""
