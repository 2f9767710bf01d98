"""breakdown.py - what became of single examples in a finished run: counts by class, and the first to break, as small JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.evaluation.problem import Case, Method
from nonsingular.evaluation.stored import FOLDER, Against, Found, Kept, stored_in
from nonsingular.evaluation.walk import nested
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid, Radii
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import largest

MOST = 8
"""Examples that are kept."""
SIDE = 48
"""Largest height and width of a kept picture in pixels; a larger one is averaged down by a whole factor."""
NUMBERS = 8
"""Numbers kept of an input that is not a picture: those that changed most."""
CHUNK = 64
"""Examples of scope sample whose weights are written out at once."""


def examples(case: Case, grid: Grid, method: Method, log: Path) -> dict[str, Any]:
    """{"by_class": ..., "first": [...]} of a run whose cells are in `log` and whose perturbations lie beside it.

    The fields are those of assets/results.schema.json.
    Empty if the log lacks a cell of this model, as it does where two forward passes differ.
    Nothing is attacked.  Cost: a few forward passes.  Raises InvalidInput if a stored file is damaged.
    """
    with torch.no_grad():
        if not (cells := finished(case, grid, method, log)):
            return {}
        return {"by_class": by_class(case, grid, cells), "first": first_to_break(case, grid, log.parent / FOLDER)}


# --- counts by class ------------------------------------------------------------------------------------------------------


def finished(case: Case, grid: Grid, method: Method, log: Path) -> dict[Radii, Cell]:
    """(eps_x, eps_w) -> the cell as the surface shows it, of all cells; empty if one is not in the log."""
    n, key = len(case), method.key(case, grid.unit)
    spans = {(0, n), *(method.groups(case, grid.unit) if method.nested else ())}
    parts: dict[Radii, dict[tuple[int, int], Cell]] = {}
    for entry in Log(log):
        if entry.get("key") == key and "cells" in entry and (span := tuple(entry["span"])) in spans:
            for cell in map(Cell.from_dict, entry["cells"]):
                parts.setdefault((cell.eps_x, cell.eps_w), {})[span] = cell
    joined = [Cell.joined([part for _, part in sorted(parts[radii].items())]) for radii in grid.points if radii in parts]
    if len(joined) < len(grid.points) or any(cell.correct.size != n for cell in joined):
        return {}
    if method.scope == "sample" and not method.attack.raw:
        joined = nested(joined, grid)
    return {(cell.eps_x, cell.eps_w): cell for cell in joined}


def by_class(case: Case, grid: Grid, cells: Mapping[Radii, Cell]) -> dict[str, Any]:
    """How many examples of each true class are right: undisturbed, and in some cells.

    The cells: the middle of each axis with the other radius at its smallest, and the diagonal at its end, at its middle, and at
    half of that again and again, down to the smallest radii.
    """
    y, classes = case.y.cpu().numpy(), case.clean.shape[1]

    def count(chosen: Any) -> list[int]:
        return np.bincount(y[chosen], minlength=classes).tolist()

    i, j = (size // 2 for size in grid.shape)
    at = dict.fromkeys((grid.radii(0, j), grid.radii(i, 0)))
    diagonal = [grid.radii(-1, -1)]
    while i or j:
        diagonal.append(grid.radii(i, j))
        i, j = i // 2, j // 2
    at |= dict.fromkeys(reversed(diagonal))
    return {
        "n": count(np.ones(len(y), dtype=bool)), "undisturbed": count(case.right.cpu().numpy()),
        "cells": [{"eps_x": c, "eps_w": r, "right": count(cells[c, r].correct)} for c, r in at],
    }  # fmt: skip


# --- the first to break ---------------------------------------------------------------------------------------------------


def first_to_break(case: Case, grid: Grid, folder: Path) -> list[dict[str, Any]]:
    """Up to 8 examples that are right undisturbed and break in the smallest balls: balls in which both move come first.

    The largest radii of the grid measure the size of a ball.
    Each is judged again from its stored tensors; one that survives these, or whose tensors lie outside their ball, is left out.
    """

    def size(radii: Radii) -> tuple[Any, ...]:
        share = sum(r / most for r, most in zip(radii, grid.radii(-1, -1), strict=True) if most > 0)
        return not all(radii), round(share, 9), radii

    chosen: list[dict[str, Any]] = []
    seen = set((~case.right).nonzero().flatten().tolist())
    groups = (group for path in sorted(folder.glob("*.safetensors")) for group in stored_in(path))
    stored = sorted(groups, key=lambda g: (size(g.radii), g.path.name, g.number))
    for _, alike in groupby(stored, key=lambda g: g.radii):
        broken = [b for group in alike for b in _broken(case, grid, group, seen)]
        for _, row, found in sorted(broken, key=lambda b: b[:2])[: MOST - len(chosen)]:
            seen.add(row)
            chosen.append(_told(case, grid, found))
        if len(chosen) == MOST:
            break
    return chosen


def _broken(case: Case, grid: Grid, group: Kept, seen: set[int]) -> list[tuple[float, int, Found]]:
    """(margin, number, what was found for it alone) of the examples of a group that break there and were not seen."""
    here = torch.tensor([k for k, row in enumerate(group.rows.tolist()) if row not in seen], dtype=torch.long)
    if not len(here):
        return []
    found, broken = group.load(Against.of(case, grid)), list[tuple[float, int, Found]]()
    for some in here.split(CHUNK if group.scope == "sample" else len(here)):
        part = found.part(some)
        point = part.point(case.network, grid.unit)
        try:
            point.check(case.network, case.x[part.rows], grid.at(group.radii))
        except AssertionError:
            continue
        logits, labels = logits_at(case.network, point), case.y[part.rows]
        lowest = worst_margin(margins(logits, labels), labels)
        for k in (~is_correct(logits, labels)).nonzero().flatten():
            broken.append((float(lowest[k]), int(part.rows[k]), part.part(k[None].cpu())))
    return broken


def _told(case: Case, grid: Grid, found: Found) -> dict[str, Any]:
    """One example as JSON."""
    row, (eps_x, eps_w) = int(found.rows[0]), found.radii
    ball, point = grid.at(found.radii), found.point(case.network, grid.unit)
    logits, label = logits_at(case.network, point), case.y[row : row + 1]
    before, after = (float(worst_margin(margins(z, label), label)) for z in (case.clean[row : row + 1], logits))
    shown = told_input(case.x[row], point.x[0], largest(ball.eps_x), grid.unit.domain)
    return {
        "example": row, "label": int(label), "predicted": int(logits.argmax()), "eps_x": eps_x, "eps_w": eps_w,
        "margin_undisturbed": _short(before), "margin": _short(after),
        "input": shown, "weights": _changes(case.network, ball, point),
    }  # fmt: skip


def _changes(model: nn.Module, ball: JointBall, point: Perturbation) -> list[dict[str, Any]]:
    """For each tensor that may move: the largest and the mean |W' - W|, in multiples of its radius."""
    params = dict(model.named_parameters())
    told: list[dict[str, Any]] = []
    for name, box in ball.weight_boxes(params).items():
        own = params[name].detach()
        moved = point.weights[name].reshape(own.shape) - own if name in point.weights else torch.zeros_like(own)
        reach = torch.where(moved >= 0, box.hi - own, own - box.lo)
        share = torch.where(reach > 0, moved.abs() / reach, 0.0).clamp(max=1.0)
        told.append({"tensor": name, "largest": _short(float(share.max())), "mean": _short(float(share.mean()))})
    return told


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


# --- inputs ---------------------------------------------------------------------------------------------------------------


def told_input(x: Tensor, moved: Tensor, eps_x: float, domain: tuple[float, float] | None) -> dict[str, Any]:
    """An input before and after as JSON: a picture of 8 bits, or the numbers that changed most.

    x, moved: (H, W), or (C, H, W) with C of 1 or 3, in a domain, are a picture.  change: 128 + 127 (moved - x) / eps_x,
    the largest radius of an element.
    """
    picture = x[None] if x.dim() == 2 else x
    if domain is None or picture.dim() != 3 or picture.shape[0] not in (1, 3) or min(picture.shape[1:]) < 2:
        return _numbers(x, moved)
    after = moved.reshape(picture.shape)
    factor = -(-max(picture.shape[1:]) // SIDE)
    lo, hi = domain
    change = (after - picture) / eps_x if eps_x > 0 else torch.zeros_like(picture)
    shown = {"x": (picture - lo) / (hi - lo), "moved": (after - lo) / (hi - lo), "change": change * 127 / 255 + 128 / 255}
    planes = {name: _eight_bits(t, factor) for name, t in shown.items()}
    return {
        "shape": list(planes["x"].shape), "factor": factor,
        **{name: base64.b64encode(p.numpy().tobytes()).decode("ascii") for name, p in planes.items()},
    }  # fmt: skip


def _eight_bits(t: Tensor, factor: int) -> Tensor:
    """(C, H, W) in [0, 1] -> (H, W, C) uint8, averaged over squares of `factor` pixels."""
    small = F.avg_pool2d(t[None].float(), factor, ceil_mode=True)[0] if factor > 1 else t
    return (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous()


def _numbers(x: Tensor, moved: Tensor) -> dict[str, Any]:
    change = (moved - x).flatten().abs()
    most = change.argsort(descending=True, stable=True)[:NUMBERS]
    at = np.unravel_index(most.cpu().numpy(), tuple(x.shape))
    return {
        "numbers": [
            {"at": [int(a[k]) for a in at], "x": _short(float(x.flatten()[m])), "moved": _short(float(moved.flatten()[m]))}
            for k, m in enumerate(most)
        ]
    }
