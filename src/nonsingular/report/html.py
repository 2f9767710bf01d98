"""html.py - the results as one page that needs nothing else: no request leaves it, it prints, and it reads without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import fmean
from typing import Any

import numpy as np

from nonsingular.catalog import cards
from nonsingular.plain import legible_all
from nonsingular.report.compare import statement
from nonsingular.report.explorer import explorer
from nonsingular.report.markup import NUMBER, card, columns, items, note, records, row, section, table, terms, words
from nonsingular.report.meaning import meaning
from nonsingular.report.single import by_class, first_to_break
from nonsingular.report.summary import (
    BOUNDS,
    Model,
    Seeds,
    between,
    every_surface,
    kinds_of,
    read,
    seed_count,
    telling,
)
from nonsingular.report.table import (
    CLAIM_HEADER,
    NOWHERE,
    claim_rows,
    doubt_lines,
    front_header,
    front_rows,
    masking_lines,
    model_header,
    model_rows,
    setting,
)
from nonsingular.report.verdict import areas, remarks, verdict
from nonsingular.results.surface import Surface

MOST_RISES = 10
"""Rises listed per model, the largest first; the others are in results.json."""

MARKS = {"reproduced": "✓", "holds": "✓", "not reproduced": "✗", "does not hold": "✗", "undecided": "?"}


def page(groups: Sequence[Mapping[str, Any]], radii_svg: Sequence[str] = ()) -> str:
    """One self-contained HTML page: verdict, surfaces, models, claims, every number, and what is needed to do it again.

    groups: results, one after the other; within each the numbers compare.  radii_svg: for each, the figure of its fronts as
    `render` wrote it, or "".
    """
    groups = [legible_all(results) for results in groups]
    apart = len(groups) > 1
    names = ", ".join(dict.fromkeys(str(g["data"]["name"]) for g in groups))
    name = escape(f"Robustness to inputs and weights: {names}")
    head = [f"<h1>{name}</h1>", *(f'<p class="warn">{words(line)}</p>' for line in statement(groups))]
    parts: list[str] = []
    for k, (results, svg) in enumerate(zip(groups, radii_svg or [""] * len(groups), strict=True)):
        if apart:
            parts.append(f'<h2 class="run">{words(str(results.get("run", k + 1)))}</h2>')
        parts += _group(results, svg, k)
    body = "\n".join(["<header>", *head, "</header>", "<main>", *parts, "</main>"])
    style, script = ((files("nonsingular.report") / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _group(results: Mapping[str, Any], radii_svg: str, number: int) -> list[str]:
    """The sections of results whose numbers compare."""
    models = read(results)
    entries = list(zip([m.title for m in models], results["models"].values(), strict=True))
    classes = results["data"].get("classes", ())
    kinds = kinds_of(m.runs for m in models)
    notes = [*setting(results), BOUNDS[kinds]]
    if any(len(m.seeds) > 1 for m in models):
        notes.append("Accuracies are means over the seeds; an interval spans those of the seeds.")
    return [
        f'<p class="verdict">{words(verdict(results, models))}</p>', _tiles(models), _also(models), *_warnings(models, entries),
        note(" ".join(notes)),
        explorer(models, number), _models(models), _claims(results), _fronts(models, radii_svg, number),
        by_class(entries, classes), first_to_break(entries, classes, results["data"].get("columns", ())), _masking(entries),
        _surfaces(models),
        _methods(models), _meaning(models), _again(results),
    ]  # fmt: skip


# --- beside the verdict -------------------------------------------------------------------------------------------------


def _tiles(models: Sequence[Model]) -> str:
    """The numbers of the verdict for a single model, large."""
    if len(models) > 1:
        return ""
    (m,), at = models, telling(models)
    grid = m.runs.surfaces[0]
    where = f"at ({grid.eps_x[at[1]]:g}, {grid.eps_w[at[0]]:g})"
    tiles = [(f"{100 * fmean(m.clean):.1f} %", "undisturbed")]
    for kind, runs in m.runs.kinds.items():
        side = "attacked, at most" if kind == "attacked" else "certified, at least"
        tiles.append((f"{100 * runs.accuracy[at]:.1f} %", f"{side}, {where}"))
    tiles += [(f"{fmean([s.auc for s in runs.surfaces]):.3f}", f"AUC {kind}") for kind, runs in m.runs.kinds.items()]
    return f'<ul class="tiles">{"".join(f"<li><b>{words(a)}</b><span>{words(b)}</span></li>" for a, b in tiles)}</ul>'


def _also(models: Sequence[Model]) -> str:
    text = f"{areas(models) if len(models) > 1 else ''} {remarks(models)}".strip()
    return f'<p class="also">{words(text)}</p>' if text else ""


def _warnings(models: Sequence[Model], entries: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What is doubted about the numbers, and signs of masked gradients, which say that the attacked one may be far too high."""
    signs = [(title, ", ".join(e["masking"]["flags"])) for title, e in entries if e.get("masking", {}).get("flags")]
    told = "Signs of masked gradients in “{}” ({}): its accuracy under attack may be far above the truth."
    lines = [line[:1].upper() + line[1:] for line in doubt_lines(models)]
    return [f'<p class="warn">{words(line)}</p>' for line in (*lines, *(told.format(title, flags) for title, flags in signs))]


# --- models, radii, masking, claims ---------------------------------------------------------------------------------------


def _models(models: Sequence[Model]) -> str:
    header = model_header(models)
    first = len(header) - 6  # the model, and where something is certified, which accuracy it is
    rows = (row(m, cells[: first - 1]) + columns(cells[first - 1 :], NUMBER) for m, *cells in model_rows(models))
    return section("Models and areas", table("models", header, rows, first))


def _masking(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    parts: list[str] = []
    for title, entry in entries:
        if told := masking_lines(entry):
            name = f"{title}: " if len(entries) > 1 else ""
            parts.append(f"<p>{words(name + told[0])}</p>" + (items(told[1:]) if told[1:] else ""))
    return section("Masked gradients", *parts) if parts else ""


def _fronts(models: Sequence[Model], svg: str, number: int) -> str:
    shown = [m for m in models if m.fronts]
    if not shown:
        return ""
    label = f"Largest certified weight radius over input radius for {', '.join(m.title for m in shown)}"
    parts = [card(svg, label, f"radii-{number}-")]
    for m in shown:
        title = f"<h3>{escape(m.title)}</h3>" if len(shown) > 1 else ""
        rows = (row(x, radii, NUMBER) for x, *radii in front_rows(m.fronts))
        parts.append(title + table("fronts", front_header(m.fronts), rows))
    if any(r is None for m in shown for f in m.fronts for r in f.eps_w):
        parts.append(note(f"{NOWHERE}."))
    return section(
        "Certified radii", note("The largest ε_w with which a share of the examples is certified at each ε_x."), *parts
    )


def _claims(results: Mapping[str, Any]) -> str:
    rows = [
        row(name, [statement_, f"{MARKS.get(found, '')} {found}", evidence])
        for name, statement_, found, evidence in claim_rows(results)
    ]
    return section("Claims", table("claims", CLAIM_HEADER, rows, len(CLAIM_HEADER))) if rows else ""


# --- every number ---------------------------------------------------------------------------------------------------------


def _surfaces(models: Sequence[Model]) -> str:
    hint = "Accuracy in %, the mean if there are several seeds. Hover over a number for its interval and radii; "
    hint += "cells.csv has them all."
    if len(kinds_of(m.runs for m in models)) > 1:
        hint += " Not known: the share that the attack did not break and that is not certified."
    return section("Every number", note(hint), *(_surface(m) for m in models))


def _surface(m: Model) -> str:
    settings = ", ".join(f"{k} = {v}" for k, v in m.settings.items()) or "none recorded"
    kinds = m.runs.kinds
    about = {
        f"seed {seed}" + (f", {kind}" if len(kinds) > 1 else ""): {"seconds": s.seconds, **s.about}
        for kind, runs in kinds.items() for seed, s in zip(m.seeds, runs.surfaces, strict=True)
    }  # fmt: skip
    return "\n".join([
        f"<details open><summary>{escape(m.title)}</summary>", f'<p class="quiet">Settings: {escape(settings)}.</p>',
        _heats(m), *(_rises(m, kind, runs) for kind, runs in kinds.items()), _flags(m), f"<pre>{records(about)}</pre>",
        "</details>",
    ])  # fmt: skip


def _heats(m: Model) -> str:
    """A table of the grid for what was attacked, one for what is certified, and one for what lies between."""
    kinds = m.runs.kinds
    if list(kinds) == ["attacked"]:
        return _heat(m, kinds["attacked"])
    titles = {"attacked": "Attacked: at most", "certified": "Certified: at least"}
    tables = [
        f"<div><h3>{titles[kind]}</h3>{_heat(m, runs, '' if kind == 'attacked' else ' certified')}</div>"
        for kind, runs in kinds.items()
    ]
    if len(kinds) > 1:
        tables.append(f"<div><h3>Between them: not known</h3>{_gaps(m, kinds['attacked'], kinds['certified'])}</div>")
    return f'<div class="heats">{"".join(tables)}</div>'


def _heat(m: Model, runs: Seeds, kind: str = "") -> str:
    mean, risen = runs.accuracy, runs.risen

    def cell(i: int, j: int) -> str:
        arrow = "↑" if (i, j) in risen else ""
        return f'<td style="--a:{mean[i, j]:.3f}" title="{escape(_told(m, i, j))}">{100 * mean[i, j]:.1f}{arrow}</td>'

    return _grid(runs.surfaces[0], cell, f"heat{kind}")


def _gaps(m: Model, attacked: Seeds, certified: Seeds) -> str:
    gap = np.maximum(attacked.accuracy - certified.accuracy, 0.0)

    def cell(i: int, j: int) -> str:
        return f'<td style="--a:{gap[i, j]:.3f}" title="{escape(_told(m, i, j))}">{100 * gap[i, j]:.1f}</td>'

    return _grid(attacked.surfaces[0], cell, "heat gap")


def _grid(grid: Surface, cell: Callable[[int, int], str], kind: str) -> str:
    across = range(len(grid.eps_x))
    rows = (row(f"{w:g}", []) + "".join(cell(i, j) for j in across) for i, w in enumerate(grid.eps_w))
    return table(kind, ["ε_w, ε_x", *(f"{x:g}" for x in grid.eps_x)], rows)


def _told(m: Model, i: int, j: int) -> str:
    """Everything about one cell, in words."""
    grid, kinds, parts = m.runs.surfaces[0], m.runs.kinds, list[str]()
    for kind, runs in kinds.items():
        low, high = runs.interval
        name = "" if list(kinds) == ["attacked"] else f"{kind} "
        text = f"{name}{100 * runs.accuracy[i, j]:.1f} %, {between(low[i, j], high[i, j], len(m.seeds))}"
        if len(m.seeds) > 1:
            text += f", by seed: {', '.join(f'{100 * s.accuracy[i, j]:.1f}' for s in runs.surfaces)}"
        parts.append(text)
    if len(kinds) > 1:
        gap = kinds["attacked"].accuracy[i, j] - kinds["certified"].accuracy[i, j]
        parts.append(f"not known {max(100 * gap, 0.0):.1f} %")
    return "; ".join([*parts, f"ε_x = {grid.eps_x[j]:g}, ε_w = {grid.eps_w[i]:g}"])


def _rises(m: Model, kind: str, runs: Seeds) -> str:
    rises, name = runs.rises, "accuracy" if list(m.runs.kinds) == ["attacked"] else f"{kind} accuracy"
    if not rises:
        return f"<p>No rise: {name} never grows with a radius.</p>"
    lines = [
        f"{100 * r['from']:.1f} to {100 * r['to']:.1f} % along {str(r['along']).replace('eps', 'ε')}, "
        f"at ε_x = {r['eps_x']:g}, ε_w = {r['eps_w']:g} (seed {m.seeds[k]})"
        for k, r in rises[:MOST_RISES]
    ]
    more = f"<p>The other {len(rises) - MOST_RISES} are in results.json.</p>" if len(rises) > MOST_RISES else ""
    what = {
        "attacked": "Rises (↑), where the attack missed something",
        "certified": "Rises of certified accuracy (↑), where the bound was looser at the smaller radius",
    }[kind]
    return f"<p>{what}: {len(rises)} in {seed_count(len(m.seeds))}.</p>{items(lines)}{more}"


def _flags(m: Model) -> str:
    lines = [
        line
        for runs in m.runs.kinds.values()
        for seed, s in zip(m.seeds, runs.surfaces, strict=True)
        for line in _flagged(seed, s)
    ]
    return f"<p>Flags:</p>{items(lines)}" if lines else ""


def _flagged(seed: int, s: Surface) -> Iterable[str]:
    names = dict.fromkeys(flag for flags in s.flags.values() for flag in flags)
    for name in names:
        at = [f"({s.eps_x[j]:g}, {s.eps_w[i]:g})" for (i, j), flags in sorted(s.flags.items()) if name in flags]
        yield f"{name} (seed {seed}) at (ε_x, ε_w) = {', '.join(at)}"


# --- methods, meaning, doing it again -------------------------------------------------------------------------------------


def _methods(models: Sequence[Model]) -> str:
    surfaces = every_surface(m.runs for m in models)
    names = [dict.fromkeys(s.attack for s in surfaces if s.kind == kind) for kind in ("attacked", "certified")]
    articles = "".join(
        f"<article><h3>{escape(name)}</h3>"
        + terms({"What it does": c.does, "Who shares W'": c.shares, "Its number": c.means, "Source": c.source})
        + "</article>"
        for name, c in cards(*names).items()
    )
    return section("Methods", f'<div class="methods">{articles}</div>')


def _meaning(models: Sequence[Model]) -> str:
    return section(
        "What these numbers mean", terms(meaning(kinds_of(m.runs for m in models), fronts=any(m.fronts for m in models)))
    )


def _again(results: Mapping[str, Any]) -> str:
    record = {k: results.get(k) for k in ("data", "grid", "attack", "scope")}
    if results.get("kind") == "certified":  # there is no attack, and every scope is covered
        record = {"bound" if k == "attack" else k: v for k, v in record.items() if k != "scope"}
    for part in ("environment", "config"):
        record |= {f"{part}.{k}": v for k, v in (results.get(part) or {}).items()}
    hint = "The command and the state of what it ran with. Hashes of each model and its seconds are with every number, above."
    return section(
        "Do it again", note(hint), f"<pre>{escape(str(results.get('command', '')))}</pre>", f"<pre>{records(record)}</pre>"
    )
