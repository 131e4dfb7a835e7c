"""What the models of an experiment have in common: predictions, weights, calibration."""
