"""table.py - the results as tables: for the terminal and as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nonsingular.records import Surface
from nonsingular.report.summary import Model, Seeds, how, mean_spread, middle, percent, read, weight_unit


def model_header(models: Sequence[Model]) -> list[str]:
    """Headings of `model_rows`."""
    grid = models[0].runs.surfaces[0]
    row, column = middle(grid)
    at = f"(ε_x {grid.eps_x[column]:g}, ε_w {grid.eps_w[row]:g})"
    return ["Model", "Clean %", "AUC", "AUC ε_x axis", "AUC ε_w axis", f"% at {at}", "Rises"]


def model_rows(models: Sequence[Model]) -> Iterator[list[str]]:
    """One row per model: title, clean accuracy, the three AUCs, accuracy in the middle of the grid, number of rises."""
    for m in models:
        at = middle(m.runs.surfaces[0])
        yield [
            m.title, percent(m.clean), mean_spread(m.auc), mean_spread(m.auc_x), mean_spread(m.auc_w),
            percent([float(s.accuracy[at]) for s in m.runs.surfaces]), str(len(m.runs.rises)),
        ]  # fmt: skip


def claim_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row per claim: name, statement, verdict, evidence.  None if the results test no claims."""
    for name, c in (results.get("claims") or {}).items():
        yield [name, c["statement"], c["verdict"], c["evidence"]]


CLAIM_HEADER = ["Claim", "Statement", "Verdict", "Evidence"]


def model_table(results: Mapping[str, Any]) -> Table:
    """The models for the terminal; ± is the sample standard deviation over the seeds."""
    models = read(results)
    head, *numbers = model_header(models)
    table = Table(caption=Text(" ".join(setting(results))), caption_justify="left")
    table.add_column(head)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return _fill(table, model_rows(models))


def claims_table(results: Mapping[str, Any]) -> Table:
    """The claims for the terminal; without rows if the results test none."""
    table = Table(*CLAIM_HEADER, show_lines=True)
    return _fill(table, claim_rows(results))


def surface_table(surface: Surface) -> Table:
    """Accuracy in percent over the grid; an arrow marks each point to which it rises."""
    risen = Seeds((surface,)).risen
    caption = f"AUC {surface.auc:.3f}; accuracy in % of {surface.n:,} examples, {how([surface])}"
    if risen:
        caption += "; ↑ accuracy rises to this point: the attack missed something"
    table = Table("ε_w \\ ε_x", title=Text(surface.model), caption=Text(caption), caption_justify="left")
    for x in surface.eps_x:
        table.add_column(f"{x:g}", justify="right")
    return _fill(
        table,
        (
            [f"{w:g}", *(f"{100 * a:.1f}{'↑' if (i, j) in risen else ''}" for j, a in enumerate(surface.accuracy[i]))]
            for i, w in enumerate(surface.eps_w)
        ),
    )


def fronts_table(fronts: Sequence[Mapping[str, Any]]) -> Table:
    """The largest certified weight radius at each input radius, one column for each required accuracy."""
    table = Table("ε_x", title="Largest certified ε_w", caption=Text("-: not even ε_w = 0 is certified"), caption_justify="left")
    for front in fronts:
        table.add_column(f"for {100 * front['accuracy']:g} %", justify="right")
    columns = [front["eps_w"] for front in fronts]
    rows = zip(fronts[0]["eps_x"], *columns, strict=True)
    return _fill(table, ([f"{x:g}", *("-" if r is None else f"{r:.4g}" for r in radii)] for x, *radii in rows))


def setting(results: Mapping[str, Any]) -> list[str]:
    """What the numbers hold for, in sentences."""
    data, grid = results["data"], results["grid"]
    surfaces = [s for m in read(results) for s in m.runs.surfaces]
    unit = weight_unit(next(iter(results["models"].values()))["surfaces"][0]["about"])
    return [
        f"Data: {data['n']:,} {data['split']} examples of {data['name']}.",
        f"Grid: {_span('ε_x', grid['eps_x'])}; {_span('ε_w', grid['eps_w'])}.",
        f"{how(surfaces).capitalize()}.",
        *([f"A weight moves by up to ε_w{unit}."] if unit else []),
    ]


def markdown(results: Mapping[str, Any]) -> str:
    """Models, claims and command as Markdown, to be kept with the documentation."""
    models = read(results)
    lines = ["# Results", "", *map(_cell, setting(results)), ""]
    lines += _pipes(model_header(models), model_rows(models), numbers=6)
    if any(len(m.seeds) > 1 for m in models):
        lines += ["", "± is the sample standard deviation over the seeds."]
    if claims := list(claim_rows(results)):
        lines += ["", "## Claims", "", *_pipes(CLAIM_HEADER, claims)]
    command = " ".join(str(results.get("command", "")).split())
    return "\n".join([*lines, "", "## Command", "", f"    {command}", ""])


def _span(name: str, radii: Sequence[float]) -> str:
    return f"{name} {radii[0]:g}" if len(radii) == 1 else f"{name} {radii[0]:g} to {radii[-1]:g} in {len(radii)} points"


def _fill(table: Table, rows: Iterable[Sequence[str]]) -> Table:
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a name are not markup
    return table


def _pipes(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> list[str]:
    """A Markdown table whose last `numbers` columns are right-aligned."""
    rule = ["---"] * (len(header) - numbers) + ["--:"] * numbers
    return [
        "| " + " | ".join(cells) + " |" for cells in ([_cell(h) for h in header], rule, *([_cell(c) for c in r] for r in rows))
    ]


def _cell(text: str) -> str:
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", flat)
