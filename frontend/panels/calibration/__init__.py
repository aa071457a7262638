"""What the page Calibration shows: diagrams, slices, calibrators, the estimator audit."""
