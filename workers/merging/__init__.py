"""Merging: blend weights, score mixes, measure ingredients, drive recipes, write soups."""
