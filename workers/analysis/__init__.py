"""Analysis of an experiment's models: predictions, weights, calibration."""
