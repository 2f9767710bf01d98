"""Objectives, and the loop that lowers them."""
