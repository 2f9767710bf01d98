"""html.py - the results as one self-contained page, which makes no requests, prints, and can be read without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from statistics import fmean
from typing import Any

from markupsafe import Markup
from numpy.typing import NDArray

from nonsingular.catalog import Card, cards
from nonsingular.plain import legible_all
from nonsingular.report.compare import statement
from nonsingular.report.explorer import NAMES, explorer
from nonsingular.report.meaning import meaning
from nonsingular.report.single import by_class, first_to_break
from nonsingular.report.summary import (
    Model,
    Seeds,
    between,
    deployed_of,
    every_surface,
    kinds_of,
    read,
    seed_count,
    sides,
    telling,
)
from nonsingular.report.table import Rows, claim_rows, doubt_lines, front_rows, masking_lines, model_rows, setting
from nonsingular.report.templating import card, render
from nonsingular.report.verdict import areas, remarks, verdict
from nonsingular.results.surface import Surface

MOST_RISES = 10
"""Rises listed per model, the largest first; the others are in results.json."""

MARKS = {"reproduced": "✓", "holds": "✓", "not reproduced": "✗", "does not hold": "✗", "undecided": "?"}


def page(groups: Sequence[Mapping[str, Any]], radii_svg: Sequence[str] = ()) -> str:
    """One self-contained HTML page: verdict, surfaces, models, claims, every number, and what is needed to do it again.

    groups: results, one after the other; within each the numbers compare.  radii_svg: for each, the figure of its fronts as
    `figure.render` wrote it, or "".
    """
    groups = [legible_all(results) for results in groups]
    names = ", ".join(dict.fromkeys(str(g["data"]["name"]) for g in groups))
    style, script = (
        (files("nonsingular.report") / f"templates/page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    shown = [
        _group(results, svg, k) | {"name": str(results.get("run", k + 1)) if len(groups) > 1 else ""}
        for k, (results, svg) in enumerate(zip(groups, radii_svg or [""] * len(groups), strict=True))
    ]
    made = render(
        "page.html", title=f"Robustness to inputs and weights: {names}", warnings=statement(groups), groups=shown,
        style=Markup(style), script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )  # fmt: skip
    return str(made)


def _group(results: Mapping[str, Any], radii_svg: str, number: int) -> dict[str, Any]:
    """What group.html shows of results whose numbers compare."""
    models = read(results)
    entries = list(zip([m.title for m in models], results["models"].values(), strict=True))
    classes = results["data"].get("classes", ())
    kinds = kinds_of(m.runs for m in models)
    notes = [*setting(results), sides(m.runs for m in models)]
    if any(len(m.seeds) > 1 for m in models):
        notes.append("Accuracies are means over the seeds; an interval spans those of the seeds.")
    return {
        "verdict": verdict(results, models), "tiles": _tiles(models), "warnings": _warnings(models, entries),
        "also": f"{areas(models) if len(models) > 1 else ''} {remarks(models)}".strip(), "notes": " ".join(notes),
        "explorer": explorer(models, number), "models": model_rows(models),
        "claims": _claims(results), "fronts": _fronts(models, radii_svg, number), "masking": _masking(entries),
        "by_class": by_class(entries, classes),
        "first_to_break": first_to_break(entries, classes, results["data"].get("columns", ())),
        "surfaces": [_surface(m) for m in models], "surfaces_hint": _hint(kinds), "methods": _methods(models),
        "meaning": meaning(kinds, fronts=any(m.fronts for m in models), deployed=deployed_of(m.runs for m in models)),
        "command": str(results.get("command", "")), "record": _record(results),
    }  # fmt: skip


# --- beside the verdict -------------------------------------------------------------------------------------------------


def _tiles(models: Sequence[Model]) -> list[tuple[str, str]]:
    """The numbers of the verdict for a single model, each with what it is; they are set large."""
    if len(models) > 1:
        return []
    (m,), at = models, telling(models)
    grid = m.runs.surfaces[0]
    where = f"at ({grid.eps_x[at[1]]:g}, {grid.eps_w[at[0]]:g})"
    tiles = [(f"{100 * fmean(m.clean):.1f} %", "clean accuracy")]
    for kind, runs in m.runs.kinds.items():
        side = f"{kind}, at {'most' if kind == 'attacked' else 'least'}"
        tiles.append((f"{100 * runs.accuracy[at]:.1f} %", f"{side}, {where}"))
    return tiles + [(f"{fmean([s.auc for s in runs.surfaces]):.3f}", f"AUC {kind}") for kind, runs in m.runs.kinds.items()]


def _warnings(models: Sequence[Model], entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Doubts about the numbers, and signs of masked gradients, with which attacked accuracy may be far too high."""
    signs = [(title, ", ".join(e["masking"]["flags"])) for title, e in entries if e.get("masking", {}).get("flags")]
    told = "Signs of masked gradients in “{}” ({}): its accuracy under attack may be far above the truth."
    return [line[:1].upper() + line[1:] for line in doubt_lines(models)] + [told.format(*sign) for sign in signs]


# --- models, radii, masking -----------------------------------------------------------------------------------------------


def _claims(results: Mapping[str, Any]) -> Rows:
    """The claims, with a mark before each verdict."""
    shown = claim_rows(results)
    return replace(shown, rows=[[n, said, f"{MARKS.get(found, '')} {found}", why] for n, said, found, why in shown.rows])


def _masking(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, list[str]]]:
    """The findings on masked gradients of each model that was checked: a sentence, and the signs."""
    told = [(f"{title}: " if len(entries) > 1 else "", masking_lines(entry)) for title, entry in entries]
    return [(name + lines[0], lines[1:]) for name, lines in told if lines]


def _fronts(models: Sequence[Model], svg: str, number: int) -> dict[str, Any]:
    shown = [m for m in models if m.fronts]
    return {
        "label": f"Largest certified weight radius over input radius for {', '.join(m.title for m in shown)}",
        "card": card(svg, f"radii-{number}-") if svg else None,
        "tables": [(m.title, front_rows(m.fronts)) for m in shown],
    } if shown else {}  # fmt: skip


# --- every number ---------------------------------------------------------------------------------------------------------


def _hint(kinds: Sequence[str]) -> str:
    hint = "Accuracy in %, the mean if there are several seeds. Hover over a number for its interval and radii; "
    hint += "cells.csv has them all."
    return hint + (" Not known: the share that the attack did not break and that is not certified." if len(kinds) > 1 else "")


def _surface(m: Model) -> dict[str, Any]:
    kinds = m.runs.kinds
    return {
        "title": m.title, "settings": ", ".join(f"{k} = {v}" for k, v in m.settings.items()) or "none recorded",
        "heats": _heats(m), "rises": [_rises(m, kind, runs) for kind, runs in kinds.items()], "flags": _flags(m),
        "about": {
            f"seed {seed}" + (f", {kind}" if len(kinds) > 1 else ""): {"seconds": s.seconds, **s.about}
            for kind, runs in kinds.items() for seed, s in zip(m.seeds, runs.surfaces, strict=True)
        },
    }  # fmt: skip


def _heats(m: Model) -> list[dict[str, Any]]:
    """Tables of each kind of accuracy, and of the gap between attacked and proven accuracy."""
    kinds = m.runs.kinds
    titles = NAMES if list(kinds) != ["attacked"] else {}
    looks = {"attacked": "heat", "shared": "heat shared", "certified": "heat certified"}
    tables = [_heat(m, looks[kind], titles.get(kind, ""), runs.accuracy, runs.risen) for kind, runs in kinds.items()]
    if (gap := m.runs.gap) is not None:
        tables.append(_heat(m, "heat gap", "Between them: not known", gap))
    return tables


def _heat(
    m: Model, kind: str, title: str, shares: NDArray[Any], risen: Collection[tuple[int, int]] = frozenset()
) -> dict[str, Any]:  # fmt: skip
    """A table over the grid.  kind: its classes.  risen: cells with an arrow."""
    grid = m.runs.surfaces[0]

    def cell(i: int, j: int) -> dict[str, Any]:
        return {
            "share": shares[i, j],
            "text": f"{100 * shares[i, j]:.1f}{'↑' if (i, j) in risen else ''}",
            "told": _told(m, i, j),
        }

    rows = [(f"{w:g}", [cell(i, j) for j in range(len(grid.eps_x))]) for i, w in enumerate(grid.eps_w)]
    return {"kind": kind, "title": title, "header": ["ε_w, ε_x", *(f"{x:g}" for x in grid.eps_x)], "rows": rows}


def _told(m: Model, i: int, j: int) -> str:
    """All numbers of one cell, in words."""
    grid, kinds, parts = m.runs.surfaces[0], m.runs.kinds, list[str]()
    for kind, runs in kinds.items():
        low, high = runs.interval
        name = "" if list(kinds) == ["attacked"] else f"{kind} "
        text = f"{name}{100 * runs.accuracy[i, j]:.1f} %, {between(low[i, j], high[i, j], len(m.seeds))}"
        if len(m.seeds) > 1:
            text += f", by seed: {', '.join(f'{100 * s.accuracy[i, j]:.1f}' for s in runs.surfaces)}"
        parts.append(text)
    if (gap := m.runs.gap) is not None:
        parts.append(f"not known {100 * gap[i, j]:.1f} %")
    return "; ".join([*parts, f"ε_x = {grid.eps_x[j]:g}, ε_w = {grid.eps_w[i]:g}"])


def _rises(m: Model, kind: str, runs: Seeds) -> dict[str, Any]:
    rises = runs.rises
    what = (
        "Rises (↑), where the attack missed something"
        if kind == "attacked"
        else f"Rises of {kind} accuracy (↑), where the bound was looser at the smaller radius"
    )
    lines = [
        f"{100 * r['from']:.1f} to {100 * r['to']:.1f} % along {str(r['along']).replace('eps', 'ε')}, "
        f"at ε_x = {r['eps_x']:g}, ε_w = {r['eps_w']:g} (seed {m.seeds[k]})"
        for k, r in rises[:MOST_RISES]
    ]
    name = "accuracy" if list(m.runs.kinds) == ["attacked"] else f"{kind} accuracy"
    count = f"{len(rises)} in {seed_count(len(m.seeds))}"
    return {"what": what, "name": name, "count": count, "lines": lines, "more": max(0, len(rises) - MOST_RISES)}


def _flags(m: Model) -> list[str]:
    return [
        line
        for runs in m.runs.kinds.values()
        for seed, s in zip(m.seeds, runs.surfaces, strict=True)
        for line in _flagged(seed, s)
    ]


def _flagged(seed: int, s: Surface) -> Iterable[str]:
    names = dict.fromkeys(flag for flags in s.flags.values() for flag in flags)
    for name in names:
        at = [f"({s.eps_x[j]:g}, {s.eps_w[i]:g})" for (i, j), flags in sorted(s.flags.items()) if name in flags]
        yield f"{name} (seed {seed}) at (ε_x, ε_w) = {', '.join(at)}"


# --- methods, meaning, doing it again -------------------------------------------------------------------------------------


def _methods(models: Sequence[Model]) -> Mapping[str, Card]:
    surfaces = every_surface(m.runs for m in models)
    return cards(*(dict.fromkeys(s.attack for s in surfaces if s.kind == kind) for kind in ("attacked", "certified")))


def _record(results: Mapping[str, Any]) -> dict[str, Any]:
    """The state of what the command ran with."""
    record = {k: results.get(k) for k in ("data", "grid", "attack", "scope")}
    if results.get("kind") == "certified":  # there is no attack, and every scope is covered
        record = {"bound" if k == "attack" else k: v for k, v in record.items() if k != "scope"}
    for part in ("environment", "config"):
        record |= {f"{part}.{k}": v for k, v in (results.get(part) or {}).items()}
    return record
