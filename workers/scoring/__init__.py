"""Scores: forward passes, metrics, comparisons with intervals, output ensembles."""
