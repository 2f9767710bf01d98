"""single.py - what became of single examples: a table by class, and the first to break as pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.report.markup import note, row, section, table, words
from nonsingular.report.png import address, signed
from nonsingular.results.statistics import wilson

MOST_CLASSES = 20
"""Classes that are listed; of more, those of which least is left."""

Entries = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, entry of results["models"]) of the models."""


def by_class(entries: Entries, classes: Sequence[str]) -> str:
    """A table of accuracy by true class for each model that has counts."""
    parts: list[str] = []
    shown = [(title, e["examples"]["by_class"]) for title, e in entries if "by_class" in e.get("examples", {})]
    for title, counts in shown:
        if len(shown) > 1:
            parts.append(f"<h3>{escape(title)}</h3>")
        parts += list(_classes(counts, classes))
    return section("By class", *parts) if parts else ""


def class_rows(counts: Mapping[str, Any], classes: Sequence[str]) -> tuple[list[str], list[list[str]], list[list[float]]]:
    """Header, rows as text, and their shares (NaN for none).  The class, its number of examples, % right at each point."""
    n = np.asarray(counts["n"])
    right = [counts["undisturbed"], *(c["right"] for c in counts["cells"])]
    header = ["Class", "n", "undisturbed", *(f"{c['eps_x']:g}, {c['eps_w']:g}" for c in counts["cells"])]
    rows: list[list[str]] = []
    shares: list[list[float]] = []
    for k in np.flatnonzero(n):
        share = [r[k] / int(n[k]) for r in right]
        shares.append(share)
        rows.append([_class(classes, int(k)), str(n[k]), *(f"{100 * s:.0f}" for s in share)])
    return header, rows, shares


def _class(classes: Sequence[str], k: int) -> str:
    return str(classes[k]) if k < len(classes) else str(k)


def _classes(counts: Mapping[str, Any], classes: Sequence[str]) -> Iterator[str]:
    header, rows, shares = class_rows(counts, classes)
    order = list(range(len(rows)))
    told = "% right under attack, by true class. Columns: undisturbed, then (ε_x, ε_w)."
    if shares:
        least = [sum(s) for s in shares]
        weakest = min(order, key=least.__getitem__)
        told += f" The class of which least is left over these columns is “{rows[weakest][0]}”."
        n = int(rows[weakest][1])
        low, high = (100 * float(end) for end in wilson(round(shares[weakest][0] * n), n))
        told += f" Classes are small samples: the 95 % interval of its undisturbed accuracy is {low:.0f} to {high:.0f} %."
        if len(rows) > MOST_CLASSES:
            order = sorted(sorted(order, key=least.__getitem__)[:MOST_CLASSES])
            told += f" Shown: {MOST_CLASSES} of {len(rows)} classes, those of which least is left; results.json has all."
    yield note(told)
    yield table(
        "heat classes", header,
        (
            row(rows[k][0], [])
            + f'<td class="plain">{rows[k][1]}</td>'
            + "".join(f'<td style="--a:{s:.3f}">{t}</td>' for s, t in zip(shares[k], rows[k][2:], strict=True))
            for k in order
        ),
    )  # fmt: skip


# --- the first to break ---------------------------------------------------------------------------------------------------


def first_to_break(entries: Entries, classes: Sequence[str], columns: Sequence[str] = ()) -> str:
    """The stored examples of each model, with what was done to each."""
    parts: list[str] = []
    shown = [(title, e) for title, e in entries if e.get("examples", {}).get("first")]
    for title, e in shown:
        if len(shown) > 1:
            parts.append(f"<h3>{escape(title)}</h3>")
        scope = e["surfaces"][0]["scope"]
        articles = "".join(_example(found, classes, columns) for found in e["examples"]["first"])
        parts += [note(_told(scope)), f'<div class="first">{articles}</div>']
    return section("The first to break", *parts) if parts else ""


def _told(scope: str) -> str:
    whose = "its own W'" if scope == "sample" else "the W' that it shares with the others"
    return (
        "Right undisturbed, and wrong in the smallest balls of the grid (first those in which inputs and weights both move), "
        f"judged again from the stored x' and {whose}. Change: blue less, orange more, full colour at ε_x. "
        "ΔW: mean and largest |W' - W| of each tensor, in % of its radius."
    )


def _example(found: Mapping[str, Any], classes: Sequence[str], columns: Sequence[str]) -> str:
    was, now = (_class(classes, found[k]) for k in ("label", "predicted"))
    head = f"Example {found['example']}: “{was}” becomes “{now}”"
    at = f"at ε_x = {found['eps_x']:g}, ε_w = {found['eps_w']:g}; margin {_number(found['margin_undisturbed'])} to "
    at += _number(found["margin"])
    shown = _pictures(found["input"], was, now) if "shape" in found["input"] else _changes(found["input"], columns)
    return f"<article><h3>{words(head)}</h3><p>{words(at)}</p>{shown}{_weights(found['weights'])}</article>"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}".replace("-", "−")


def _pictures(given: Mapping[str, Any], was: str, now: str) -> str:
    shape = given["shape"]

    def pixels(name: str) -> NDArray[np.uint8]:
        return np.frombuffer(base64.b64decode(given[name]), dtype=np.uint8).reshape(shape)

    drawn = (
        ("x", pixels("x"), f"the input, “{was}”"), ("x'", pixels("moved"), f"the moved input, taken for “{now}”"),
        ("change", signed(pixels("change")), "what changed"),
    )  # fmt: skip
    figures = "".join(
        f'<figure><img src="{address(p)}" width="{shape[1]}" height="{shape[0]}" alt="{escape(text)}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, p, text in drawn
    )
    smaller = note(f"Averaged over {given['factor']} × {given['factor']} pixels.") if given.get("factor", 1) > 1 else ""
    return f'<div class="pictures">{figures}</div>{smaller}'


def _changes(given: Mapping[str, Any], columns: Sequence[str]) -> str:
    def name(at: Sequence[int]) -> str:
        return str(columns[at[0]]) if len(at) == 1 and at[0] < len(columns) else ", ".join(map(str, at))

    rows = (row(name(c["at"]), [_number(c["x"]), _number(c["moved"])], ' class="number"') for c in given.get("numbers", []))
    return table("inputs", ["input", "x", "x'"], rows)


def _weights(changes: Sequence[Mapping[str, Any]]) -> str:
    def line(c: Mapping[str, Any]) -> str:
        mean, largest = (100 * (c[k] or 0.0) for k in ("mean", "largest"))
        meter = f'<span class="meter" aria-hidden="true"><i style="width:{mean:.0f}%"></i></span>'
        return row(c["tensor"], []) + f'<td class="number">{meter} {mean:.0f}</td><td class="number">{largest:.0f}</td>'

    return table("moved", ["ΔW", "mean %", "largest %"], map(line, changes)) if changes else ""
