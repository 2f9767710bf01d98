"""radii.py - the largest certified weight radius over the input radius, one panel per model, one line per required accuracy."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nonsingular.plain import legible
from nonsingular.report.figure import W_LABEL, plain, style, ticks, under, x_label
from nonsingular.report.summary import Model, every_surface, how, units

LOOKS = (("#0b4f8a", "o", "-"), ("#c8500a", "s", "--"), ("#0a7d5c", "^", "-."), ("#8a4a9e", "D", ":"))
"""Colour, marker and dashes of the lines in turn: distinct with colour blindness and in grey."""


def fronts(models: Sequence[Model]) -> Figure:
    """Every model with fronts as a panel of steps: at each point on or below a line, its share of the examples is certified.

    Between two input radii the line keeps the weight radius of the larger, which is certified there too; a slope would not be.
    """
    shown = [m for m in models if m.fronts]
    rows = -(-len(shown) // 4)
    columns = -(-len(shown) // rows)
    size = (3.2 * columns + 0.6, 2.9 * rows + 0.7) if len(shown) > 1 else (5.6, 4.2)
    with style():
        figure = Figure(figsize=size, layout="constrained")
        axes: list[Axes] = list(cast(Any, figure).subplots(rows, columns, squeeze=False).flat)
        for k, (m, ax) in enumerate(zip(shown, axes, strict=False)):
            _panel(ax, m)
            ax.set_xlabel(x_label(m.runs.surfaces[0]) if k + columns >= len(shown) else "")
            ax.set_ylabel(f"largest certified {W_LABEL}" if k % columns == 0 else "")
        for ax in axes[len(shown) :]:
            ax.remove()
        under(figure, _caption(shown))
    return figure


def _panel(ax: Axes, m: Model) -> None:
    draw, top = cast(Any, ax), m.runs.surfaces[0].eps_w[-1]
    for k, front in enumerate(m.fronts):
        color, marker, dashes = LOOKS[k % len(LOOKS)]
        x = [x for x, w in zip(front.eps_x, front.eps_w, strict=True) if w is not None]
        w = [w for w in front.eps_w if w is not None]
        if w:  # what is certified at the first input radius is certified at all below it
            draw.fill_between([0.0, *x], [w[0], *w], step="pre", color=color, alpha=0.08, linewidth=0)
        steps = ([0.0, *x], [w[0], *w]) if w else ([], [])
        draw.plot(
            *steps, drawstyle="steps-pre", color=color, linestyle=dashes, linewidth=1.4, marker=marker, markersize=4,
            markevery=slice(1, None), clip_on=not w, zorder=3, label=f"{100 * front.accuracy:g} %" + ("" if w else " (nowhere)"),
        )  # fmt: skip
    draw.axhline(top, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
    draw.set(ylim=(0, 1.06 * top if top > 0 else 1.0), xlim=(0, max(m.fronts[0].eps_x) or 1.0))
    draw.legend(
        loc="upper right", title="of the examples", fontsize=8, title_fontsize=8, frameon=True, framealpha=0.85, edgecolor="none"
    )
    draw.set_title(textwrap.fill(legible(m.title), 40, max_lines=2, placeholder=" …"), loc="left", parse_math=False)
    draw.tick_params(labelsize=8)
    draw.grid(color="0.9", linewidth=0.6)
    draw.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticks())
        axis.set_major_formatter(FuncFormatter(plain))


def _caption(models: Sequence[Model]) -> str:
    surfaces = every_surface(m.runs for m in models)
    text = f"At every point on or below a line, its share of {surfaces[0].n:,} examples is "
    text += how(s for s in surfaces if s.kind == "certified") + "."
    text += units(surfaces)
    text += " Dotted: the largest ε_w that was tried."
    if any(None in front.eps_w for m in models for front in m.fronts):
        text += " Where a line ends, the share is not certified at the next ε_x with any ε_w, not even 0."
    return text
