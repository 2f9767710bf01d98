"""maps.py - an accuracy surface as a small SVG: a cell for each point of the grid with its number in it, and contour lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from numpy.typing import NDArray

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 402, 68, 6, 474, 350
"""Size of the picture and the edges of the plot in it."""
LEVELS = (10, 30, 50, 70, 90)
"""Contour lines, in percent."""
NUMBERED = 13
"""The longest axis whose cells carry their numbers; those of a finer grid would not fit."""
EVEN = 0.25
"""An axis is drawn to scale if its smallest step is at least this part of the mean one; else its steps are drawn equal."""
PALETTES = {
    "accuracy": tuple(matplotlib.colormaps["viridis"](k / 100) for k in range(101)),
    "gap": tuple(matplotlib.colormaps["Oranges"](0.85 * k / 100) for k in range(101)),
}
"""Colours of 0 to 100 %, their lightness monotone.  Accuracy has those of Figure 1 (viridis)."""


def colour(percent: float, palette: str = "accuracy") -> str:
    """As #rrggbb.

    >>> colour(0), colour(100)
    ('#440154', '#fde725')
    """
    rgb = PALETTES[palette][round(min(max(percent, 0.0), 100.0))][:3]
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def ink(percent: float, palette: str = "accuracy") -> str:
    """Black or white, whichever reads better on that colour (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in PALETTES[palette][round(percent)][:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"


def surface_map(
    accuracy: NDArray[Any], eps_x: Sequence[float], eps_w: Sequence[float], *, label: str, palette: str = "accuracy",
    marked: frozenset[tuple[int, int]] = frozenset(),
) -> Markup:  # fmt: skip
    """The SVG of a surface, (len(eps_w), len(eps_x)) in [0, 1].  Cells in the order of the array, each a rect of class "c".

    label: the text for screen readers.  marked: cells whose number has a star.
    """
    percent = np.clip(100 * accuracy, 0.0, 100.0)
    x, y = (np.round(_edges(*axis), 2) for axis in ((eps_x, LEFT, RIGHT), (eps_w, BOTTOM, TOP)))  # neighbours share their edge
    numbered = max(percent.shape) <= NUMBERED
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        f'<g class="cells{" fine" if not numbered else ""}">',
    ]
    for i, row in enumerate(percent):
        top, height = y[i + 1], y[i] - y[i + 1]
        parts.append("<g>")
        for j, p in enumerate(row):
            parts.append(
                f'<rect class="c" x="{x[j]:.2f}" y="{top:.2f}" width="{x[j + 1] - x[j]:.2f}" height="{height:.2f}" '
                f'fill="{colour(p, palette)}"/>'
            )
        parts.append("</g>")
    parts.append("</g>")
    lines, labels = _contours(percent, x, y) if palette == "accuracy" else ("", "")
    parts.append(lines)
    if numbered:
        parts.append('<g class="n">')
        for (i, j), p in np.ndenumerate(percent):
            star = "*" if (i, j) in marked else ""
            parts.append(
                f'<text x="{(x[j] + x[j + 1]) / 2:.1f}" y="{(y[i] + y[i + 1]) / 2 + 4:.1f}" fill="{ink(p, palette)}" '
                f'stroke="{colour(p, palette)}">{escape(_whole(p))}{star}</text>'
            )
        parts.append("</g>")
    parts.append(labels)
    parts += [_axes(eps_x, eps_w, x, y), "</svg>"]
    return Markup("".join(parts))


def _whole(percent: float) -> str:
    """Rounded to a whole number; 0 and 100 only where they are exact.

    >>> _whole(0.0), _whole(0.2), _whole(41.6), _whole(99.8), _whole(100.0)
    ('0', '<1', '42', '>99', '100')
    """
    if 0 < percent < 0.5:
        return "<1"
    return ">99" if 99.5 <= percent < 100 else f"{percent:.0f}"


def _edges(radii: Sequence[float], start: float, stop: float) -> NDArray[Any]:
    """(len + 1,) positions of the edges of the cells, in the middle between two radii; the outer ones as far out."""
    values = positions(radii)
    if len(values) == 1:
        return np.array([start, stop], dtype=float)
    middle = (values[1:] + values[:-1]) / 2
    edges = np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])
    return start + (edges - edges[0]) / (edges[-1] - edges[0]) * (stop - start)


def positions(radii: Sequence[float]) -> NDArray[Any]:
    """Where the radii lie on an axis: to scale, or at equal steps."""
    return np.asarray(radii, dtype=float) if to_scale(radii) else np.arange(len(radii), dtype=float)


def to_scale(radii: Sequence[float]) -> bool:
    """Whether an axis is drawn to scale."""
    steps = [b - a for a, b in pairwise(radii)]
    return not steps or min(steps) >= EVEN * sum(steps) / len(steps)


def _contours(percent: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> tuple[str, str]:
    """Lines of equal accuracy between the middles of the cells, and their labels, each where it is farthest from the numbers."""
    levels = [v for v in LEVELS if percent.min() < v < percent.max()]
    if not levels or 1 in percent.shape:
        return "", ""
    drawn = cast(Any, Figure()).subplots().contour(percent, levels=levels)
    middles = [(ends[1:] + ends[:-1]) / 2 for ends in (x, y)]

    def place(points: NDArray[Any]) -> NDArray[Any]:
        """Convert indices of cells to coordinates of the picture."""
        return np.column_stack([np.interp(points[:, k], np.arange(len(m)), m) for k, m in enumerate(middles)])

    paths: list[str] = []
    labels: list[str] = []
    placed: list[NDArray[Any]] = []
    for level, segments in zip(levels, drawn.allsegs, strict=True):
        paths += ["M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in place(segment)) for segment in segments]
        spot = _spot(max(segments, key=len), placed) if segments else None
        if spot is not None:
            placed.append(spot)
            ((a, b),) = place(spot[None])
            labels.append(f'<text x="{a:.1f}" y="{b + 4:.1f}">{level} %</text>')
    path = "".join(paths)
    return f'<path class="halo" d="{path}"/><path class="k" d="{path}"/>', f'<g class="kl">{"".join(labels)}</g>'


def _spot(segment: NDArray[Any], placed: Sequence[NDArray[Any]]) -> NDArray[Any] | None:
    """The point of a line, in cells, that is farthest from the middles of cells and clear of other labels."""
    steps = np.linspace(0, len(segment) - 1, 8 * len(segment))
    points = np.column_stack([np.interp(steps, np.arange(len(segment)), segment[:, k]) for k in (0, 1)])
    away = np.abs(points - np.round(points))
    score = np.minimum(away[:, 1] * 2, 1.0) + 0.3 * away[:, 0]
    score -= 0.02 * np.abs(steps / max(1, len(segment) - 1) - 0.5)
    for other in placed:
        score = np.where((np.abs(points - other) < [1.3, 0.8]).all(1), -1.0, score)
    return points[score.argmax()] if score.max() > 0 else None


def _axes(eps_x: Sequence[float], eps_w: Sequence[float], x: NDArray[Any], y: NDArray[Any]) -> str:
    every_x, every_w = -(-len(eps_x) // 6), -(-len(eps_w) // 11)
    parts = ['<g class="ax">']
    parts += [
        f'<text class="tx" x="{(x[j] + x[j + 1]) / 2:.1f}" y="{BOTTOM + 17}">{eps_x[j]:.4g}</text>'
        for j in range(0, len(eps_x), every_x)
    ]
    parts += [
        f'<text class="ty" x="{LEFT - 6}" y="{(y[i] + y[i + 1]) / 2 + 4:.1f}">{eps_w[i]:.4g}</text>'
        for i in range(0, len(eps_w), every_w)
    ]
    middle, centre = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    parts.append(f'<text class="tx" x="{middle}" y="{HEIGHT - 12}">{axis_name("x")}, input radius</text>')
    parts.append(f'<text class="tx" transform="translate(12 {centre}) rotate(-90)">{axis_name("w")}, weight radius</text></g>')
    return "".join(parts)


def axis_name(which: str) -> str:
    """ε with its index, in an SVG text."""
    return f'ε<tspan dy="3" font-size="75%">{which}</tspan><tspan dy="-3">\u200b</tspan>'


def stops(palette: str) -> str:
    """The colours from 0 to 100 %, as those of a gradient in CSS."""
    return ", ".join(colour(p, palette) for p in range(0, 101, 5))
