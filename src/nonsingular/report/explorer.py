"""explorer.py - the maps and curves of the page, and the numbers that its script shows for a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nonsingular.report.lines import Line, key_mark, lines
from nonsingular.report.maps import NUMBERED, stops, surface_map, to_scale
from nonsingular.report.summary import LOOSER, Model, Seeds, input_unit, kinds_of, mean_spread, telling, weight_unit
from nonsingular.report.templating import render

NAMES = {
    "attacked": "Attacked: at most", "shared": "Shared: at least", "certified": "Certified: at least", "gap": "Gap: not known",
}  # fmt: skip
"""Kind of a map -> its name in the switch."""
BANDS = 4
"""With this many models a picture of curves has no bands, which would overlap."""
HINT = (
    "Each cell: accuracy in % with every input value perturbed by at most ε_x and every weight by at most ε_w. "
    "Lines join equal accuracy."
)


def explorer(models: Sequence[Model], number: int = 0) -> Markup:
    """The maps and lines of some models on one grid, with the switches between them.  number: of the group on the page."""
    kinds = shown_kinds(models)
    told = {"accuracy": "accuracy", "gap": "not known"}
    return render(
        "explorer.html", number=number, state="many" if len(models) > 1 else "one", hint=HINT,
        title=f"{kinds[0].capitalize()} accuracy over both radii" if len(kinds) == 1 else "Accuracy over both radii",
        switches=[(kind, NAMES[kind]) for kind in kinds], titles=[m.title for m in models],
        maps=[_map(k, m, kind) for kind in kinds for k, m in enumerate(models) if kind in _accuracies(m)],
        bars=[(p, what, stops(p)) for p, what in told.items() if p == "accuracy" or "gap" in kinds],
        legend=_legend(models), curves=_curves(models), curves_note=_about_curves(models), data=_data(models, kinds),
    )  # fmt: skip


def shown_kinds(models: Sequence[Model]) -> tuple[str, ...]:
    """The kinds of accuracy, and "gap", that some model has."""
    found = {kind for m in models for kind in _accuracies(m)}
    return tuple(kind for kind in NAMES if kind in found)


def _accuracies(m: Model) -> dict[str, NDArray[Any]]:
    found = {kind: runs.accuracy for kind, runs in m.runs.kinds.items()}
    return found if (gap := m.runs.gap) is None else found | {"gap": gap}


def _map(number: int, m: Model, kind: str) -> dict[str, Any]:
    grid, accuracy = m.runs.surfaces[0], _accuracies(m)[kind]
    runs = m.runs.kinds.get(kind)
    areas = f"AUC {mean_spread([s.auc for s in runs.surfaces])}" if runs else f"mean {_gap(m)}"
    svg = surface_map(
        accuracy, grid.eps_x, grid.eps_w, label=f"{m.title}, {kind}, {areas}. Every number is in the tables below.",
        palette="gap" if kind == "gap" else "accuracy", marked=frozenset(_notes(m, runs)) if runs else frozenset(),
    )  # fmt: skip
    of = "" if list(m.runs.kinds) == ["attacked"] else f"{kind}, "
    return {"model": number, "kind": kind, "title": m.title, "caption": of + areas, "svg": svg}


def _gap(m: Model) -> str:
    """The mean gap over the grid."""
    assert m.runs.proven is not None
    return mean_spread([a.auc - c.auc for a, c in zip(m.runs.surfaces, m.runs.proven.surfaces, strict=True)])


def _legend(models: Sequence[Model]) -> list[str]:
    grid, told = models[0].runs.surfaces[0], list[str]()
    if any(_notes(m, runs) for m in models for runs in m.runs.kinds.values()):
        told.append("* marks a cell with a flag or a rise of accuracy, which is explained with the cell and in the tables.")
    if not (to_scale(grid.eps_x) and to_scale(grid.eps_w)):
        told.append("An axis whose steps are very unequal is drawn with equal steps.")
    if max(grid.accuracy.shape) > NUMBERED:
        told.append("The grid is too fine for numbers in its cells; the tables have them.")
    return told


def _notes(m: Model, runs: Seeds) -> dict[tuple[int, int], list[str]]:
    """(row, column) -> remarks on that cell."""
    told: dict[tuple[int, int], list[str]] = {}
    several = len(m.seeds) > 1
    for seed, s in zip(m.seeds, runs.surfaces, strict=True):
        of = f" (seed {seed})" if several else ""
        for at, flags in s.flags.items():
            told.setdefault(at, []).extend(f"{FLAGS.get(flag, flag)}{of}" for flag in flags)
    kind = runs.surfaces[0].kind
    for at in runs.risen:
        told.setdefault(at, []).append(f"{kind} accuracy rises to this point: {LOOSER[kind]}")
    return told


FLAGS = {
    "one-class": "one-class: every prediction under the attack is the same class",
    "moving": "moving: the last round of the attack still lowered the accuracy; more rounds may lower it further",
}


# --- lines ----------------------------------------------------------------------------------------------------------------


def _curves(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Accuracy along each radius with the other at its smallest: all models in one picture, then each model."""
    grid = models[0].runs.surfaces[0]
    axes = [a for a, radii in (("x", grid.eps_x), ("w", grid.eps_w)) if len(radii) > 1]
    if not axes:
        return []
    parts: list[dict[str, Any]] = []
    if len(models) > 1:
        kind = "attacked" if "attacked" in kinds_of(m.runs for m in models) else "certified"
        shown = [(m.title, m.runs.kinds[kind], k) for k, m in enumerate(models) if kind in m.runs.kinds]
        title = f"All models, {kind}"
        parts.append({"key": "all", "title": title} | _pair(axes, shown, band=len(shown) < BANDS))
    for k, m in enumerate(models):
        shown = [(kind, runs, i) for i, (kind, runs) in enumerate(m.runs.kinds.items())]
        parts.append({"key": str(k), "title": m.title} | _pair(axes, shown))
    return parts


def _about_curves(models: Sequence[Model]) -> str:
    text = "Along one radius, with the other at its smallest. Bands: 95 % interval"
    text += ", the lowest to the highest end of the seeds" if any(len(m.seeds) > 1 for m in models) else ""
    return text + (f"; none where {BANDS} or more models share a picture." if len(models) >= BANDS else ".")


def _pair(axes: Sequence[str], shown: Sequence[tuple[str, Seeds, int]], *, band: bool = True) -> dict[str, Any]:
    """The pictures, one for each axis, and their key."""
    grid = shown[0][1].surfaces[0]
    svgs: list[Markup] = []
    for axis in axes:
        at = np.s_[0, :] if axis == "x" else np.s_[:, 0]
        radii, fixed = (grid.eps_x, grid.eps_w[0]) if axis == "x" else (grid.eps_w, grid.eps_x[0])
        drawn = [Line(name, runs.accuracy[at], runs.interval[0][at], runs.interval[1][at], look) for name, runs, look in shown]
        svgs.append(lines(radii, drawn, axis=axis, fixed=fixed, band=band))
    return {"svgs": svgs, "marks": [(key_mark(look), name) for name, _, look in shown]}


# --- what the script knows ------------------------------------------------------------------------------------------------


def _data(models: Sequence[Model], kinds: Sequence[str]) -> Mapping[str, Any]:
    """All numbers as text, formatted as in the tables."""
    grid = models[0].runs.surfaces[0]
    several = any(len(m.seeds) > 1 for m in models)
    interval = "the lowest and the highest end of the seeds' 95 % intervals." if several else "95 % interval."
    return {
        "x": [f"{x:g}" for x in grid.eps_x], "w": [f"{w:g}" for w in grid.eps_w], "kinds": list(kinds),
        "at": list(telling(models)), "unit": weight_unit(grid.about), "unitX": input_unit(grid.about),
        "interval": f"To the right: {interval}",
        "models": [_model(m) for m in models],
    }  # fmt: skip


def _model(m: Model) -> dict[str, Any]:
    told: dict[str, Any] = {"title": m.title, "seeds": list(m.seeds)}
    notes: dict[str, list[str]] = {}
    for kind, runs in m.runs.kinds.items():
        low, high = runs.interval
        told[kind] = {"a": _texts(runs.accuracy), "low": _texts(low), "high": _texts(high)}
        if len(m.seeds) > 1:
            told[kind]["by"] = [_texts(s.accuracy) for s in runs.surfaces]
        for (i, j), lines_of in sorted(_notes(m, runs).items()):
            notes.setdefault(f"{i},{j}", []).extend(lines_of)
    found = _accuracies(m)
    if "gap" in found:
        told["gap"] = _texts(found["gap"])
    if "attacked" in found:
        told["broken"] = _texts(1 - found["attacked"])
    return told | {"notes": notes}


def _texts(shares: Iterable[Iterable[Any]]) -> list[list[str]]:
    return [[f"{100 * a:.1f}" for a in row] for row in shares]
