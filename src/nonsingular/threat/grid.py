"""grid.py - the radii of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np

from nonsingular.errors import InvalidInput

POINTS = 11
"""Points of an axis that is given by its largest radius alone."""


def axis(radii: float | Sequence[float], name: str) -> tuple[float, ...]:
    """The radii of one axis of the grid: as given, or from 0 to the given one in 11 equal steps.

    Raises InvalidInput unless they are finite, 0 or larger, and strictly increasing.

    >>> axis(0.2, "eps_x")[:3]
    (0.0, 0.02, 0.04)
    """
    if isinstance(radii, Sequence) or getattr(radii, "ndim", 0):
        values = [float(r) for r in cast(Sequence[float], radii)]
    else:
        top = float(cast(float, radii))
        values = [float(f"{top * i / (POINTS - 1):.12g}") for i in range(POINTS)] if top else [0.0]
    if not values or not all(np.isfinite(values)) or min(values) < 0:
        raise InvalidInput(f"{name} is {radii}; give radii that are finite and 0 or larger")
    if any(b <= a for a, b in pairwise(values)):
        raise InvalidInput(f"{name} is {radii}; give radii in strictly increasing order")
    return tuple(values)
