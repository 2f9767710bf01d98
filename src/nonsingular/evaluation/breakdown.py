"""breakdown.py - what became of single examples in a finished run: counts by class, and the first to break, as small JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.evaluation.certified import identity
from nonsingular.evaluation.problem import Method, key_of
from nonsingular.evaluation.stored import FOLDER, Found, Radii
from nonsingular.evaluation.walk import nested
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.results.files import Log
from nonsingular.results.surface import Cell
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import largest

MOST = 8
"""Examples that are kept."""
SIDE = 48
"""Largest height and width of a kept picture in pixels; a larger one is averaged down by a whole factor."""
NUMBERS = 8
"""Numbers kept of an input that is no picture: those that changed most."""
CHUNK = 64
"""Examples of scope sample whose weights are written out at once."""


def examples(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, columns: Sequence[float], rows: Sequence[float], log: Path
) -> dict[str, Any]:  # fmt: skip
    """{"by_class": ..., "first": [...]} of a run whose cells are in `log` and whose perturbations lie beside it.

    x: (N, *input), y: (N,): its data.  columns: eps_x.  rows: eps_w.  The fields are those of assets/results.schema.json.
    Empty if the log lacks a cell of this model, as it does where two forward passes differ.
    Nothing is attacked.  Cost: a few forward passes.  Raises InvalidInput if a stored file is damaged.
    """
    with torch.no_grad():
        clean = logits_at(model, Perturbation(x))
        key = key_of(method, identity(model, x, y, clean))
        cells = finished(log, key, method, len(x), columns, rows, set(method.groups(model, len(x))))
        if not cells:
            return {}
        return {
            "by_class": by_class(is_correct(clean, y).cpu().numpy(), y.cpu().numpy(), clean.shape[1], cells, columns, rows),
            "first": first_to_break(model, x, y, method.unit, clean, log.parent / FOLDER, (columns[-1], rows[-1])),
        }


# --- counts by class ------------------------------------------------------------------------------------------------------


def finished(
    log: Path, key: str, method: Method, n: int, columns: Sequence[float], rows: Sequence[float], groups: set[tuple[int, int]]
) -> dict[Radii, Cell]:  # fmt: skip
    """(eps_x, eps_w) -> the cell of every point of the grid, as the surface shows it; empty if one is not in the log."""
    spans = (groups if method.nested else set[tuple[int, int]]()) | {(0, n)}
    parts: dict[Radii, dict[tuple[int, int], Cell]] = {}
    for entry in Log(log):
        if entry.get("key") == key and "cells" in entry and (span := tuple(entry["span"])) in spans:
            for cell in map(Cell.from_dict, entry["cells"]):
                parts.setdefault((cell.eps_x, cell.eps_w), {})[span] = cell
    grid = [(c, r) for r in rows for c in columns]
    joined = [Cell.joined([part for _, part in sorted(parts[radii].items())]) for radii in grid if radii in parts]
    if len(joined) < len(grid) or any(cell.correct.size != n for cell in joined):
        return {}
    if method.scope == "sample" and not method.attack.raw:
        joined = nested(joined, columns, rows)
    return {(cell.eps_x, cell.eps_w): cell for cell in joined}


def by_class(
    right: Any, y: Any, classes: int, cells: Mapping[Radii, Cell], columns: Sequence[float], rows: Sequence[float]
) -> dict[str, Any]:
    """How many examples of each true class are right: undisturbed, and at some points of the grid.

    right, y: (N,).  The points: the middle of each axis with the other radius at its smallest, and the diagonal at its end, its
    middle, and half of that until nothing is left.
    """

    def count(chosen: Any) -> list[int]:
        return np.bincount(y[chosen], minlength=classes).tolist()

    j, i = len(columns) // 2, len(rows) // 2
    at = {(columns[j], rows[0]): 0, (columns[0], rows[i]): 0}
    diagonal = [(columns[-1], rows[-1])]
    while i or j:
        diagonal.append((columns[j], rows[i]))
        i, j = i // 2, j // 2
    at |= dict.fromkeys(reversed(diagonal), 0)
    return {
        "n": count(np.ones(len(y), dtype=bool)), "undisturbed": count(right),
        "cells": [{"eps_x": c, "eps_w": r, "right": count(cells[c, r].correct)} for c, r in at],
    }  # fmt: skip


# --- the first to break ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Where a group of stored perturbations lies.  rows: their examples."""

    path: Path
    number: int
    radii: Radii
    scope: Any
    rows: Tensor

    def load(self) -> Found:
        with _opened(self.path) as f:
            head = f"{self.number}."
            tensors = {n.removeprefix(head): f.get_tensor(n) for n in f.keys() if n.startswith(head)}  # noqa: SIM118
        return Found(self.radii, self.scope, tensors.pop("rows"), tensors)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")  # pyright: ignore[reportUnknownVariableType]
    except (OSError, SafetensorError) as e:
        raise InvalidInput(f"{path} cannot be read as stored perturbations ({e}); run the evaluation again") from None


def _groups(folder: Path) -> Iterator[_Group]:
    """All that is stored, without its large tensors."""
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as f:
            try:
                for k, head in enumerate(json.loads(f.metadata()["groups"])):
                    yield _Group(path, k, (head["radii"][0], head["radii"][1]), head["scope"], f.get_tensor(f"{k}.rows"))
            except (SafetensorError, KeyError, TypeError, ValueError) as e:
                raise InvalidInput(f"{path} holds no stored perturbations ({e}); run the evaluation again") from None


def first_to_break(
    model: nn.Module, x: Tensor, y: Tensor, unit: JointBall, clean: Tensor, folder: Path, top: Radii
) -> list[dict[str, Any]]:
    """Up to 8 examples that are right undisturbed and break in the smallest balls: those in which both moved before the others.

    clean: (N, K) the undisturbed logits.  top: the largest radii of the grid, which measure the size of a ball.
    Each is judged again from its stored tensors; one that does not break from these, or lies outside its ball, is left out.
    """

    def size(radii: Radii) -> tuple[Any, ...]:
        share = sum(r / most for r, most in zip(radii, top, strict=True) if most > 0)
        return not all(radii), round(share, 9), radii

    chosen: list[dict[str, Any]] = []
    seen = set((~is_correct(clean, y)).nonzero().flatten().tolist())
    stored = sorted(_groups(folder), key=lambda g: (size(g.radii), g.path.name, g.number))
    for _, alike in groupby(stored, key=lambda g: g.radii):
        broken = [b for group in alike for b in _broken(model, x, y, unit, group, seen)]
        for _, row, group, found in sorted(broken, key=lambda b: b[:2])[: MOST - len(chosen)]:
            seen.add(row)
            chosen.append(_told(model, x, y, unit, clean, group.radii, found))
        if len(chosen) == MOST:
            break
    return chosen


def _broken(
    model: nn.Module, x: Tensor, y: Tensor, unit: JointBall, group: _Group, seen: set[int]
) -> list[tuple[float, int, _Group, Found]]:  # fmt: skip
    """(margin, number, group, what was found for it alone) of the examples of a group that break there and were not seen."""
    here = torch.tensor([k for k, row in enumerate(group.rows.tolist()) if row not in seen], dtype=torch.long)
    if not len(here):
        return []
    found, broken = group.load(), list[tuple[float, int, _Group, Found]]()
    for some in here.split(CHUNK if group.scope == "sample" else len(here)):
        part = found.part(some)
        point = part.point(model, unit)
        try:
            point.check(model, x[part.rows], unit.scaled(*group.radii))
        except AssertionError:
            continue
        logits, labels = logits_at(model, point), y[part.rows]
        lowest = worst_margin(margins(logits, labels), labels)
        for k in (~is_correct(logits, labels)).nonzero().flatten():
            broken.append((float(lowest[k]), int(part.rows[k]), group, part.part(k[None])))
    return broken


def _told(
    model: nn.Module, x: Tensor, y: Tensor, unit: JointBall, clean: Tensor, radii: Radii, found: Found
) -> dict[str, Any]:  # fmt: skip
    """One example as JSON."""
    row = int(found.rows[0])
    ball, point = unit.scaled(*radii), found.point(model, unit)
    logits, label = logits_at(model, point), y[row : row + 1]
    before, after = (float(worst_margin(margins(z, label), label)) for z in (clean[row : row + 1], logits))
    return {
        "example": row, "label": int(label), "predicted": int(logits.argmax()), "eps_x": radii[0], "eps_w": radii[1],
        "margin_undisturbed": _short(before), "margin": _short(after),
        "input": told_input(x[row], point.x[0], largest(ball.eps_x), unit.domain), "weights": _changes(model, ball, point),
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
