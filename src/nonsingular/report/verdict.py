"""verdict.py - what the results say, in two or three sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from nonsingular.report.summary import Model, input_unit, mean_spread, middle, telling, weight_unit

WEIGHTS = {
    "sample": "Each example meets its own worst weights.",
    "batch": "The examples of a batch share their worst weights.",
    "dataset": "All examples share one set of worst weights.",
}
"""Scope -> who shares W', in plain words."""


def verdict(results: Mapping[str, Any], models: Sequence[Model]) -> str:
    """The accuracy at one point of the grid, in words: of the first model, and of the best if it is another."""
    grid = models[0].runs.surfaces[0]
    row_, column = at = telling(models)
    radii = (("input value", grid.eps_x[column], input_unit(grid.about)), ("weight", grid.eps_w[row_], weight_unit(grid.about)))
    moved = [f"every {what} off by up to {radius:g}{unit}" for what, radius, unit in radii if radius > 0]
    first = models[0]
    rivals = [m for m in models if m.runs.surfaces[0].kind == grid.kind]
    best = max(rivals, key=lambda m: m.runs.accuracy[at])
    told = [first] if best is first else [first, best]
    n, split = results["data"]["n"], results["data"]["split"]
    proven = grid.kind == "certified"
    side = "at least" if proven else "at most"

    def share(m: Model, examples: str = "") -> str:
        """Accuracy with its interval."""
        low, high = (f"{100 * end[at]:.1f}" for end in m.runs.interval)
        text = f"{side} {100 * m.runs.accuracy[at]:.1f} %{examples} ({'95 % interval ' if examples else ''}{low} to {high} %)"
        return text

    def sure(m: Model) -> str:
        if not (m.runs.attacked and m.runs.proven):
            return ""
        low, high = (f"{100 * end[at]:.1f}" for end in m.runs.proven.interval)
        return f"; {100 * m.runs.proven.accuracy[at]:.1f} % ({low} to {high} %) are proven to be"

    text = f"With {' and '.join(moved) or 'nothing moved'}{' at once' if len(moved) > 1 else ''}, "
    text += f"{share(first, f' of {n:,} {split} examples')} are {'proven to be' if proven else 'still'} "
    text += f"classified correctly by the model “{first.title}”{sure(first)}"
    if len(told) > 1:
        text += f"; by the best of {len(rivals)} models, “{best.title}”, {share(best)}{sure(best)}"
    elif len(rivals) > 1:
        text += f"; none of the other {len(rivals) - 1} does better"
    if not proven:
        certain = [(m, m.runs.proven.accuracy[at]) for m in models if m.runs.proven]
        most, most_share = max(certain, key=lambda item: item[1], default=(first, 0.0))
        if most not in told and most_share > max((a for m, a in certain if m in told), default=0.0):
            text += f"; the highest certified accuracy is that of “{most.title}”, {100 * most_share:.1f} %"
    return f"{text}."


def areas(models: Sequence[Model]) -> str:
    """Clean accuracy and the areas of the models that the verdict names."""
    at = telling(models)
    best = max(models, key=lambda m: m.runs.accuracy[at])
    parts: list[str] = []
    for m in dict.fromkeys([models[0].title, best.title]):
        (model,) = (x for x in models if x.title == m)
        found = [f"{mean_spread([s.auc for s in runs.surfaces])} {kind}" for kind, runs in model.runs.kinds.items()]
        of = f"“{m}”: " if len(models) > 1 else ""
        parts.append(f"{of}{100 * fmean(model.clean):.1f} % clean accuracy; AUC, the mean over the grid, {', '.join(found)}.")
    return " ".join(parts)


def remarks(models: Sequence[Model]) -> str:
    """Remarks on the verdict: whether it is about another point than the middle, and who shares W'."""
    at, grid = telling(models), models[0].runs.surfaces[0]
    centre, parts = middle(grid), list[str]()
    if at != centre:
        where = f"ε_x = {grid.eps_x[centre[1]]:g}, ε_w = {grid.eps_w[centre[0]]:g}"
        most = max(100 * m.runs.accuracy[centre] for m in models)
        parts.append(f"In the middle of the grid, at {where}, accuracy is {'at most ' if len(models) > 1 else ''}{most:.1f} %.")
    scopes = dict.fromkeys(s.scope for m in models for s in m.runs.surfaces if s.kind == "attacked")
    parts += [WEIGHTS[scope] for scope in scopes if scope in WEIGHTS]
    return " ".join(parts)
