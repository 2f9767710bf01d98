"""Figure, tables and page of an evaluation, from results.json alone."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonsingular.report.cells import cells_csv
    from nonsingular.report.compare import differences, statement, together
    from nonsingular.report.figure import contours
    from nonsingular.report.html import page
    from nonsingular.report.md import markdown
    from nonsingular.report.paired import comparison_table
    from nonsingular.report.table import claims_table, fronts_table, masking_lines, model_table, surface_table

_HOME = {
    "cells_csv": "cells", "contours": "figure", "page": "html", "markdown": "md", "comparison_table": "paired",
    **dict.fromkeys(("differences", "statement", "together"), "compare"),
    **dict.fromkeys(
        ("claims_table", "fronts_table", "masking_lines", "model_table", "surface_table"), "table"
    ),
}  # fmt: skip

__all__ = [
    "cells_csv",
    "claims_table",
    "comparison_table",
    "contours",
    "differences",
    "doubts",
    "fronts_table",
    "markdown",
    "masking_lines",
    "model_table",
    "page",
    "results_schema",
    "statement",
    "surface_table",
    "together",
    "write",
    "write_all",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is used, so that listing names does not load matplotlib."""
    if name not in _HOME:
        raise AttributeError(f"module 'nonsingular.report' has no attribute '{name}'")
    return getattr(importlib.import_module(f"nonsingular.report.{_HOME[name]}"), name)


def doubts(results: Mapping[str, Any]) -> list[str]:
    """The warnings about these numbers, one a line, to be shown beside them."""
    from nonsingular.report.summary import read
    from nonsingular.report.table import doubt_lines

    return doubt_lines(read(results))


def write(results: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """Write figure1.png, figure1.svg, report.html, report.md and cells.csv into the folder `out`; name -> path.

    With fronts of certified radii also radii.png and radii.svg.
    Each file is written whole or not at all, and the same results give the same bytes.
    Raises InvalidInput for results that cannot be shown; then nothing is written.
    """
    return write_all([results], out)


def write_all(groups: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Path]:
    """`write` for several groups of results, as `together` makes them, on one page.  The figures of later groups are numbered."""
    from nonsingular.report.cells import cells_csv
    from nonsingular.report.figure import contours, render
    from nonsingular.report.html import page
    from nonsingular.report.md import markdown
    from nonsingular.report.radii import fronts
    from nonsingular.report.summary import read
    from nonsingular.results.files import write_atomic

    made: dict[str, str | bytes] = {}
    radii: list[str] = []
    for k, results in enumerate(groups):
        models, number = read(results), f"-{k + 1}" if k else ""
        figures = {f"figure1{number}": contours({m.title: m.runs.surfaces for m in models})}
        if any(m.fronts for m in models):
            figures[f"radii{number}"] = fronts(models)
        drawn = {f"{name}.{kind}": render(f, kind) for name, f in figures.items() for kind in ("png", "svg")}
        radii.append(drawn.get(f"radii{number}.svg", b"").decode())
        made |= drawn
    made |= {"report.html": page(groups, radii), "report.md": markdown(*groups), "cells.csv": cells_csv(groups)}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        write_atomic(out / name, data)
    return {name: out / name for name in made}


def results_schema() -> str:
    """The JSON schema of results.json, as text."""
    return (files("nonsingular") / "assets" / "results.schema.json").read_text(encoding="utf-8")
