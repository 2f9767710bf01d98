"""What the attacks search with: unknowns of a network in a ball, where to start, how to descend."""
