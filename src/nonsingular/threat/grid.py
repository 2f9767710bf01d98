"""grid.py - the radii of a run: rows of eps_w, columns of eps_x, and the ball that they multiply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np

from nonsingular.errors import InvalidInput
from nonsingular.threat.ball import JointBall
from nonsingular.threat.columns import by_column
from nonsingular.threat.radius import Radius, checked_radius

POINTS = 11
"""Points of an axis that is given by its largest radius alone."""
Radii = tuple[float, float]
"""(eps_x, eps_w) of a cell."""


@dataclass(frozen=True)
class Grid:
    """The cells of a surface: every eps_x with every eps_w.

    eps_x: columns, increasing.  eps_w: rows, increasing.  unit: the ball whose radii they multiply: 1, or a radius for each
    element of an input, and for each tensor by name; then an axis is the fraction of these.
    """

    eps_x: tuple[float, ...]
    eps_w: tuple[float, ...]
    unit: JointBall

    @classmethod
    def of(
        cls, eps_x: Any, eps_w: Any, *, input_shape: Sequence[int] = (), columns: Sequence[str] = (), **ball: Any
    ) -> Grid:  # fmt: skip
        """The grid that a user asks for.

        eps_x: the largest radius (11 equal steps from 0) or all of them; or the radius of each element, as a mapping from columns
        or an array of two or more dimensions, with or without a first dimension of 1 for the examples: then the axis is its
        fraction, 0 to 1.  eps_w: likewise, the radius of each tensor as a mapping from names.
        input_shape: of one input.  columns: their names.  ball: domain, moves and relative of a JointBall.
        Raises InvalidInput for radii that are negative, not finite or not increasing, and for unknown columns.
        """
        unit_x, unit_w = cast(Radius, 1.0), cast("float | Mapping[str, Radius]", 1.0)
        if isinstance(eps_x, Mapping):
            unit_x, eps_x = by_column(cast("Mapping[Any, Any]", eps_x), input_shape, columns), 1.0
        elif getattr(eps_x, "ndim", 0) > 1:
            of_one = eps_x[0] if eps_x.ndim > len(input_shape) and len(eps_x) == 1 else eps_x
            unit_x, eps_x = checked_radius("eps_x", of_one), 1.0
        if isinstance(eps_w, Mapping):
            unit_w, eps_w = cast("Mapping[str, Radius]", eps_w), 1.0
        return cls(axis(eps_x, "eps_x"), axis(eps_w, "eps_w"), JointBall(unit_x, unit_w, **ball))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.eps_w), len(self.eps_x)

    @property
    def points(self) -> list[Radii]:
        """The radii of every cell, row by row."""
        return [(x, w) for w in self.eps_w for x in self.eps_x]

    def radii(self, i: int, j: int) -> Radii:
        """The radii of the cell in row i and column j."""
        return self.eps_x[j], self.eps_w[i]

    def ball(self, i: int, j: int) -> JointBall:
        """The ball of the cell in row i and column j."""
        return self.at(self.radii(i, j))

    def at(self, radii: Radii) -> JointBall:
        """The ball with these radii, in a cell of the grid or not."""
        return self.unit.scaled(*radii)

    @property
    def largest(self) -> JointBall:
        """The ball of the last cell, in which all others lie."""
        return self.ball(-1, -1)

    def part(self, rows: Sequence[int], columns: Sequence[int]) -> Grid:
        """The grid of some of its rows and columns."""
        return Grid(tuple(self.eps_x[j] for j in columns), tuple(self.eps_w[i] for i in rows), self.unit)


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
