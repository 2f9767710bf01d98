"""single.py - single examples: a table by class, and the first to break as pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from nonsingular.report.png import address, signed
from nonsingular.report.table import Rows
from nonsingular.report.templating import render
from nonsingular.results.statistics import wilson

MOST_CLASSES = 20
"""Most classes that are listed: those with the lowest accuracy, if there are more."""

Entries = Sequence[tuple[str, Mapping[str, Any]]]
"""(title, entry of results["models"]) of the models."""


def by_class(entries: Entries, classes: Sequence[str]) -> Markup:
    """A table of accuracy by true class for each model that has counts."""
    shown = [(title, _classes(e["examples"]["by_class"], classes)) for title, e in entries if "by_class" in e.get("examples", {})]
    return render("classes.html", shown=shown)


def class_rows(counts: Mapping[str, Any], classes: Sequence[str]) -> tuple[Rows, list[list[float]]]:
    """One row per class: its name, its number of examples, % right at each point; and these as shares."""
    n = np.asarray(counts["n"])
    right = [counts["undisturbed"], *(c["right"] for c in counts["cells"])]
    header = ["Class", "n", "clean", *(f"{c['eps_x']:g}, {c['eps_w']:g}" for c in counts["cells"])]
    rows: list[list[str]] = []
    shares: list[list[float]] = []
    for k in np.flatnonzero(n):
        share = [r[k] / int(n[k]) for r in right]
        shares.append(share)
        rows.append([_class(classes, int(k)), str(n[k]), *(f"{100 * s:.0f}" for s in share)])
    return Rows(header, rows), shares


def _class(classes: Sequence[str], k: int) -> str:
    return str(classes[k]) if k < len(classes) else str(k)


def _classes(counts: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A table of classes, and the text above it."""
    table, shares = class_rows(counts, classes)
    rows = table.rows
    order = list(range(len(rows)))
    told = "Accuracy in % under attack, by true class. Columns: clean, then (ε_x, ε_w)."
    if shares:
        least = [sum(s) for s in shares]
        weakest = min(order, key=least.__getitem__)
        told += f" The class with the lowest accuracy over these columns is “{rows[weakest][0]}”."
        n = int(rows[weakest][1])
        low, high = (100 * float(end) for end in wilson(round(shares[weakest][0] * n), n))
        told += f" Classes are small samples: the 95 % interval of its clean accuracy is {low:.0f} to {high:.0f} %."
        if len(rows) > MOST_CLASSES:
            order = sorted(sorted(order, key=least.__getitem__)[:MOST_CLASSES])
            told += f" Shown: {MOST_CLASSES} of {len(rows)} classes, those with the lowest accuracy; results.json has all."
    lines = [(rows[k][0], rows[k][1], list(zip(shares[k], rows[k][2:], strict=True))) for k in order]
    return {"told": told, "header": table.header, "lines": lines}


# --- the first to break ---------------------------------------------------------------------------------------------------


def first_to_break(entries: Entries, classes: Sequence[str], columns: Sequence[str] = ()) -> Markup:
    """The stored examples of each model, with their perturbations."""
    shown = [
        (title, _told(e["surfaces"][0]["scope"]), [_example(found, classes, columns) for found in e["examples"]["first"]])
        for title, e in entries
        if e.get("examples", {}).get("first")
    ]
    return render("first.html", shown=shown)


def _told(scope: str) -> str:
    whose = "its own W'" if scope == "sample" else "the W' that it shares with the others"
    return (
        "Correct when clean, and misclassified in the smallest balls of the grid (first those where both move), "
        f"computed again from the stored x' and {whose}. Change: blue less, orange more, full colour at ε_x. "
        "ΔW: mean and largest |W' - W| of each tensor, in % of its radius."
    )


def _example(found: Mapping[str, Any], classes: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    was, now = (_class(classes, found[k]) for k in ("label", "predicted"))
    at = f"at ε_x = {found['eps_x']:g}, ε_w = {found['eps_w']:g}; margin {_number(found['margin_undisturbed'])} to "
    given, drawn = found["input"], "shape" in found["input"]
    return {
        "head": f"Example {found['example']}: “{was}” becomes “{now}”", "at": at + _number(found["margin"]),
        "pictures": _pictures(given, was, now) if drawn else [], "factor": given.get("factor", 1) if drawn else 1,
        "numbers": Rows(["input", "x", "x'"], [] if drawn else [_change(c, columns) for c in given.get("numbers", [])]),
        "weights": [(c["tensor"], *(f"{100 * (c[k] or 0.0):.0f}" for k in ("mean", "largest"))) for c in found["weights"]],
    }  # fmt: skip


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}".replace("-", "−")


def _pictures(given: Mapping[str, Any], was: str, now: str) -> list[dict[str, Any]]:
    shape = given["shape"]

    def pixels(name: str) -> NDArray[np.uint8]:
        return np.frombuffer(base64.b64decode(given[name]), dtype=np.uint8).reshape(shape)

    drawn = (
        ("x", pixels("x"), f"the input, “{was}”"), ("x'", pixels("moved"), f"the moved input, taken for “{now}”"),
        ("change", signed(pixels("change")), "what changed"),
    )  # fmt: skip
    size = {"width": int(shape[1]), "height": int(shape[0])}
    return [{"name": name, "src": address(p), "alt": text, **size} for name, p, text in drawn]


def _change(change: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """An input that is not a pixel: its name, x, x'."""
    at = change["at"]
    name = str(columns[at[0]]) if len(at) == 1 and at[0] < len(columns) else ", ".join(map(str, at))
    return [name, _number(change["x"]), _number(change["moved"])]
