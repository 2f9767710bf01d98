"""html.py - the results as one page that needs nothing else: no request leaves it, and it prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from nonsingular.records import Surface
from nonsingular.report.summary import Model, between, middle, read, seed_count, weight_unit
from nonsingular.report.table import CLAIM_HEADER, claim_rows, model_header, model_rows, setting

MOST_RISES = 10
"""Rises listed per model, the largest first; the others are in results.json."""

MARKS = {"reproduced": "✓", "holds": "✓", "not reproduced": "✗", "does not hold": "✗", "undecided": "?"}

NUMBER = ' class="number"'

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1e23; --quiet: #596069; --line: #d9dde2; --back: #fff; --tint: #f4f6f8; --heat: 33 113 181; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --quiet: #a4abb3; --line: #3a4047; --back: #15181c; --tint: #1f2429; --heat: 72 149 224; }
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
  tr, .card { break-inside: avoid; } h2 { break-after: avoid; }
}
"""

MEANING = {
    "Accuracy": "The share of examples that are still classified correctly after the attack moved every input value by at most "
    "ε_x and every weight by at most ε_w.",
    "Upper bound": "An attack shows that robust accuracy is at most this high. A stronger attack may find less; only a "
    "certificate bounds it from below.",
    "Scope": "Who shares the moved weights. sample: each example meets its own worst weights. batch: one set of weights for a "
    "batch. dataset: one set of weights for all examples, as in one faulty device. Robust accuracy can only grow in this order.",
    "AUC": "The volume under the accuracy surface divided by the area of the grid, from 0 to 1; only numbers from one grid "
    "compare. An axis AUC holds the other radius at its smallest value.",
    "± and intervals": "± is the sample standard deviation over the seeds. A 95 % Wilson interval belongs to one seed and says "
    "what its number of examples leaves open; for several seeds the page gives the lowest and the highest end.",
    "Rises": "Steps to a larger ball at which measured accuracy goes up. True accuracy cannot, because the balls are nested: "
    "there the attack missed something, and the number overstates robustness.",
}


def page(results: Mapping[str, Any], figure_svg: str) -> str:
    """One self-contained HTML page: verdict, models, figure, claims, every surface, and what is needed to do it again.

    figure_svg: the figure as `render` wrote it.
    """
    models = read(results)
    name = escape(f"Robustness to inputs and weights: {results['data']['name']}")
    notes = [*setting(results), "An attack bounds robust accuracy from above; it is no proof of robustness."]
    if any(len(m.seeds) > 1 for m in models):
        notes.append("Accuracies are means over the seeds; an interval spans those of the seeds.")
    body = "\n".join([
        f"<header><h1>{name}</h1>", f'<p class="verdict">{_text(verdict(results, models))}</p>',
        f'<p class="quiet">{_text(" ".join(notes))}</p></header>', "<main>", _models(models), _figure(figure_svg, models),
        _claims(results), _surfaces(models), _meaning(), _again(results), "</main>",
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
    first, best = models[0], max(models, key=lambda m: m.runs.accuracy[at])
    told = [first] if best is first else [first, best]

    score, clean = [f"{100 * m.runs.accuracy[at]:.1f} %" for m in told], [f"{100 * fmean(m.clean):.1f} %" for m in told]
    span = [" to ".join(f"{100 * ends[at]:.1f}" for ends in m.runs.interval) for m in told]
    n, split = results["data"]["n"], results["data"]["split"]
    text = f"With {' and '.join(moved) or 'nothing moved'}{' at once' if len(moved) > 1 else ''}, "
    text += f"the model “{first.title}” is still right on {score[0]} of {n:,} {split} examples (95 % interval {span[0]} %)"
    if len(told) > 1:
        text += f"; the best of {len(models)} models, “{best.title}”, on {score[1]} ({span[1]} %)"
    elif len(models) > 1:
        text += f"; none of the other {len(models) - 1} does better"
    return f"{text}. Undisturbed: {' and '.join(clean)}."


def _section(title: str, *parts: str) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def _table(kind: str, header: Sequence[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways where it is too wide.  rows: the cells of each as HTML."""
    head = "".join(f"<th{NUMBER if k and kind != 'claims' else ''}>{_text(h)}</th>" for k, h in enumerate(header))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(first: str, cells: Iterable[str], attributes: str = "") -> str:
    return f'<th scope="row">{_text(first)}</th>' + "".join(f"<td{attributes}>{_text(c)}</td>" for c in cells)


def _models(models: Sequence[Model]) -> str:
    return _section(
        "Models", _table("models", model_header(models), (_row(m, cells, NUMBER) for m, *cells in model_rows(models)))
    )


def _figure(svg: str, models: Sequence[Model]) -> str:
    svg = svg[svg.index("<svg") :]
    width = re.search(r'viewBox="0 0 ([0-9.]+)', svg)
    kind = "card wide" if width and float(width[1]) > 500 else "card"
    label = escape("Accuracy over input and weight radius for " + ", ".join(m.title for m in models))
    return _section(
        "Accuracy over both radii", f'<figure class="{kind}" role="img" aria-label="{label}" tabindex="0">{svg}</figure>'
    )


def _claims(results: Mapping[str, Any]) -> str:
    rows = [
        _row(name, [statement, f"{MARKS.get(found, '')} {found}", evidence])
        for name, statement, found, evidence in claim_rows(results)
    ]
    return _section("Claims", _table("claims", CLAIM_HEADER, rows)) if rows else ""


def _surfaces(models: Sequence[Model]) -> str:
    hint = (
        '<p class="quiet">Accuracy in %, the mean if there are several seeds. Hover over a number for its interval and radii.</p>'
    )
    return _section("Every number", hint, *(_surface(m) for m in models))


def _surface(m: Model) -> str:
    settings = ", ".join(f"{k} = {v}" for k, v in m.settings.items()) or "none recorded"
    about = {f"seed {seed}": {"seconds": s.seconds, **s.about} for seed, s in zip(m.seeds, m.runs.surfaces, strict=True)}
    return "\n".join([
        f"<details><summary>{escape(m.title)}</summary>", f'<p class="quiet">Settings: {escape(settings)}.</p>',
        _heat(m), _rises(m), _flags(m), f"<pre>{_lines(about)}</pre>", "</details>",
    ])  # fmt: skip


def _heat(m: Model) -> str:
    grid, mean, (low, high), risen = m.runs.surfaces[0], m.runs.accuracy, m.runs.interval, m.runs.risen

    def cell(i: int, j: int) -> str:
        value, arrow = f"{100 * mean[i, j]:.1f}", "↑" if (i, j) in risen else ""
        told = f"{value} %, {between(low[i, j], high[i, j], len(m.seeds))}; ε_x = {grid.eps_x[j]:g}, ε_w = {grid.eps_w[i]:g}"
        if len(m.seeds) > 1:
            told += f"; by seed: {', '.join(f'{100 * s.accuracy[i, j]:.1f}' for s in m.runs.surfaces)}"
        return f'<td style="--a:{mean[i, j]:.3f}" title="{escape(told)}">{value}{arrow}</td>'

    columns = range(len(grid.eps_x))
    rows = (_row(f"{w:g}", []) + "".join(cell(i, j) for j in columns) for i, w in enumerate(grid.eps_w))
    return _table("heat", ["ε_w, ε_x", *(f"{x:g}" for x in grid.eps_x)], rows)


def _rises(m: Model) -> str:
    rises = m.runs.rises
    if not rises:
        return "<p>No rise: accuracy never grows with a radius.</p>"
    lines = [
        f"{100 * r['from']:.1f} to {100 * r['to']:.1f} % along {str(r['along']).replace('eps', 'ε')}, "
        f"at ε_x = {r['eps_x']:g}, ε_w = {r['eps_w']:g} (seed {m.seeds[k]})"
        for k, r in rises[:MOST_RISES]
    ]
    more = f"<p>The other {len(rises) - MOST_RISES} are in results.json.</p>" if len(rises) > MOST_RISES else ""
    return f"<p>Rises (↑), where the attack missed something: {len(rises)} in {seed_count(len(m.seeds))}.</p>{_list(lines)}{more}"


def _flags(m: Model) -> str:
    lines = [line for seed, s in zip(m.seeds, m.runs.surfaces, strict=True) for line in _flagged(seed, s)]
    return f"<p>Flags:</p>{_list(lines)}" if lines else ""


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _flagged(seed: int, s: Surface) -> Iterable[str]:
    names = dict.fromkeys(flag for flags in s.flags.values() for flag in flags)
    for name in names:
        at = [f"({s.eps_x[j]:g}, {s.eps_w[i]:g})" for (i, j), flags in sorted(s.flags.items()) if name in flags]
        yield f"{name} (seed {seed}) at (ε_x, ε_w) = {', '.join(at)}"


def _meaning() -> str:
    items = "".join(f"<dt>{escape(what)}</dt><dd>{_text(says)}</dd>" for what, says in MEANING.items())
    return _section("What these numbers mean", f"<dl>{items}</dl>")


def _again(results: Mapping[str, Any]) -> str:
    record = {k: results.get(k) for k in ("data", "grid", "attack", "scope", "config", "environment")}
    return _section("Do it again", f"<pre>{escape(str(results.get('command', '')))}</pre>", f"<pre>{_lines(record)}</pre>")


def _lines(record: Mapping[str, Any]) -> str:
    """One line of JSON per entry."""
    return escape("\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in record.items()))


def _text(words: str) -> str:
    """Escaped, with the indices of ε set low."""
    return re.sub("ε_([xw])", r"ε<sub>\1</sub>", escape(words).replace(" %", "\N{NO-BREAK SPACE}%"))
