"""Storage: the store and its layout, local disk and node cache, checkpoints."""
