"""cells.py - the surfaces as comma-separated values, one line for each cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nonsingular.plain import cell
from nonsingular.report.summary import Model, read
from nonsingular.results.surface import Surface

HEADER = (
    "model", "seed", "eps_x", "eps_w", "kind", "accuracy", "low", "high", "n", "flags", "attack_or_bound", "scope", "data",
)  # fmt: skip
"""accuracy, low, high: shares in [0, 1], with their 95 % Wilson interval.  flags: by spaces; "rise": accuracy rises."""


def cells_csv(groups: Sequence[Mapping[str, Any]]) -> str:
    """The cells of all groups of results, with a heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for results in groups:
        for model in read(results):
            for row in _rows(model):
                writer.writerow([cell(v) if isinstance(v, str) else v for v in (*row, str(results["data"]["name"]))])
    return text.getvalue()


def _rows(m: Model) -> Iterator[list[Any]]:
    for kind, runs in m.runs.kinds.items():
        for seed, s in zip(m.seeds, runs.surfaces, strict=True):
            yield from ([m.title, seed, *row] for row in _cells(kind, s))


def _cells(kind: str, s: Surface) -> Iterator[list[Any]]:
    low, high = s.interval
    risen = {(r["eps_w"], r["eps_x"]) for r in s.rises}
    for i, w in enumerate(s.eps_w):
        for j, x in enumerate(s.eps_x):
            flags = [*s.flags.get((i, j), ()), *(["rise"] if (w, x) in risen else [])]
            shares = (float(a[i, j]) for a in (s.accuracy, low, high))
            scope = "every" if kind == "certified" else s.scope
            yield [x, w, kind, *(f"{v:.6g}" for v in shares), s.n, " ".join(flags), s.attack, scope]
