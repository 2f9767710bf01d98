"""html.py - the results as one page that needs nothing else: no request leaves it, and it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

import numpy as np

from nonsingular.records import Surface
from nonsingular.report.meaning import meaning
from nonsingular.report.summary import BOUNDS, Model, Seeds, between, kinds_of, middle, read, seed_count, weight_unit
from nonsingular.report.table import (
    CLAIM_HEADER,
    NOWHERE,
    claim_rows,
    front_header,
    front_rows,
    masking_lines,
    model_header,
    model_rows,
    setting,
)

MOST_RISES = 10
"""Rises listed per model, the largest first; the others are in results.json."""

MARKS = {"reproduced": "✓", "holds": "✓", "not reproduced": "✗", "does not hold": "✗", "undecided": "?"}

NUMBER = ' class="number"'

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1e23; --quiet: #596069; --line: #d9dde2; --back: #fff; --tint: #f4f6f8; --heat: 33 113 181;
  --gap: 214 126 10; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --quiet: #a4abb3; --line: #3a4047; --back: #15181c; --tint: #1f2429; --heat: 72 149 224;
    --gap: 226 148 44; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--quiet); margin: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
p, dl, ul { max-width: 48rem; }
sub { line-height: 0; }
.verdict { font-size: clamp(1.2rem, 1rem + 1vw, 1.6rem); line-height: 1.4; margin: .6rem 0; max-width: 62rem; }
.quiet { color: var(--quiet); font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; }
.models { min-width: 50rem; }
th[scope=row] { position: sticky; left: 0; background: var(--back); }
.claims td:nth-child(3) { white-space: nowrap; font-weight: 600; }
.claims td:nth-child(2), .claims td:nth-child(4) { min-width: 14rem; }
.heat { font-size: .82rem; }
.heat th, .heat td { padding: .25rem .45rem; text-align: right; border: 1px solid var(--back); }
.heat td { background: rgb(var(--heat) / calc(var(--a) * .6)); cursor: help;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat.gap td { background: rgb(var(--gap) / calc(var(--a) * .6)); }
.heats { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: .4rem 0; }
.heats > div { min-width: 0; max-width: 100%; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; margin: 0; overflow-x: auto; }
.card svg { display: block; height: auto; max-width: 100%; margin: 0 auto; }
.card.wide svg { min-width: 46rem; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--tint); padding: .7rem .9rem; border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .84rem/1.45 ui-monospace, monospace; }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0; }
@media (max-width: 44rem) {
  .claims thead { display: none; }
  .claims tr, .claims th, .claims td { display: block; border: 0; padding: .1rem 0; }
  .claims tr { border-bottom: 1px solid var(--line); padding: .5rem 0; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .card { border: 0; padding: 0; } .card.wide svg { min-width: 0; }
  table { font-size: 8.5pt; } th, td { padding: .2rem .35rem; } thead .number { white-space: normal; }
  .models { min-width: 0; } .claims td:nth-child(n) { min-width: 0; }
  .heats { display: block; }
  tr, .card { break-inside: avoid; } h2, h3, dt { break-after: avoid; }
}
"""


def page(results: Mapping[str, Any], figure_svg: str, radii_svg: str = "") -> str:
    """One self-contained HTML page: verdict, models, figures, claims, every surface, and what is needed to do it again.

    figure_svg, radii_svg: the figures as `render` wrote them; the second shows fronts, and may be empty.
    """
    models = read(results)
    kinds = kinds_of(m.runs for m in models)
    name = escape(f"Robustness to inputs and weights: {results['data']['name']}")
    notes = [*setting(results), BOUNDS[kinds]]
    if any(len(m.seeds) > 1 for m in models):
        notes.append("Accuracies are means over the seeds; an interval spans those of the seeds.")
    body = "\n".join([
        f"<header><h1>{name}</h1>", f'<p class="verdict">{_text(verdict(results, models))}</p>',
        f'<p class="quiet">{_text(" ".join(notes))}</p></header>', "<main>", _models(models), _figure(figure_svg, models),
        _fronts(models, radii_svg), _masking(results), _claims(results), _surfaces(models), _meaning(models), _again(results),
        "</main>",
    ])  # fmt: skip
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{name}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def verdict(results: Mapping[str, Any], models: Sequence[Model]) -> str:
    """What the middle of the grid says, in plain words: the first model, and the best if it is another."""
    grid = models[0].runs.surfaces[0]
    row, column = at = middle(grid)
    radii = (("input value", grid.eps_x[column], ""), ("weight", grid.eps_w[row], weight_unit(grid.about)))
    moved = [f"every {what} off by up to {radius:g}{unit}" for what, radius, unit in radii if radius > 0]
    first = models[0]
    rivals = [m for m in models if m.runs.surfaces[0].kind == grid.kind]
    best = max(rivals, key=lambda m: m.runs.accuracy[at])
    told = [first] if best is first else [first, best]
    n, split = results["data"]["n"], results["data"]["split"]

    def share(m: Model, examples: str = "") -> str:
        """On A % (interval), and how much of it is proven."""
        low, high = (f"{100 * end[at]:.1f}" for end in m.runs.interval)
        interval = f"({'95 % interval ' if examples else ''}{low} to {high} %)"
        words = f"on {100 * m.runs.accuracy[at]:.1f} %{examples} {interval}"
        if not (m.runs.attacked and m.runs.certified):
            return words
        low, high = (f"{100 * end[at]:.1f}" for end in m.runs.certified.interval)
        return f"{words}, at least {100 * m.runs.certified.accuracy[at]:.1f} % ({low} to {high} %) proven"

    proven = grid.kind == "certified"
    text = f"With {' and '.join(moved) or 'nothing moved'}{' at once' if len(moved) > 1 else ''}, the model “{first.title}” is "
    text += f"{'proven' if proven else 'still'} right {share(first, f' of {n:,} {split} examples')}"
    if len(told) > 1:
        text += f"; the best of {len(rivals)} models, “{best.title}”, {share(best)}"
    elif len(rivals) > 1:
        text += f"; none of the other {len(rivals) - 1} does better"
    if not proven:
        sure = [(m, m.runs.certified.accuracy[at]) for m in models if m.runs.certified]
        most, most_share = max(sure, key=lambda item: item[1], default=(first, 0.0))
        if most not in told and most_share > max((a for m, a in sure if m in told), default=0.0):
            text += f"; most is proven of “{most.title}”, {100 * most_share:.1f} %"
    if "certified" in kinds_of(m.runs for m in models):
        text += ". What is proven holds whatever the attack, in exact arithmetic"
    return f"{text}. Undisturbed: {' and '.join(f'{100 * fmean(m.clean):.1f} %' for m in told)}."


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def _table(kind: str, header: Sequence[str], rows: Iterable[str], words: int = 1) -> str:
    """A table that scrolls sideways where it is too wide.  rows: the cells of each as HTML.  words: columns without numbers."""
    head = "".join(f"<th{NUMBER if k >= words else ''}>{_text(h)}</th>" for k, h in enumerate(header))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(first: str, cells: Iterable[str], attributes: str = "") -> str:
    return f'<th scope="row">{_text(first)}</th>' + _cells(cells, attributes)


def _cells(cells: Iterable[str], attributes: str = "") -> str:
    return "".join(f"<td{attributes}>{_text(c)}</td>" for c in cells)


def _models(models: Sequence[Model]) -> str:
    header = model_header(models)
    words = len(header) - 6  # the model, and where something is certified, which accuracy it is
    rows = (_row(m, cells[: words - 1]) + _cells(cells[words - 1 :], NUMBER) for m, *cells in model_rows(models))
    return _section("Models", _table("models", header, rows, words))


def _figure(svg: str, models: Sequence[Model]) -> str:
    kinds = kinds_of(m.runs for m in models)
    what = "Accuracy" if kinds == ("attacked",) else f"{' and '.join(kinds).capitalize()} accuracy"
    card = _card(svg, f"{what} over input and weight radius for {', '.join(m.title for m in models)}")
    return _section(f"{what} over both radii", card)


def _masking(results: Mapping[str, Any]) -> str:
    lines = [line for model in results["models"].values() for line in masking_lines(model)]
    return _section("Masked gradients", *(f"<p>{_text(line)}</p>" for line in lines)) if lines else ""


def _fronts(models: Sequence[Model], svg: str) -> str:
    shown = [m for m in models if m.fronts]
    if not shown:
        return ""
    parts = [_card(svg, f"Largest certified weight radius over input radius for {', '.join(m.title for m in shown)}", "radii-")]
    for m in shown:
        title = f"<h3>{escape(m.title)}</h3>" if len(shown) > 1 else ""
        rows = (_row(x, radii, NUMBER) for x, *radii in front_rows(m.fronts))
        parts.append(title + _table("fronts", front_header(m.fronts), rows))
    if any(r is None for m in shown for f in m.fronts for r in f.eps_w):
        parts.append(f'<p class="quiet">{_text(NOWHERE)}.</p>')
    hint = "The largest ε_w with which a share of the examples is certified at each ε_x."
    return _section("Certified radii", f'<p class="quiet">{_text(hint)}</p>', *parts)


def _card(svg: str, label: str, prefix: str = "") -> str:
    """A figure on its card.  prefix: keeps the names in it apart from those of the page's other figure."""
    if not svg:
        return ""
    svg = svg[svg.index("<svg") :]
    if prefix:
        svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\1{prefix}", svg)
    width = re.search(r'viewBox="0 0 ([0-9.]+)', svg)
    kind = "card wide" if width and float(width[1]) > 500 else "card"
    return f'<figure class="{kind}" role="img" aria-label="{escape(label)}" tabindex="0">{svg}</figure>'


def _claims(results: Mapping[str, Any]) -> str:
    rows = [
        _row(name, [statement, f"{MARKS.get(found, '')} {found}", evidence])
        for name, statement, found, evidence in claim_rows(results)
    ]
    return _section("Claims", _table("claims", CLAIM_HEADER, rows, len(CLAIM_HEADER))) if rows else ""


def _surfaces(models: Sequence[Model]) -> str:
    hint = "Accuracy in %, the mean if there are several seeds. Hover over a number for its interval and radii."
    if len(kinds_of(m.runs for m in models)) > 1:
        hint += " Not known: the share that the attack did not break and that is not certified."
    return _section("Every number", f'<p class="quiet">{_text(hint)}</p>', *(_surface(m) for m in models))


def _surface(m: Model) -> str:
    settings = ", ".join(f"{k} = {v}" for k, v in m.settings.items()) or "none recorded"
    kinds = m.runs.kinds
    about = {
        f"seed {seed}" + (f", {kind}" if len(kinds) > 1 else ""): {"seconds": s.seconds, **s.about}
        for kind, runs in kinds.items() for seed, s in zip(m.seeds, runs.surfaces, strict=True)
    }  # fmt: skip
    return "\n".join([
        f"<details><summary>{escape(m.title)}</summary>", f'<p class="quiet">Settings: {escape(settings)}.</p>',
        _heats(m), *(_rises(m, kind, runs) for kind, runs in kinds.items()), _flags(m), f"<pre>{_lines(about)}</pre>",
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
    columns = range(len(grid.eps_x))
    rows = (_row(f"{w:g}", []) + "".join(cell(i, j) for j in columns) for i, w in enumerate(grid.eps_w))
    return _table(kind, ["ε_w, ε_x", *(f"{x:g}" for x in grid.eps_x)], rows)


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
    return f"<p>{what}: {len(rises)} in {seed_count(len(m.seeds))}.</p>{_list(lines)}{more}"


def _flags(m: Model) -> str:
    lines = [
        line
        for runs in m.runs.kinds.values()
        for seed, s in zip(m.seeds, runs.surfaces, strict=True)
        for line in _flagged(seed, s)
    ]
    return f"<p>Flags:</p>{_list(lines)}" if lines else ""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _flagged(seed: int, s: Surface) -> Iterable[str]:
    names = dict.fromkeys(flag for flags in s.flags.values() for flag in flags)
    for name in names:
        at = [f"({s.eps_x[j]:g}, {s.eps_w[i]:g})" for (i, j), flags in sorted(s.flags.items()) if name in flags]
        yield f"{name} (seed {seed}) at (ε_x, ε_w) = {', '.join(at)}"


def _meaning(models: Sequence[Model]) -> str:
    says = meaning(kinds_of(m.runs for m in models), fronts=any(m.fronts for m in models))
    items = "".join(f"<dt>{escape(what)}</dt><dd>{_text(words)}</dd>" for what, words in says.items())
    return _section("What these numbers mean", f"<dl>{items}</dl>")


def _again(results: Mapping[str, Any]) -> str:
    record = {k: results.get(k) for k in ("data", "grid", "attack", "scope", "config", "environment")}
    if results.get("kind") == "certified":  # there is no attack, and every scope is covered
        record = {"bound" if k == "attack" else k: v for k, v in record.items() if k != "scope"}
    return _section("Do it again", f"<pre>{escape(str(results.get('command', '')))}</pre>", f"<pre>{_lines(record)}</pre>")


def _lines(record: Mapping[str, Any]) -> str:
    """One line of JSON per entry."""
    return escape("\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in record.items()))


def _text(words: str) -> str:
    """Escaped, with the indices of ε set low."""
    return re.sub("ε_([xw])", r"ε<sub>\1</sub>", escape(words).replace(" %", "\N{NO-BREAK SPACE}%"))
