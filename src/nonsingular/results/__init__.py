"""Surfaces, and what is said of them: comparison, claims, gates.  Needs no torch."""
