"""figure.py - accuracy over input and weight radius, one panel per model.  The form is Figure 1 of arXiv:2102.11935."""

from __future__ import annotations

import io
import os
import string
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
from nonsingular.records import Surface, write_atomic
from nonsingular.report.summary import Seeds, between, how, mean_spread, same_grid, seed_count, weight_unit

CMAP = matplotlib.colormaps["viridis"]
BANDS = np.arange(0.0, 101.0, 5.0)
LINES = {10.0: "white", 30.0: "white", 50.0: "white", 70.0: "black", 90.0: "black"}
NORM = BoundaryNorm(BANDS, CMAP.N)  # one scale for every panel of every figure: 0 to 100 %
X_LABEL, W_LABEL, A_LABEL = "$ε_x$ (input radius, data units)", r"$ε_w$ (weight radius, $\ell_\infty$)", "accuracy (%)"
METADATA: Mapping[str, dict[str, None]] = {  # no date, no version: the same run gives the same bytes
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def contours(
    panels: Mapping[str, Sequence[Surface]], *, path: str | os.PathLike[str] | None = None, title: str | None = None
) -> Figure:
    """Contours of the mean accuracy over the seeds, one panel per model (title -> surface of each seed).

    A grid of one row or column is drawn as a line with its interval, a single point as a number.  A ring marks each point
    where the accuracy of some seed rises.  Written to `path` (png, svg, pdf) if given.
    Raises InvalidInput for another suffix, for no or more than 26 panels, and for different grids.
    """
    suffix = None if path is None else _suffix(Path(path))
    if not 1 <= len(panels) <= len(string.ascii_lowercase):
        raise InvalidInput(f"a figure of {len(panels)} panels cannot be drawn; give 1 to {len(string.ascii_lowercase)} models")
    runs = {name: Seeds(tuple(surfaces)) for name, surfaces in panels.items()}
    same_grid(s for r in runs.values() for s in r.surfaces)
    with _style():
        figure = _draw(runs, title)
    if path is not None and suffix is not None:
        write_atomic(Path(path), render(figure, suffix))
    return figure


def render(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of this kind ("png", "svg", "pdf"); equal figures give equal bytes."""
    buffer = io.BytesIO()
    with _style():
        cast(Any, figure).savefig(buffer, format=suffix, dpi=150, metadata=METADATA[suffix])
    return buffer.getvalue()


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in METADATA:
        raise InvalidInput(f"cannot write a figure as {path.name!r}; give a name that ends in .png, .svg or .pdf")
    return suffix


def _style() -> AbstractContextManager[None]:
    """Our settings over matplotlib's defaults for the time of a call: the reader's own settings change nothing."""
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
    ours = {"font.size": 9, "axes.titlesize": 9.5, "axes.linewidth": 0.6, "svg.hashsalt": "nonsingular", "svg.fonttype": "path"}
    return matplotlib.rc_context(cast(Any, defaults | ours))


def _draw(runs: Mapping[str, Seeds], title: str | None) -> Figure:
    rows = -(-len(runs) // 4)
    columns = -(-len(runs) // rows)
    shape = next(iter(runs.values())).accuracy.shape
    panel = _number if shape == (1, 1) else _line if 1 in shape else _map
    size = (3.0 * columns + 0.9, 2.9 * rows + 0.6) if len(runs) > 1 else (5.2, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = cast(Any, figure).subplots(rows, columns, squeeze=False)
    axes = cast(list[Axes], list(grid.flat))
    for k, ((name, run), ax) in enumerate(zip(runs.items(), axes, strict=False)):
        panel(ax, run)
        bottom, left = k + columns >= len(runs), k % columns == 0
        cast(Any, ax).tick_params(labelsize=8)
        ax.set_xlabel(ax.get_xlabel() if bottom else "")
        ax.set_ylabel(ax.get_ylabel() if left else "")
        head = f"({string.ascii_lowercase[k]}) {name}" if len(runs) > 1 else name
        ax.set_title(_heading(head, run), loc="left", linespacing=1.35, parse_math=False)
    spare = axes[len(runs) :]
    if spare:
        _bars(spare[0], list(runs.values()))
    for ax in spare[1:]:
        ax.remove()
    draw = cast(Any, figure)
    if panel is _map:
        bar = draw.colorbar(
            ScalarMappable(NORM, CMAP),
            ax=axes[: len(runs) + len(spare[:1])],
            ticks=range(0, 101, 10),
            aspect=22 * rows,
            pad=0.012,
        )
        bar.set_label(A_LABEL)
        bar.outline.set_linewidth(0.6)
    if title:
        draw.suptitle(title, fontsize=12, parse_math=False)
    draw.supxlabel(
        _caption(list(runs.values()), int(size[0] * 16)), x=0.01, ha="left", fontsize=8, color="0.25", parse_math=False
    )
    draw.draw_without_rendering()  # the layout is fixed here, so that every file shows the same one
    figure.set_layout_engine("none")
    if panel is _map:
        for run, ax in zip(runs.values(), axes, strict=False):
            _lines(ax, run)
    return figure


def _heading(head: str, run: Seeds) -> str:
    head = textwrap.fill(head, 36, max_lines=2, placeholder=" …")
    auc, count = [s.auc for s in run.surfaces], len(run.surfaces)
    return f"{head}\nAUC {mean_spread(auc)}" + (f" ({seed_count(count)})" if count > 1 else "")


def _caption(runs: Sequence[Seeds], width: int) -> str:
    surfaces = [s for r in runs for s in r.surfaces]
    first, most = surfaces[0], max(len(r.surfaces) for r in runs)

    def each(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    text = f"Accuracy on {each([f'{s.n:,}' for s in surfaces])} examples, {how(surfaces)}."
    text += "".join(f" A weight moves by up to ε_w{unit}." for unit in {weight_unit(s.about): 0 for s in surfaces} if unit)
    if most > 1:
        text += " Mean over the seeds; ± is their sample standard deviation."
    if 1 in first.accuracy.shape and first.accuracy.size > 1:
        text += f" Here {f'ε_w = {first.eps_w[0]:g}' if len(first.eps_w) == 1 else f'ε_x = {first.eps_x[0]:g}'}."
        text += " Band: 95 % Wilson interval" + (", from the lowest to the highest of the seeds." if most > 1 else ".")
    if any(r.risen for r in runs):
        text += " Rings: accuracy rises to that point" + (" in some seed" if most > 1 else "")
        text += "; a true surface never rises, so the attack missed something there."
    return textwrap.fill(text, width)


def _map(ax: Axes, run: Seeds) -> None:
    grid = run.surfaces[0]
    fill = ax.contourf(grid.eps_x, grid.eps_w, _in_percent(run.accuracy), levels=BANDS, cmap=CMAP, norm=NORM)
    fill.set_edgecolor("face")  # hides the seams that viewers of svg and pdf leave between bands
    fill.set_linewidth(0.3)
    at = sorted(run.risen)
    _rings(ax, [grid.eps_x[j] for _, j in at], [grid.eps_w[i] for i, _ in at])
    for axis, label in ((ax.xaxis, X_LABEL), (ax.yaxis, W_LABEL)):
        axis.set_major_locator(_ticks())
        axis.set_major_formatter(FuncFormatter(_plain))
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


def _line(ax: Axes, run: Seeds) -> None:
    grid = run.surfaces[0]
    along, label = (grid.eps_x, X_LABEL) if len(grid.eps_w) == 1 else (grid.eps_w, W_LABEL)
    low, high = run.interval
    line, draw = _in_percent(run.accuracy).ravel(), cast(Any, ax)
    draw.fill_between(along, 100 * low.ravel(), 100 * high.ravel(), color="0.85", linewidth=0)
    draw.plot(along, line, color=CMAP(0.3), marker=".", linewidth=1.4)
    at = [i + j for i, j in sorted(run.risen)]  # one of the two is 0
    _rings(ax, [along[k] for k in at], [line[k] for k in at])
    draw.set(xlabel=label, ylabel=A_LABEL, ylim=(-2, 102))
    draw.margins(x=0.02)
    draw.grid(color="0.9", linewidth=0.6)
    draw.set_axisbelow(True)
    ax.xaxis.set_major_locator(_ticks())
    ax.xaxis.set_major_formatter(FuncFormatter(_plain))


def _number(ax: Axes, run: Seeds) -> None:
    grid, (low, high), draw = run.surfaces[0], run.interval, cast(Any, ax)
    draw.set_axis_off()
    note = f"{between(low.item(), high.item(), len(run.surfaces))}\nat ε_x = {grid.eps_x[0]:g}, ε_w = {grid.eps_w[0]:g}"
    note = "\n".join(textwrap.fill(line, 34) for line in note.splitlines())
    draw.text(0.5, 0.6, f"{100 * run.accuracy.item():.1f} %", ha="center", va="bottom", fontsize=26, transform=ax.transAxes)
    draw.text(0.5, 0.54, note, ha="center", va="top", linespacing=1.5, transform=ax.transAxes)


def _bars(ax: Axes, runs: Sequence[Seeds]) -> None:
    auc = [[s.auc for s in r.surfaces] for r in runs]
    means, spreads = [fmean(a) for a in auc], [stdev(a) if len(a) > 1 else 0.0 for a in auc]
    ends = [m + s for m, s in zip(means, spreads, strict=True)]
    draw, limit = cast(Any, ax), 1.3 * max([*ends, 1e-3])
    draw.barh(
        range(len(runs)),
        means,
        xerr=spreads if any(spreads) else None,
        height=0.62,
        color="0.72",
        error_kw={"elinewidth": 1, "capsize": 2.5},
    )
    for k, (mean, end) in enumerate(zip(means, ends, strict=True)):
        draw.text(end + 0.03 * limit, k, f"{mean:.3f}", va="center", fontsize=8)
    draw.set_yticks(range(len(runs)), [f"({string.ascii_lowercase[k]})" for k in range(len(runs))])
    draw.set(xlim=(0, limit), xlabel="AUC (volume under the surface)")
    draw.set_title("AUC of the panels", loc="left")
    draw.tick_params(labelsize=8, length=0)
    draw.tick_params(axis="x", length=3)
    draw.invert_yaxis()
    draw.spines[["top", "right"]].set_visible(False)
    ax.xaxis.set_major_locator(_ticks())


def _rings(ax: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    halo = [patheffects.withStroke(linewidth=1.8, foreground="black")]
    cast(Any, ax).scatter(
        x, y, s=10, facecolors="none", edgecolors="white", linewidths=0.8, clip_on=False, zorder=3, path_effects=halo
    )


def _in_percent(accuracy: NDArray[Any]) -> NDArray[Any]:
    return np.clip(100 * accuracy, 0.0, 100.0)


def _ticks() -> MaxNLocator:
    return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])


def _plain(value: float, _position: int | None) -> str:
    return f"{value:.4g}"
