"""What devices do to the weights that they store: a realisation, and a box or a set of flips that holds every realisation."""
