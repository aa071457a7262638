"""Runs to and from other trackers: MLflow, TensorBoard event files, CSV as W&B exports it.

What goes out are the curves, the settings and every number of the report, each calibration error
with its floor. What comes in are curves, settings and last values of a run that calift did not
measure: such numbers have no floor and no interval, so they never become a run of calift. They are
kept as files that the page Curves shows beside runs; predictions that lie among an MLflow
run's files are imported and measured like any other.
"""
