"""Training: one run from a checkpoint to a step, with Accelerate."""
