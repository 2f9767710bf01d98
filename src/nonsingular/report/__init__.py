"""Figure, tables and page of an evaluation, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nonsingular.records import write_atomic
from nonsingular.report.figure import contours, render
from nonsingular.report.html import page
from nonsingular.report.paired import comparison_table
from nonsingular.report.radii import fronts
from nonsingular.report.summary import read
from nonsingular.report.table import claims_table, fronts_table, markdown, masking_lines, model_table, surface_table

__all__ = [
    "claims_table",
    "comparison_table",
    "contours",
    "fronts_table",
    "markdown",
    "masking_lines",
    "model_table",
    "page",
    "surface_table",
    "write",
]


def write(results: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """Write figure1.png, figure1.svg, report.html and report.md into the folder `out`; name -> path.

    With fronts of certified radii also radii.png and radii.svg.
    Each file is written whole or not at all, and the same results give the same bytes.
    Raises InvalidInput for results that cannot be shown; then nothing is written.
    """
    models = read(results)
    figures = {"figure1": contours({m.title: m.runs.surfaces for m in models})}
    if any(m.fronts for m in models):
        figures["radii"] = fronts(models)
    files: dict[str, str | bytes] = {f"{name}.{kind}": render(f, kind) for name, f in figures.items() for kind in ("png", "svg")}
    drawn = {name: bytes(cast(bytes, files[f"{name}.svg"])).decode() for name in figures}
    files |= {"report.html": page(results, drawn["figure1"], drawn.get("radii", "")), "report.md": markdown(results)}
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomic(out / name, data)
    return {name: out / name for name in files}
