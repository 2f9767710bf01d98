"""Attacked and certified accuracy over a grid of radii, what was found there, and what it will cost."""
