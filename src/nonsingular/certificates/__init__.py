"""What is proven of each example: at one ball, and the largest radii."""
