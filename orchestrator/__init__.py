"""soupfleet: decides. Torch-free; what acts lives in `workers`."""
