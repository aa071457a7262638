"""From a finished run to a model that others can use: its calibrator, its folder, its card."""
