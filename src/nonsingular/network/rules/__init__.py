"""How calls of torch become nodes, a table for each family; network/operators.py joins them."""
