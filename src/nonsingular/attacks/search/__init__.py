"""The parts of a search: the unknowns of a network in a ball, starting points, descent."""
