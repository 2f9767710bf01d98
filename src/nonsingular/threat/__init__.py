"""The question: balls of inputs and weights, grids of these, and who shares the perturbed weights."""
