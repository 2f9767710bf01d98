"""estimate.py - the work of a run, and the estimate of its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nonsingular.catalog import Bound
from nonsingular.evaluation.certified import TOGETHER
from nonsingular.evaluation.problem import Case, Method
from nonsingular.results.statistics import wilson
from nonsingular.threat.grid import Grid

QUICK = ("theorem1", "interval", "crown-ibp", "crown", "alpha-crown")
"""Bounds that are tried on one example, the cheapest first.  The others build on these."""
ROUGH = 4.0
"""The range is the estimate divided and multiplied by this while only one example was timed; later it is narrower."""
LONG, SOON = 1800.0, 600.0
"""A smaller run is proposed from this many seconds on, and takes about this many."""


@dataclass(frozen=True)
class Preflight:
    """The estimate of a run: its time, its memory, and what it moves and certifies.

    seconds: estimated, on `workers` processes, with everything up to the report; None before anything was timed.
    factor: it should lie between seconds / factor and seconds * factor.  parts: what the seconds are for.
    unfinished: what did not end while it was timed; then the seconds are a lower end.
    clean: accuracy on `seen` of the examples, nothing moved.  doubts: what looks like a mistake, in the words of the run.
    memory: bytes, all processes together, estimated from what this one has used.
    moved: name -> {"shape", "radius"} at the largest eps_w.  fixed: names of parameters that do not move.
    certifies: bound -> None, or why it cannot.  untried: bounds for which there was no time.
    proposed: which radii were chosen where none were given, and why.
    """

    examples: int
    cells: int
    workers: int
    clean: float
    seen: int
    doubts: tuple[str, ...]
    moved: Mapping[str, Mapping[str, Any]]
    fixed: tuple[str, ...]
    memory: int = 0
    seconds: float | None = None
    factor: float = ROUGH
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    unfinished: str | None = None
    certifies: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    untried: tuple[str, ...] = QUICK
    proposed: str | None = None
    about: tuple[str, ...] = ()
    """What else to check before the run: the order of the classes, the columns that move."""

    @property
    def numbers(self) -> int:
        """How many weights move."""
        return sum(torch.Size(m["shape"]).numel() for m in self.moved.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Seconds between which the run should end; without an upper end where something did not finish."""
        if self.seconds is None:
            return None
        return (self.seconds, float("inf")) if self.unfinished else (self.seconds / self.factor, self.seconds * self.factor)

    def how_long(self) -> str:
        """The time, in words."""
        if self.seconds is None:
            return f"nothing can be said about the time: {self.unfinished or 'nothing was timed'}"
        if self.unfinished:
            return f"more than {_duration(self.seconds)} ({self.unfinished})"
        low, high = self.seconds / self.factor, self.seconds * self.factor
        return f"about {_duration(self.seconds)} ({_duration(low)} to {_duration(high)})"

    def smaller(self) -> str | None:
        """A smaller run to try before a long one."""
        if self.seconds is None or self.seconds < LONG:
            return None
        n = int(self.examples * SOON / self.seconds)
        n -= n % 10 ** max(0, len(str(n)) - 1)
        if n >= 10:
            about = "more than" if self.unfinished else "about"
            low, high = wilson(n // 2, n)
            return (
                f"for a first look: --limit {n} takes {about} {_duration(self.seconds * n / self.examples)}, and shows every "
                f"accuracy to within {100 * float(high - low) / 2:.2g} points (95 % interval, of a random sample)"
            )
        return "for a first look: fewer points of the grid, e.g. 3 for each axis, with --limit 10" + (
            ", and without certificates" if "certificates" in self.parts and len(self.parts) > 2 else ""
        )

    def __str__(self) -> str:
        can = [b for b, why in self.certifies.items() if why is None]
        of = f"{self.seen:,} of the {self.examples:,} examples" if self.seen < self.examples else f"{self.examples:,} examples"
        parts = [f"{name} {_duration(s)}" for name, s in self.parts.items() if s >= 1]
        lines = [
            *([self.proposed] if self.proposed else []),
            f"clean accuracy: {100 * self.clean:.1f} % of {of}",
            *(f"warning: {doubt}" for doubt in self.doubts),
            f"{self.cells} cells of the grid x {self.examples:,} examples: {self.how_long()} on {self.workers} "
            f"worker{'s' * (self.workers > 1)}, about {self.memory / 2**30:.1f} GB of memory",
            *([f"of that: {', '.join(parts)}"] if len(parts) > 1 and not self.unfinished else []),
            *([text] if (text := self.smaller()) else []),
            f"moves: {len(self.moved)} tensors, {self.numbers:,} numbers"
            + (f"; fixed: {len(self.fixed)} ({few(self.fixed)})" if self.fixed else ""),
            *self.about,
        ]
        if self.certifies:
            lines.append(f"can be certified by: {', '.join(can) or 'no bound'}")
            lines += [f"  not by {bound}: {why}" for bound, why in self.certifies.items() if why is not None]
        if self.untried:
            lines.append(f"no time to try: {', '.join(self.untried)}")
        return "\n".join(lines)

    def details(self) -> str:
        """One line for each tensor that moves: its shape, and its radius at the largest eps_w of the grid."""
        return "\n".join(f"  {n}: {tuple(m['shape'])}, by {m['radius']}" for n, m in self.moved.items())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ends = self.interval
        return {
            "examples": self.examples, "cells": self.cells, "workers": self.workers, "clean_accuracy": self.clean,
            "seen": self.seen, "doubts": list(self.doubts), "seconds": self.seconds,
            "interval": None if ends is None else [ends[0], None if self.unfinished else ends[1]],
            "parts": dict(self.parts), "unfinished": self.unfinished, "memory": self.memory, "moved": dict(self.moved),
            "fixed": list(self.fixed), "certifies": dict(self.certifies), "untried": list(self.untried),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """The work of a run that takes time.

    method: the attack, if there is one.  bound: of the certificates.  fronts: also the largest certified radii.
    masking: also signs of masked gradients.  loading: seconds that each worker needs for model and data.
    """

    case: Case
    grid: Grid
    method: Method | None = None
    bound: Bound | None = None
    fronts: bool = False
    masking: bool = False
    workers: int = 1
    loading: float = 0.0

    @property
    def own(self) -> bool:
        """Whether each example is treated by itself, and skipped where it is misclassified or certified."""
        return self.method is None or self.method.alone

    @property
    def most(self) -> int:
        """Examples that are treated together: more need not be timed."""
        if self.method is None:
            return min(len(self.case), TOGETHER)
        return self.method.groups(self.case, self.grid.unit)[0][1]


def _duration(seconds: float) -> str:
    """Two digits at most.

    >>> [_duration(s) for s in (0.2, 47.0, 100.0, 3000.0, 20000.0, 1e6)]
    ['1 s', '47 s', '100 s', '50 min', '5.6 h', '12 days']
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
