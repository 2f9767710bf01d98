"""Readers: one module for each file format.  Each turns files into a `Raw`, and raises InvalidInput for a faulty file."""
