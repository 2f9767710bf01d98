"""md.py - the results as Markdown, to be kept with the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nonsingular.plain import legible_all
from nonsingular.report.compare import statement
from nonsingular.report.single import class_rows
from nonsingular.report.summary import Model, kinds_of, read, sides
from nonsingular.report.table import claim_rows, doubt_lines, front_rows, masking_lines, model_rows, setting
from nonsingular.report.templating import render
from nonsingular.report.verdict import areas, remarks, verdict


def markdown(*groups: Mapping[str, Any]) -> str:
    """Verdict, models, claims, classes and command as Markdown.

    groups: results, one after the other; within each the numbers compare.
    """
    groups = tuple(legible_all(results) for results in groups)
    shown = [
        _group(results) | {"name": str(results.get("run", k + 1)) if len(groups) > 1 else ""} for k, results in enumerate(groups)
    ]
    return str(render("report.md", apart=statement(groups), groups=shown))


def _group(results: Mapping[str, Any]) -> dict[str, Any]:
    """What report.md shows of results whose numbers compare."""
    models = read(results)
    kinds = kinds_of(m.runs for m in models)
    classes = results["data"].get("classes", ())
    return {
        "verdict": verdict(results, models), "doubts": doubt_lines(models), "also": f"{areas(models)} {remarks(models)}",
        "setting": setting(results), "models": model_rows(models),
        "bounds": sides(m.runs for m in models) if "certified" in kinds else "", "seeds": any(len(m.seeds) > 1 for m in models),
        "sections": [_section(m, e, classes) for m, e in zip(models, results["models"].values(), strict=True)],
        "claims": claim_rows(results), "command": str(results.get("command", "")).splitlines(),
    }  # fmt: skip


def _section(m: Model, entry: Mapping[str, Any], classes: Any) -> dict[str, Any]:
    """Masked gradients, classes and radii of one model; empty where there are none."""
    told: dict[str, Any] = {"title": m.title, "masking": masking_lines(entry), "classes": None, "fronts": None}
    if "by_class" in entry.get("examples", {}):
        told["classes"], _ = class_rows(entry["examples"]["by_class"], classes)
    if m.fronts:
        told["fronts"] = front_rows(m.fronts)
    return told
