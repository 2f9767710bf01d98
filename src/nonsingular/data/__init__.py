"""Data sets by name, folder or file, and the columns of tables that move."""
