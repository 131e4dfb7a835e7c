"""Served models: export for plain timm, evaluation on folders, predictions for new images."""
