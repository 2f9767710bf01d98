"""preflight.py - before a long run: how long it takes, how much memory, what moves, and what can be certified."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonsingular.catalog import UNSOUND
from nonsingular.certification import Prover
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation import moved_at
from nonsingular.nested import Method, reach, walk
from nonsingular.sandwich import TOGETHER, Proof, prove
from nonsingular.threat import JointBall

ENOUGH = 0.5
"""Seconds that the last timed batch takes at least, if there are examples for it; batches double until then."""
QUICK = ("theorem1", "interval", "crown-ibp", "crown", "alpha-crown")
"""Bounds that are tried on one example.  The others stand on these."""


@dataclass(frozen=True)
class Preflight:
    """What a run is going to be.

    seconds: estimated, on `workers` processes.  memory: bytes, all processes together, estimated from what this one has used.
    moved: name -> {"shape", "radius"} at the largest eps_w.  fixed: names of parameters that do not move.
    certifies: bound -> None, or why it cannot.
    """

    examples: int
    cells: int
    workers: int
    seconds: float
    memory: int
    moved: Mapping[str, Mapping[str, Any]]
    fixed: tuple[str, ...]
    certifies: Mapping[str, str | None]
    about: tuple[str, ...] = ()
    """What else is worth a look before the run: the order of the classes, the columns that move."""

    @property
    def numbers(self) -> int:
        """How many weights move."""
        return sum(torch.Size(m["shape"]).numel() for m in self.moved.values())

    def __str__(self) -> str:
        can = [b for b, why in self.certifies.items() if why is None]
        lines = [
            f"{self.cells} cells of the grid x {self.examples:,} examples: about {_duration(self.seconds)} on "
            f"{self.workers} worker{'s' * (self.workers > 1)}, about {self.memory / 2**30:.1f} GB of memory",
            f"moves: {len(self.moved)} tensors, {self.numbers:,} numbers"
            + (f"; fixed: {len(self.fixed)} ({_few(self.fixed)})" if self.fixed else ""),
            f"can be certified by: {', '.join(can) or 'no bound'}",
            *(f"  not by {bound}: {why}" for bound, why in self.certifies.items() if why is not None),
            *self.about,
        ]
        return "\n".join(lines)

    def details(self) -> str:
        """One line for each tensor that moves: its shape, and its radius at the largest eps_w of the grid."""
        return "\n".join(f"  {n}: {tuple(m['shape'])}, by {m['radius']}" for n, m in self.moved.items())


def preflight(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, columns: Sequence[float], rows: Sequence[float], *,
    certify: str | None = None, workers: int = 1,
) -> Preflight:  # fmt: skip
    """Times batches that double until they take half a second, over a thinned grid; tries bounds on one example at radius 0.

    The estimate of the time is rough: points of the grid cost less where much is lost.
    Raises what the run itself would raise.  Cost: a few seconds.
    """
    seconds = _attack_seconds(model, x, y, method, _thinned(columns), _thinned(rows)) * len(columns) * len(rows)
    if certify:
        seconds += _proof_seconds(model, x, y, Proof(certify, method.unit), columns, rows)
    held = x.element_size() * x.numel() * (2 * len(columns) if method.scope == "dataset" else 1)  # x' of one row of the grid
    moved = moved_at(model, method.unit.scaled(columns[-1], rows[-1]))
    fixed = tuple(n for n, _ in model.named_parameters() if n not in moved)
    return Preflight(
        len(x), len(columns) * len(rows), workers, seconds / _useful(workers, method, model, x), workers * (_peak() + held),
        moved, fixed, _certifies(model, x[:1], y[:1], method.unit),
    )  # fmt: skip


def _thinned(radii: Sequence[float]) -> tuple[float, ...]:
    return tuple(sorted({radii[0], radii[len(radii) // 2], radii[-1]}))


def _attack_seconds(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, columns: tuple[float, ...], rows: tuple[float, ...]
) -> float:
    """For all examples at one point of the grid, on average."""

    def run(n: int) -> None:
        if method.nested:
            for _ in walk(model, x[:n], y[:n], method, columns, rows):
                pass
        else:
            reach(model, x[:n], y[:n], method, (columns[-1], rows[-1]))

    groups = method.groups(model, len(x))
    points = len(columns) * len(rows) if method.nested else 1
    return _seconds(run, groups[0][1]) * len(groups) / points


def _proof_seconds(
    model: nn.Module, x: Tensor, y: Tensor, proof: Proof, columns: Sequence[float], rows: Sequence[float]
) -> float:  # fmt: skip
    def run(n: int) -> None:
        prove(model, x[:n], y[:n], proof, columns, rows)

    return _seconds(run, min(len(x), TOGETHER)) * max(1.0, len(x) / TOGETHER)


def _seconds(run: Callable[[int], None], size: int) -> float:
    """Of run(size), continued along the line through the two largest batches that were timed."""
    run(1)  # what is loaded once
    n, before, seconds = 1, (0, 0.0), 0.0
    while True:
        started = time.perf_counter()
        run(n)
        seconds = time.perf_counter() - started
        if n >= size or seconds > ENOUGH:
            slope = max(0.0, seconds - before[1]) / (n - before[0])
            return seconds + slope * (size - n)
        n, before = min(size, 2 * n), (n, seconds)


def _useful(workers: int, method: Method, model: nn.Module, x: Tensor) -> int:
    """Workers that have something to do at once."""
    return workers if not method.nested or method.scope == "dataset" else min(workers, len(method.groups(model, len(x))))


def _peak() -> int:
    """Largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _certifies(model: nn.Module, x: Tensor, y: Tensor, unit: JointBall) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for bound in (b for b in QUICK if b not in UNSOUND):
        try:
            Prover(model, bound)(x, y, unit.scaled(0.0, 0.0))
            found[bound] = None
        except (UnsupportedModel, InvalidInput) as e:
            found[bound] = " ".join(str(e).split())
    return found


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
