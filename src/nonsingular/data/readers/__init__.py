"""Readers: one file format a module.  Each turns files into a `Raw`, and every fault of a file into one InvalidInput."""
