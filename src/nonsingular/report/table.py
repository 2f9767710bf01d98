"""table.py - the results as rows of text, and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from nonsingular.plain import legible, legible_all
from nonsingular.report.summary import (
    LOOSER,
    Model,
    Radii,
    Seeds,
    beside_weights,
    doubts_of,
    every_surface,
    how,
    kinds_of,
    mean_spread,
    percent,
    read,
    telling,
    units,
)
from nonsingular.results.surface import Surface


@dataclass(frozen=True)
class Rows:
    """A table as text.  names: how many columns come before those of numbers.  note: what a reader must know, or ""."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    note: str = ""

    def for_terminal(self, **options: Any) -> Table:
        table = Table(**options)
        for k, heading in enumerate(self.header):
            table.add_column(heading, justify="left" if k < self.names else "right")
        for row in self.rows:
            table.add_row(*map(_text, row))
        return table


def model_rows(models: Sequence[Model]) -> Rows:
    """Title, clean accuracy, the three AUCs, accuracy at the point of the verdict, number of rises.

    One row per model; where something is certified, one for each kind of accuracy, which the second cell then names.
    """
    at = row, column = telling(models)
    grid = models[0].runs.surfaces[0]
    rows: list[list[str]] = []
    for m in models:
        for kind, runs in m.runs.kinds.items():
            areas = ([getattr(s, name) for s in runs.surfaces] for name in ("auc", "auc_x", "auc_w"))
            rows.append([
                m.title, *_kind(models, kind), percent(m.clean), *map(mean_spread, areas),
                percent([float(s.accuracy[at]) for s in runs.surfaces]), str(len(runs.rises)),
            ])  # fmt: skip
    names = ["Model", *_kind(models, "Accuracy")]
    point = f"% at (ε_x {grid.eps_x[column]:g}, ε_w {grid.eps_w[row]:g})"
    return Rows([*names, "Clean %", "AUC", "AUC ε_x axis", "AUC ε_w axis", point, "Rises"], rows, len(names))


def _kind(models: Sequence[Model], cell: str) -> list[str]:
    """The second cell of a row, which is there only if something is certified."""
    return [cell] if "certified" in kinds_of(m.runs for m in models) else []


def claim_rows(results: Mapping[str, Any]) -> Rows:
    """One row per claim: name, statement, verdict, evidence.  No rows if the results test no claims."""
    claims = (results.get("claims") or {}).items()
    rows = [[name, c["statement"], c["verdict"], c["evidence"]] for name, c in claims]
    return Rows(["Claim", "Statement", "Verdict", "Evidence"], rows, names=4)


def model_table(results: Mapping[str, Any]) -> Table:
    """The models for the terminal; ± is the sample standard deviation over the seeds."""
    return model_rows(read(results)).for_terminal(caption=_text(" ".join(setting(results))), caption_justify="left")


def doubt_lines(models: Sequence[Model]) -> list[str]:
    """One line for each warning about the numbers; if there are several models, with those that it is about."""
    said: dict[str, list[str]] = {}
    for m in models:
        for doubt in doubts_of(every_surface([m.runs])):
            said.setdefault(doubt, []).append(m.title)
    return [f"warning: {', '.join(of) + ': ' if len(models) > 1 else ''}{doubt}" for doubt, of in said.items()]


def claims_table(results: Mapping[str, Any]) -> Table:
    """The claims for the terminal; without rows if the results test none."""
    return claim_rows(results).for_terminal(show_lines=True)


def surface_table(surface: Surface) -> Table:
    """Accuracy in percent over the grid; an arrow marks each point to which it rises.  Leaves out those that it carries."""
    risen = Seeds((replace(surface, certified=None, shared=None),)).risen
    title = surface.model + (f", {surface.kind}" if surface.certified or surface.kind != "attacked" else "")
    caption = f"AUC {surface.auc:.3f}; accuracy in % of {surface.n:,} examples, {how([surface])}"
    if surface.kind != "attacked":
        caption += ": a lower bound for every attack"
    elif surface.certified:
        caption += ": an upper bound"
    if risen:
        caption += f"; ↑ accuracy rises to this point: {LOOSER[surface.kind]}"
    rows = [
        [f"{w:g}", *(f"{100 * a:.1f}{'↑' if (i, j) in risen else ''}" for j, a in enumerate(surface.accuracy[i]))]
        for i, w in enumerate(surface.eps_w)
    ]
    shown = Rows(["ε_w \\ ε_x", *(f"{x:g}" for x in surface.eps_x)], rows)
    return shown.for_terminal(title=_text(title), caption=_text(caption), caption_justify="left")


def fronts_table(fronts: Sequence[Mapping[str, Any]]) -> Table:
    """The largest certified weight radius at each input radius, one column for each required accuracy."""
    shown = replace(front_rows([Radii.from_dict(front) for front in fronts]), names=0)
    caption = Text(shown.note) if shown.note else None
    return shown.for_terminal(title="Largest certified ε_w", caption=caption, caption_justify="left")


def front_rows(fronts: Sequence[Radii]) -> Rows:
    """One row per input radius: it, and the largest certified weight radius for each required accuracy, rounded down."""
    rows = [[f"{x:g}", *(_down(front.eps_w[k]) for front in fronts)] for k, x in enumerate(fronts[0].eps_x if fronts else ())]
    dash = any(r is None for front in fronts for r in front.eps_w)
    header = ["ε_x", *(f"for {100 * front.accuracy:g} %" for front in fronts)]
    return Rows(header, rows, note="-: not even ε_w = 0 is certified" if dash else "")


def _down(radius: float | None) -> str:
    """Four digits, never more than the radius: that would not be certified.

    >>> _down(0.00059375), _down(0.002), _down(0.0), _down(None)
    ('0.0005937', '0.002', '0', '-')
    """
    if radius is None:
        return "-"
    return f"{float(Decimal(repr(radius)).normalize(Context(prec=4, rounding=ROUND_FLOOR))):g}"


def setting(results: Mapping[str, Any]) -> list[str]:
    """Data, grid, attack and units of the numbers, in sentences."""
    data, grid, models = results["data"], results["grid"], read(results)
    surfaces = every_surface(m.runs for m in models)
    told = how(surfaces)
    classes = [str(name) for name in data.get("classes", ())]
    return [
        f"Data: {data['n']:,} {data['split']} examples of {data['name']}.",
        f"Grid: {_span('ε_x', grid['eps_x'])}; {_span('ε_w', grid['eps_w'])}.",
        f"{told[:1].upper()}{told[1:]}.",
        *filter(None, [units(surfaces).strip(), beside_weights(models)]),
        *_columns(data.get("input_radii") or {}),
        *([f"Classes: {_order(classes)}."] if classes != [str(k) for k in range(len(classes))] else []),
    ]


MOST_NAMES = 20
"""Most columns or classes that a sentence names."""


def _columns(radii: Mapping[str, Any]) -> list[str]:
    """The columns that move, each with its radius, or by how much down and up."""
    if not radii:
        return []
    told = [f"{n} {'−{:g} +{:g}'.format(*r) if isinstance(r, list | tuple) else f'{r:g}'}" for n, r in radii.items()]
    shown = ", ".join(told[:MOST_NAMES]) + (f", ... ({len(told)})" if len(told) > MOST_NAMES else "")
    return [f"Radii of the columns: {shown}; all others are fixed."]


def _order(classes: Sequence[str]) -> str:
    shown = ", ".join(f"{k} = {name}" for k, name in enumerate(classes[:MOST_NAMES]))
    return shown + (f", ... ({len(classes)})" if len(classes) > MOST_NAMES else "")


def _span(name: str, radii: Sequence[float]) -> str:
    return f"{name} {radii[0]:g}" if len(radii) == 1 else f"{name} {radii[0]:g} to {radii[-1]:g} in {len(radii)} points"


def _text(text: str) -> Text:
    """Text for the terminal: brackets are not markup, and control characters are written out."""
    return Text(legible(text))


def masking_lines(model: Mapping[str, Any]) -> list[str]:
    """The findings on masked gradients, one a line; none if there was no check.  model: an entry of results["models"]."""
    if "masking" not in model:
        return []
    found = legible_all(model["masking"])
    where = f" at ({found['eps_x']:g}, {found['eps_w']:g})" if "eps_x" in found else ""
    asked = f"attack {found['attack']}, scope {found['scope']}, {found['examples']} examples{where}"
    if not found["flags"] and found.get("inconclusive"):
        return [
            f"The check for masked gradients is inconclusive, as the attack breaks every example: {asked}. Choose smaller radii."
        ]
    if not found["flags"]:
        return [f"No sign of masked gradients: {asked}."]
    return [f"Signs of masked gradients ({asked}):", *(f"{name}: {why}" for name, why in found["flags"].items())]
