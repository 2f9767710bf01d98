"""operators.py - the operators that bounds have rules for, as a few kinds of nodes, and how calls of torch become them.

Every operator is one of: a product of the signal with a parameter (plus a bias), a product of two signals, a fixed affine sum, a
fixed linear map with non-negative coefficients, an activation, or a maximum; or a few of these in a row.  Bounds have one rule
for each kind; a new operator is one entry in a table of network/rules/.  Anything else raises UnsupportedModel: nothing is
skipped in silence.
"""

from __future__ import annotations

from importlib import import_module

from nonsingular.network.calls import Rules

FAMILIES = (
    "affine",
    "contractions",
    "activations",
    "arithmetic",
    "products",
    "normal",
    "moves",
    "maxima",
    "rounding",
)
"""Modules of network/rules/, each with a table RULES."""
RULES: Rules = {
    operation: rule
    for family in FAMILIES
    for operation, rule in import_module(f"nonsingular.network.rules.{family}").RULES.items()
}
"""Operation -> its nodes.  A name stands for the method of torch.Tensor and the function of torch and of its `functional`."""
