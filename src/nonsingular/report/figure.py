"""figure.py - accuracy over input and weight radius, one panel per model.  The form is Figure 1 of arXiv:2102.11935."""

from __future__ import annotations

import io
import os
import string
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput
from nonsingular.plain import legible
from nonsingular.report.summary import (
    KINDS,
    LOOSER,
    Seeds,
    arithmetics,
    between,
    every_surface,
    how,
    input_unit,
    kinds_of,
    mean_spread,
    same_grid,
    seed_count,
    units,
)
from nonsingular.results.files import write_atomic
from nonsingular.results.surface import Surface

CMAP = matplotlib.colormaps["viridis"]
BANDS = np.arange(0.0, 101.0, 5.0)
LINES = {10.0: "white", 30.0: "white", 50.0: "white", 70.0: "black", 90.0: "black"}
NORM = BoundaryNorm(BANDS, CMAP.N)  # one scale for every panel of every figure: 0 to 100 %
X_LABEL, W_LABEL, A_LABEL = "$ε_x$ (input radius, data units)", r"$ε_w$ (weight radius, $\ell_\infty$)", "accuracy (%)"
CURVES = {"attacked": (CMAP(0.3), ".", "-"), "shared": ("#2b8a3e", "^", ":"), "certified": ("#c8500a", "s", "--")}
"""Colour, marker and dashes of a kind of accuracy that is drawn as a line: distinct with colour blindness and in grey."""
TITLE: Mapping[str, Any] = {"loc": "left", "linespacing": 1.35, "parse_math": False}
METADATA: Mapping[str, dict[str, None]] = {  # no date, no version: the same run gives the same bytes
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def contours(
    panels: Mapping[str, Sequence[Surface]], *, path: str | os.PathLike[str] | None = None, title: str | None = None
) -> Figure:
    """Contours of the mean accuracy over the seeds, one panel per model (title -> surface of each seed).

    Where surfaces carry certified ones, these are drawn on the same scale below (for one model: beside) the attacked ones.
    A grid of one row or column is drawn as a line with its interval, a single point as a number.  A ring marks each point
    where the accuracy of some seed rises.  Written to `path` (png, svg, pdf) if given.
    Raises InvalidInput for another suffix, for no or more than 26 panels, and for different grids.
    """
    suffix = None if path is None else _suffix(Path(path))
    if not 1 <= len(panels) <= len(string.ascii_lowercase):
        raise InvalidInput(f"a figure of {len(panels)} panels cannot be drawn; give 1 to {len(string.ascii_lowercase)} models")
    runs = {legible(name): Seeds(tuple(surfaces)) for name, surfaces in panels.items()}
    same_grid(s for r in runs.values() for s in r.surfaces)
    with style():
        figure = _draw(runs, title)
    if path is not None and suffix is not None:
        write_atomic(Path(path), render(figure, suffix))
    return figure


def render(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of this kind ("png", "svg", "pdf"); equal figures give equal bytes."""
    buffer = io.BytesIO()
    with style():
        cast(Any, figure).savefig(buffer, format=suffix, dpi=150, metadata=METADATA[suffix])
    return buffer.getvalue()


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in METADATA:
        raise InvalidInput(f"cannot write a figure as {path.name!r}; give a name that ends in .png, .svg or .pdf")
    return suffix


def style() -> AbstractContextManager[None]:
    """A context with our settings over matplotlib's defaults, so that the user's rcParams have no effect."""
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
    ours = {"font.size": 9, "axes.titlesize": 9.5, "axes.linewidth": 0.6, "svg.hashsalt": "nonsingular", "svg.fonttype": "path"}
    return matplotlib.rc_context(cast(Any, defaults | ours))


def _draw(runs: Mapping[str, Seeds], title: str | None) -> Figure:
    every, kinds = list(runs.values()), kinds_of(runs.values())
    shape, alone = every[0].accuracy.shape, len(runs) == 1
    mapped = 1 not in shape
    layers = kinds if mapped else ("",)  # the maps of a model lie one above the other, those of a single one side by side
    bands = -(-len(runs) // 4)
    columns = -(-len(runs) // bands)
    down, across = (1, len(layers)) if alone else (bands * len(layers), columns)
    size = (3.0 * across + 0.9, 2.9 * down + 0.6) if not alone else (5.2, 4.4) if across == 1 else (2.2 + 3.0 * across, 4.2)
    figure = Figure(figsize=size, layout="constrained")
    axes, draw = cast(Any, figure).subplots(down, across, squeeze=False), cast(Any, figure)
    spare: list[Axes] = list(axes.flat)
    maps: list[tuple[Axes, Seeds]] = []
    for (layer, kind), (k, (name, run)) in product(enumerate(layers), enumerate(runs.items())):
        row, column = (0, layer) if alone else (k // columns * len(layers) + layer, k % columns)
        ax: Axes = axes[row, column]
        spare.remove(ax)
        if not mapped:
            (_number if shape == (1, 1) else _line)(ax, run, legend=k == 0)
        elif kind in run.kinds:
            _map(ax, run.kinds[kind])
            maps.append((ax, run.kinds[kind]))
        else:
            _missing(ax, f"not {kind}")
        cast(Any, ax).tick_params(labelsize=8)
        bottom = alone or (k + columns >= len(runs) and layer == len(layers) - 1)
        ax.set_xlabel(ax.get_xlabel() if bottom else "")
        ax.set_ylabel(ax.get_ylabel() if column == 0 else "")
        letter = "" if alone else f"({string.ascii_lowercase[k]}) "
        lines = _areas({of: shown for of, shown in run.kinds.items() if not mapped or of == kind}, kinds)
        head = [textwrap.fill(letter + name, 36, max_lines=2, placeholder=" …")] if layer == 0 else []
        ax.set_title("\n".join([*head, *lines] if head else [letter + line for line in lines]), **TITLE)
    if spare:
        _bars(spare[0], every)
    for ax in spare[1:]:
        ax.remove()
    if mapped:
        beside = [ax for ax in axes.flat if ax not in spare[1:]]
        bar = draw.colorbar(ScalarMappable(NORM, CMAP), ax=beside, ticks=range(0, 101, 10), aspect=22 * down, pad=0.012)
        bar.set_label(A_LABEL)
        bar.outline.set_linewidth(0.6)
    if title:
        draw.suptitle(title, fontsize=12, parse_math=False)
    under(figure, _caption(every))
    for ax, run in maps:
        _lines(ax, run)
    return figure


def under(figure: Figure, caption: str) -> None:
    """Write the caption below a finished figure and freeze the layout, so that all files look the same."""
    draw = cast(Any, figure)
    text = textwrap.fill(legible(caption), int(figure.get_size_inches()[0] * 16))
    draw.supxlabel(text, x=0.01, ha="left", fontsize=8, color="0.25", parse_math=False)
    draw.draw_without_rendering()
    figure.set_layout_engine("none")


def _areas(shown: Mapping[str, Seeds], kinds: Sequence[str]) -> list[str]:
    """One line with the AUC for each of `shown`, named if not every accuracy of the figure is attacked."""
    if "certified" in kinds:
        return [f"{kind}: AUC {mean_spread([s.auc for s in run.surfaces])}" for kind, run in shown.items()]
    return [
        f"AUC {mean_spread([s.auc for s in run.surfaces])}" + (f" ({seed_count(count)})" if count > 1 else "")
        for run in shown.values() for count in [len(run.surfaces)]
    ]  # fmt: skip


def _caption(runs: Sequence[Seeds]) -> str:
    surfaces, kinds = every_surface(runs), kinds_of(runs)
    first, most = surfaces[0], max(len(r.surfaces) for r in runs)
    text = f"Accuracy on {', '.join(dict.fromkeys(f'{s.n:,}' for s in surfaces))} examples, {how(surfaces)}."
    if "certified" in kinds:
        text += " Attacked: an upper bound of robust accuracy." if "attacked" in kinds else ""
        text += " Shared: a lower bound where examples share W', for every attack." if "shared" in kinds else ""
        text += f" Certified: a lower bound of robust accuracy for every attack, {arithmetics(surfaces)}."
    text += units(surfaces)
    if most > 1:
        counts = ", ".join(dict.fromkeys(str(len(r.surfaces)) for r in runs)) + " " if "certified" in kinds else ""
        text += f" Mean over the {counts}seeds; ± is their sample standard deviation."
    if 1 in first.accuracy.shape and first.accuracy.size > 1:
        text += f" Here {f'ε_w = {first.eps_w[0]:g}' if len(first.eps_w) == 1 else f'ε_x = {first.eps_x[0]:g}'}."
        if any(len(r.kinds) > 1 for r in runs):
            proven = "shared" if "shared" in kinds else "certified"
            text += f" Grey: between attacked and {proven} accuracy, where the truth is not known. Bars"
        else:
            text += " Band"
        text += ": 95 % Wilson interval" + (", from the lowest to the highest of the seeds." if most > 1 else ".")
    some = " in some seed" if most > 1 else ""
    for kind in KINDS:
        why = "the attack missed something there" if kind == "attacked" else LOOSER[kind]
        if any(r.kinds[kind].risen for r in runs if kind in r.kinds):
            text += f" Rings: {'' if kind == 'attacked' else f'{kind} '}accuracy rises to that point{some}"
            text += f"; a true surface never rises, so {why}."
    return text


def x_label(grid: Surface) -> str:
    """The label of the axis of input radii."""
    return "$ε_x$ (fraction of the given input radii)" if input_unit(grid.about) else X_LABEL


def _missing(ax: Axes, what: str) -> None:
    cast(Any, ax).set_axis_off()
    cast(Any, ax).text(0.5, 0.5, what, ha="center", va="center", color="0.4", transform=ax.transAxes)


def _map(ax: Axes, run: Seeds) -> None:
    grid = run.surfaces[0]
    fill = ax.contourf(grid.eps_x, grid.eps_w, _in_percent(run.accuracy), levels=BANDS, cmap=CMAP, norm=NORM)
    fill.set_edgecolor("face")  # hides the seams that viewers of svg and pdf leave between bands
    fill.set_linewidth(0.3)
    at = sorted(run.risen)
    _rings(ax, [grid.eps_x[j] for _, j in at], [grid.eps_w[i] for i, _ in at])
    for axis, label in ((ax.xaxis, x_label(grid)), (ax.yaxis, W_LABEL)):
        axis.set_major_locator(ticks())
        axis.set_major_formatter(FuncFormatter(plain))
        axis.set_label_text(label)


def _lines(ax: Axes, run: Seeds) -> None:
    """Contour lines, each with its percentage where it is farthest from the other lines; no two percentages touch."""
    grid, accuracy = run.surfaces[0], _in_percent(run.accuracy)
    levels = [v for v in LINES if accuracy.min() < v < accuracy.max()]
    if not levels:
        return
    drawn = ax.contour(grid.eps_x, grid.eps_w, accuracy, levels=levels, colors=[LINES[v] for v in levels], linewidths=0.9)
    to_axes = ax.transData + ax.transAxes.inverted()
    paths = [_resample(to_axes.transform(max(segments, key=len))) for segments in drawn.allsegs]
    box = ax.get_window_extent()
    unit = np.array([11.0, 6.0]) / 72 * cast(Figure, ax.figure).dpi / (box.width, box.height)  # half a label, of the panel

    def gap(points: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        """Distance to the nearest of `others` in half labels: two labels touch at 2."""
        distance = np.abs(points[:, None] - others[None]) / unit
        return distance.max(-1).min(-1, initial=np.inf)

    placed = np.empty((0, 2))
    for k, (level, path) in enumerate(zip(levels, paths, strict=True)):
        inside = np.clip(path, 1.3 * unit, 1 - 1.3 * unit)
        others = np.concatenate([p for j, p in enumerate(paths) if j != k] or [placed])
        moved = (np.abs(inside - path) / unit).max(-1)
        score = np.where(gap(inside, placed) < 2.2, -np.inf, np.minimum(gap(inside, others), 4.0) - moved)
        best = inside[score.argmax()]
        if np.isfinite(score.max()):
            placed = np.vstack([placed, best])
            halo = [patheffects.withStroke(linewidth=2.2, foreground="white")]
            cast(Any, ax).text(
                *best, f"{level:.0f} %", transform=ax.transAxes, ha="center", va="center", fontsize=7.5, path_effects=halo
            )


def _resample(path: NDArray[Any], count: int = 80) -> NDArray[Any]:
    """(count, 2) points at equal steps along a path."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    at = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(at, along, path[:, 0]), np.interp(at, along, path[:, 1])], axis=1)


def _line(ax: Axes, run: Seeds, *, legend: bool) -> None:
    grid, draw, both = run.surfaces[0], cast(Any, ax), len(run.kinds) > 1
    along, label = (grid.eps_x, x_label(grid)) if len(grid.eps_w) == 1 else (grid.eps_w, W_LABEL)
    if both:
        ends = [_in_percent(r.accuracy).ravel() for r in (run, run.proven) if r]
        draw.fill_between(along, *ends, color="0.88", linewidth=0, label="not known")
    for kind, shown in run.kinds.items():
        line, (low, high) = _in_percent(shown.accuracy).ravel(), [100 * end.ravel() for end in shown.interval]
        color, marker, dashes = CURVES[kind]
        look = {"color": color, "marker": marker, "linestyle": dashes, "linewidth": 1.4, "label": kind}
        if both:
            reach = np.maximum([line - low, high - line], 0.0)
            draw.errorbar(along, line, yerr=reach, markersize=4, elinewidth=0.7, capsize=1.5, **look)
        else:
            draw.fill_between(along, low, high, color="0.85", linewidth=0)
            draw.plot(along, line, **look)
        at = [i + j for i, j in sorted(shown.risen)]  # one of the two is 0
        _rings(ax, [along[k] for k in at], [line[k] for k in at])
    if both and legend:
        draw.legend(fontsize=8, frameon=False)
    draw.set(xlabel=label, ylabel=A_LABEL, ylim=(-2, 102))
    draw.margins(x=0.02)
    draw.grid(color="0.9", linewidth=0.6)
    draw.set_axisbelow(True)
    ax.xaxis.set_major_locator(ticks())
    ax.xaxis.set_major_formatter(FuncFormatter(plain))


def _number(ax: Axes, run: Seeds, *, legend: bool) -> None:
    grid, draw, kinds = run.surfaces[0], cast(Any, ax), run.kinds
    draw.set_axis_off()
    ends = [run.proven, run] if run.gap is not None and run.proven else [run]
    numbers = [f"{100 * shown.accuracy.item():.1f}" for shown in ends]
    notes: list[str] = []
    for kind, shown in kinds.items():
        low, high = shown.interval
        name = "" if list(kinds) == ["attacked"] else f"{kind} {100 * shown.accuracy.item():.1f} %, "
        notes.append(name + between(low.item(), high.item(), len(shown.surfaces)))
    notes.append(f"at ε_x = {grid.eps_x[0]:g}, ε_w = {grid.eps_w[0]:g}")
    width = 34 if len(kinds) == 1 else 42
    note = "\n".join(textwrap.fill(line.replace(" %", "\N{NO-BREAK SPACE}%"), width) for line in notes)
    draw.text(
        0.5,
        0.6,
        f"{' to '.join(numbers)} %",
        ha="center",
        va="bottom",
        fontsize=26 if len(numbers) == 1 else 20,
        transform=ax.transAxes,
    )
    draw.text(
        0.5, 0.54, note, ha="center", va="top", fontsize=9 if len(kinds) == 1 else 8, linespacing=1.5, transform=ax.transAxes
    )


def _bars(ax: Axes, runs: Sequence[Seeds]) -> None:
    """AUC of every model: a wide bar for attacked accuracy, a narrow one in it for proven accuracy."""
    draw, limit, kinds = cast(Any, ax), 1e-3, kinds_of(runs)
    ends, told = [0.0] * len(runs), [""] * len(runs)
    for kind, height, color in (("attacked", 0.62, "0.72"), ("proven", 0.32 if len(kinds) > 1 else 0.62, "0.42")):
        for k, shown in ((k, found) for k, r in enumerate(runs) if (found := getattr(r, kind))):
            auc = [s.auc for s in shown.surfaces]
            mean, spread = fmean(auc), stdev(auc) if len(auc) > 1 else 0.0
            error = {"xerr": spread, "error_kw": {"elinewidth": 1, "capsize": 2.5}} if spread else {}
            draw.barh(k, mean, height=height, color=color, **error)
            ends[k], told[k] = max(ends[k], mean + spread), f"{mean:.3f}" + (f" to {told[k]}" if told[k] else "")
    limit = max(limit, (1.3 if len(kinds) == 1 else 1.7) * max(ends))
    for k, end in enumerate(ends):
        draw.text(end + 0.03 * limit, k, told[k], va="center", fontsize=8)
    draw.set_yticks(range(len(runs)), [f"({string.ascii_lowercase[k]})" for k in range(len(runs))])
    draw.set(xlim=(0, limit), xlabel="AUC (volume under the surface)")
    draw.set_title("AUC of the panels" if len(kinds) == 1 else "AUC: certified (dark)\nto attacked (light)", loc="left")
    draw.tick_params(labelsize=8, length=0)
    draw.tick_params(axis="x", length=3)
    draw.invert_yaxis()
    draw.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(ticks())


def _rings(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    halo = [patheffects.withStroke(linewidth=1.8, foreground="black")]
    cast(Any, ax).scatter(
        x, y, s=10, facecolors="none", edgecolors="white", linewidths=0.8, clip_on=False, zorder=3, path_effects=halo
    )


def _in_percent(accuracy: NDArray[Any]) -> NDArray[Any]:
    return np.clip(100 * accuracy, 0.0, 100.0)


def ticks() -> MaxNLocator:
    return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])


def plain(value: float, _position: int | None) -> str:
    return f"{value:.4g}"
