"""lines.py - accuracy along one radius as a small SVG: lines with their 95 % intervals as bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from nonsingular.report.maps import axis_name, positions

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 440, 280, 44, 10, 428, 226
LOOKS = 8
"""Number of line styles (colour, dashes) in page.css."""


@dataclass(frozen=True)
class Line:
    """Accuracies in [0, 1] along an axis, with the ends of their intervals.  look: which colour, dashes and marker."""

    name: str
    values: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    look: int


def lines(radii: Sequence[float], shown: Sequence[Line], *, axis: str, fixed: float, band: bool = True) -> Markup:
    """The SVG of some lines over one axis ("x" or "w"), the other radius being `fixed`.  band: with their intervals."""
    other = "w" if axis == "x" else "x"
    name = {"x": "input radius", "w": "weight radius"}[axis]
    caption = Markup(f"{axis_name(axis)}, {name} ({axis_name(other)} = {fixed:g})")
    what = f"Accuracy over ε_{axis} at ε_{other} = {fixed:g}: {', '.join(line.name for line in shown)}"
    return chart(Axis(_positions(radii), [f"{r:.4g}" for r in radii], caption, what), shown, band=band)


@dataclass(frozen=True)
class Axis:
    """Where the points of the lines are, how each is marked, the text below, and what the picture shows in words."""

    across: Sequence[float] | NDArray[Any]
    marks: Sequence[str]
    caption: Markup
    what: str


def chart(axis: Axis, shown: Sequence[Line], *, band: bool = True) -> Markup:
    """The SVG of some lines.  band: with their intervals."""
    across = axis.across
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axis.what)}">', '<g class="ax">']
    for p in (0, 25, 50, 75, 100):
        parts.append(f'<path class="grid" d="M{LEFT} {_up(p / 100):.1f}H{RIGHT}"/>')
        parts.append(f'<text class="ty" x="{LEFT - 6}" y="{_up(p / 100) + 4:.1f}">{p}</text>')
    parts += [
        f'<text class="tx" x="{across[k]:.1f}" y="{BOTTOM + 17}">{escape(axis.marks[k])}</text>'
        for k in range(0, len(across), -(-len(across) // 6))
    ]
    parts.append(f'<text class="tx" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}">{axis.caption}</text>')
    parts.append(f'<text class="tx" transform="translate(10 {(TOP + BOTTOM) / 2}) rotate(-90)">accuracy (%)</text></g>')
    for line in shown:
        if band:
            there = [f"{a:.1f} {_up(v):.1f}" for a, v in zip(across, line.high, strict=True)]
            back = [f"{a:.1f} {_up(v):.1f}" for a, v in zip(across, line.low, strict=True)]
            parts.append(f'<path class="band b{line.look % LOOKS}" d="M{"L".join([*there, *reversed(back)])}Z"/>')
    for line in shown:
        at = [(a, _up(v)) for a, v in zip(across, line.values, strict=True)]
        points = "".join(marker(line.look, a, b) for a, b in at)
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in at)
        parts.append(f'<g class="line s{line.look % LOOKS}"><path class="stroke" d="M{path}"/>{points}</g>')
    return Markup("".join([*parts, "</svg>"]))


def key_mark(look: int) -> Markup:
    """A piece of a line, for the key beside its name."""
    return Markup(
        f'<svg viewBox="0 0 34 12" aria-hidden="true"><g class="line s{look % LOOKS}"><path class="stroke" d="M1 6H33"/>'
        f"{marker(look, 17, 6)}</g></svg>"
    )


def marker(look: int, x: float, y: float) -> str:
    """A point of a line: dot, square, triangle, diamond, in turn, filled or hollow."""
    shape = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>', f'<path d="M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"/>',
        f'<path d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>', f'<path d="M{x:.1f} {y - 4.2:.1f}l4.2 4.2l-4.2 4.2l-4.2 -4.2z"/>',
    )[look % 4]  # fmt: skip
    return shape


def _up(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * min(max(share, 0.0), 1.0)


def _positions(radii: Sequence[float]) -> NDArray[Any]:
    """Positions of the radii in the picture, to scale where the maps are."""
    values = positions(radii)
    span = values[-1] - values[0]
    share = (values - values[0]) / span if span > 0 else np.full(len(values), 0.5)
    return LEFT + 8 + share * (RIGHT - LEFT - 16)
