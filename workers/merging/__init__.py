"""Merging: blend weights, score a mix, measure ingredients, drive a recipe, write a soup."""
