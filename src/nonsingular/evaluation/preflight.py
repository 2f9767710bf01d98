"""preflight.py - before a long run: how long it takes and within which ends, how much memory, what moves, what can be certified.

A few examples go over a few points of the grid, with a clock: first one of each, then more as long as there is time.  What is
lost in a small ball is lost in every larger one, so a point costs what is still alive there: seconds are interpolated between
the points that were timed, and grow along a line with the number of examples.
"""

from __future__ import annotations

import heapq
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonsingular.catalog import UNSOUND
from nonsingular.certificates.certify import Prover
from nonsingular.certificates.radii import certified_front
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.attacked import moved_at, rehearse
from nonsingular.evaluation.certified import TOGETHER, certified_part, margins_of
from nonsingular.evaluation.masking import EXAMPLES, masking
from nonsingular.evaluation.problem import Method, Proof
from nonsingular.evaluation.schedule import cell_alone, span_nested
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.surface import Cell
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation

SOFT = 12.0
"""Seconds after which nothing new is begun."""
QUICK = ("theorem1", "interval", "crown-ibp", "crown", "alpha-crown")
"""Bounds that are tried on one example, the cheapest first.  The others stand on these."""
LOOKED = 3.0
"""Seconds for the clean accuracy; of more examples than can be seen in that time, a sample is."""
REPORT, START, DISK = 2.5, 4.0, 2e8
"""Seconds to draw the report, seconds until a worker is at work, bytes a second that perturbations are written with."""
PASSES = 4
"""Passes over all examples beside the attack: checks, clean accuracy, who was first to break."""
LONG, SOON = 1800.0, 600.0
"""Seconds from which on a smaller run is proposed, and about how long that one takes."""
ROUGH = 4.0
"""The ends are the estimate over and times this before anything but one example was timed; later it falls."""


@dataclass(frozen=True)
class Preflight:
    """What a run is going to be.

    seconds: estimated, on `workers` processes, with everything up to the report; None before anything was timed.
    factor: it should lie between seconds / factor and seconds * factor.  parts: what the seconds are for.
    unfinished: what did not end while it was timed; then the seconds are a lower end.
    clean: accuracy on `seen` of the examples, nothing moved.  doubts: what looks like a mistake, as the run itself would say.
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
    """What else is worth a look before the run: the order of the classes, the columns that move."""

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
        """What to ask instead of a long run."""
        if self.seconds is None or self.seconds < LONG:
            return None
        n = int(self.examples * SOON / self.seconds)
        n -= n % 10 ** max(0, len(str(n)) - 1)
        if n >= 10:
            about = "more than" if self.unfinished else "about"
            return f"for a first look: --limit {n} takes {about} {_duration(self.seconds * n / self.examples)}"
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
            + (f"; fixed: {len(self.fixed)} ({_few(self.fixed)})" if self.fixed else ""),
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
    """The question whose answer takes time.

    x: (N, *input).  y: (N,).  columns: eps_x.  rows: eps_w.  unit: the ball that the grid multiplies.
    method: the attack, if there is one.  proof: the certificates.  fronts: also the largest certified radii.
    masking: also signs of masked gradients.  loading: seconds that each worker needs for model and data.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    columns: Sequence[float]
    rows: Sequence[float]
    unit: JointBall
    method: Method | None = None
    proof: Proof | None = None
    fronts: bool = False
    masking: bool = False
    workers: int = 1
    loading: float = 0.0

    @property
    def own(self) -> bool:
        """Whether each example is attacked by itself, and not at all where it is misclassified or certified."""
        return self.method is None or (self.method.scope == "sample" and self.method.nested)

    @property
    def most(self) -> int:
        """Examples that are worked on together: more need not be timed."""
        if self.method is None:
            return min(len(self.x), TOGETHER)
        return self.method.groups(self.model, len(self.x))[0][1]


def looked_at(model: nn.Module, x: Tensor, y: Tensor, unit: JointBall, seconds: float = LOOKED) -> Tensor:
    """The numbers of as many examples as the model sees in so many seconds, drawn with seed 0 if these are not all.

    Raises what `check_inputs` raises.
    """
    check_inputs(model, x[:1], y[:1], unit)
    n, took = 1, 0.0
    while n < len(x) and took < seconds / 10:
        n = min(len(x), 4 * n)
        took = _of(partial(check_inputs, model, x[:n], y[:n], unit))
    n = max(1, int(n * seconds / took)) if took else n
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    return chosen.sort().values.to(x.device)


def preflight(plan: Plan, seen: Tensor, doubts: Sequence[str], *, seconds: float = SOFT, patient: bool = False) -> Preflight:
    """The last of `preflights`."""
    *_, last = preflights(plan, seen, doubts, seconds=seconds, patient=patient)
    return last


def preflights(
    plan: Plan, seen: Tensor, doubts: Sequence[str], *, seconds: float = SOFT, patient: bool = False
) -> Iterator[Preflight]:  # fmt: skip
    """What the run is going to be: at first without a time, then with one that gets better.

    seen: numbers of the examples on which the clean accuracy is taken, as `looked_at` gives them.
    seconds: after which no new piece of work is begun.  patient: a piece is begun also if it may take longer than that; for
        callers that end the process in time.  `unfinished` then says what was begun.
    Raises what the run itself would raise.  Cost: `seconds`, and what the smallest piece (one example at one point) takes longer.
    """
    started = time.perf_counter()
    with torch.no_grad():
        logits = torch.cat([logits_at(plan.model, Perturbation(plan.x[at])) for at in seen.split(1024)])
    passing = (time.perf_counter() - started) / len(seen)
    right = is_correct(logits, plan.y[seen].long())
    moved = moved_at(plan.model, plan.unit.scaled(plan.columns[-1], plan.rows[-1]))
    fixed = tuple(n for n, _ in plan.model.named_parameters() if n not in moved)
    told = Preflight(
        len(plan.x), len(plan.columns) * len(plan.rows), plan.workers, right.double().mean().item(), len(seen), tuple(doubts),
        moved, fixed, plan.workers * _peak(),
    )  # fmt: skip
    yield told
    clock = _Clock(plan, seen, right.double().mean().item(), seen[right], passing, started + seconds, patient)
    cheap = len(QUICK) - 3

    def tried(told: Preflight, bounds: Sequence[str]) -> Iterator[Preflight]:
        for bound, why in _certifies(plan, clock, bounds):
            certifies, untried = {**told.certifies, bound: why}, tuple(b for b in told.untried if b != bound)
            told = replace(told, certifies=certifies, untried=untried)
            yield told

    for better in tried(told, QUICK[:cheap]):
        told = better
        yield told
    for found in clock.estimates():
        told = replace(told, memory=_memory(plan), **found)
        yield told
    yield from tried(told, QUICK[cheap:])


# --- with a clock ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stage:
    """What some examples took on a part of the grid, as seconds on the whole of it.

    attack, proof, fronts: of n examples together.  accuracy: (rows, columns) on the whole grid, interpolated.
    """

    n: int
    fine: bool
    took: float
    points: int
    attack: float
    proof: float
    fronts: float
    accuracy: NDArray[np.float64]


class _Clock:
    """Times pieces of a plan, smaller ones first."""

    def __init__(
        self, plan: Plan, seen: Tensor, share: float, right: Tensor, passing: float, deadline: float, patient: bool
    ) -> None:
        self.plan, self.share, self.passing, self.deadline, self.patient = (
            plan,
            share if plan.own else 1.0,
            passing,
            deadline,
            patient,
        )
        order = torch.randperm(
            len(pool := right if plan.own and len(right) else seen), generator=torch.Generator().manual_seed(1)
        )
        self.pool = pool[order.to(pool.device)]
        self.stages: list[_Stage] = []
        self.one: dict[str, dict[int, float]] = {}
        self.masks: dict[int, float] = {}

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def estimates(self) -> Iterator[dict[str, Any]]:
        """Fields of a Preflight, again after each piece."""
        yield from self._first()
        while (step := self._next()) is not None:
            self.stages.append(self._timed(*step))
            yield self._told()
        if self.plan.masking:
            yield from self._masked()

    def _first(self) -> Iterator[dict[str, Any]]:
        """One attack in a small ball, where most survive, and one bound: of one example, then of more together."""
        plan, each = self.plan, len(self.plan.x) * self.share / self.plan.workers
        pieces: list[tuple[str, str, Callable[[Tensor, Tensor], object]]] = []
        if (method := plan.method) is not None:
            small = plan.columns[min(1, len(plan.columns) - 1)], plan.rows[min(1, len(plan.rows) - 1)]
            at_a_point = "one example at one point of the grid"
            pieces.append(("attack", at_a_point, lambda x, y: rehearse(plan.model, x, y, method, *small, examples=len(x))))
        if (proof := plan.proof) is not None:
            of_one = f"the bound '{proof.method}' of one example"
            ball = plan.unit.scaled(plan.columns[-1], plan.rows[-1])
            pieces.append(("certificates", of_one, lambda x, y: Prover(plan.model, proof.method)(x, y, ball)))
        for name, what, run in pieces:
            yield self._begun(what, each)
            took: dict[int, float] = {}
            for k, n in enumerate((1, 1, 16, 64)):  # the first call of all loads what torch loads when it is used
                ahead = took[max(took)] * n / max(took) if k > 1 else 0.0
                if n > min(plan.most, len(self.pool)) or self.left < 0 or ahead > 2 * self.left:
                    break  # ahead is too much where many are hardly slower than one, as in small networks
                x, y = (t[self.pool[:n]] for t in (plan.x, plan.y.long()))
                took[n] = _of(partial(run, x, y))
                self.one[name] = took
                yield self._told()

    def _next(self) -> tuple[int, bool] | None:
        """How many examples are timed next, and whether on the finer part of the grid; None if there is no time, or no need."""
        most, last = min(self.plan.most, len(self.pool)), self.stages[-1] if self.stages else None
        sizes = [n for n in (most, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if n <= most]
        if last is None:
            fine = [(n, True) for n in sizes if min(most, 8) <= n <= 64]
            coarse = [(n, False) for n in sizes if n <= 16]
            found = next((step for step in fine + coarse if self._expected(*step) < 0.4 * self.left), None)
            return found or ((1, False) if self.patient else None)
        larger = [n for n in sizes if not last.fine or n >= min(most, 2 * last.n) > last.n]
        return next(((n, True) for n in larger if self._expected(n, True) < 0.8 * self.left), None)

    def _expected(self, n: int, fine: bool) -> float:
        """Seconds of a step, rather too many."""
        points = len(_part(self.plan.columns, fine)) * len(_part(self.plan.rows, fine))
        alone = sum(_line(took, n) for took in self.one.values())
        if not self.stages:
            return alone * points / 2  # a point that begins from its neighbours costs less than one by itself
        last = self.stages[-1]
        return last.took / last.points * points * alone / sum(_line(took, last.n) for took in self.one.values())

    def _timed(self, n: int, fine: bool) -> _Stage:
        """n examples on a part of the grid."""
        plan, started = self.plan, time.perf_counter()
        at_x, at_w = _part(plan.columns, fine), _part(plan.rows, fine)
        columns, rows = [plan.columns[j] for j in at_x], [plan.rows[i] for i in at_w]
        x, y = plan.x[self.pool[:n]], plan.y[self.pool[:n]].long()
        denser = (len(plan.columns) + len(plan.rows)) / (len(columns) + len(rows))  # a border crosses so many points more
        proof = fronts = attack = 0.0
        held = None
        if plan.proof and plan.own:
            _, held, proof = certified_part(plan.model, x, y, plan.proof, columns, rows, (0, n))
        accuracy = np.ones((len(rows), len(columns))) if held is None else held.mean(2)
        if plan.method is not None:
            attack, cells = self._attacked(x, y, columns, rows, at_x, at_w, held)
            accuracy = np.array([c.correct.mean() for c in cells]).reshape(len(rows), len(columns))
            if plan.proof and not plan.own:
                broken = np.minimum.accumulate(np.minimum.accumulate(margins_of(cells, columns, rows), axis=0), axis=1)
                _, _, proof = certified_part(plan.model, x, y, plan.proof, columns, rows, (0, n), broken)
        if plan.proof and plan.fronts:
            ball = plan.unit.scaled(columns[-1], rows[-1])
            fronts = _of(
                lambda: certified_front(plan.model, x, y, ball, eps_x=columns, method=plan.proof.method if plan.proof else "")
            )
        return _Stage(
            n, fine, time.perf_counter() - started, len(columns) * len(rows), attack, proof * denser,
            fronts * len(plan.columns) / len(columns), _whole(accuracy, at_w, at_x, (len(plan.rows), len(plan.columns))),
        )  # fmt: skip

    def _attacked(
        self, x: Tensor, y: Tensor, columns: Sequence[float], rows: Sequence[float], at_x: Sequence[int], at_w: Sequence[int],
        held: NDArray[np.bool_] | None,
    ) -> tuple[float, list[Cell]]:  # fmt: skip
        """Seconds of the attack on the whole grid, and the cells of the part."""
        plan = self.plan
        method = plan.method
        assert method is not None
        started = time.perf_counter()
        if method.nested:
            _, cells, _ = span_nested(plan.model, x, y, method, columns, rows, (0, len(x)), held, True, plan.proof)
        else:
            cells = [cell_alone(plan.model, x, y, method, (c, r), True)[1][0] for r in rows for c in columns]
        whole = time.perf_counter() - started
        seconds = np.array([c.seconds for c in cells]).reshape(len(rows), len(columns))
        beside = whole - seconds.sum()  # what broke is written out, and certificates are challenged: once for each example
        if not plan.own:
            beside *= len(plan.rows) * len(plan.columns) / len(cells)
        smooth = seconds.copy()
        if min(smooth.shape) > 1 and not columns[0] and not rows[0]:
            smooth[0, 0] = (smooth[0, 1] + smooth[1, 0]) / 2  # nothing moves there, and nothing is attacked
        full = _whole(smooth, at_w, at_x, (len(plan.rows), len(plan.columns)))
        return float(full.sum() - full[0, 0] + seconds[0, 0] + beside), cells

    def _masked(self) -> Iterator[dict[str, Any]]:
        plan, method = self.plan, self.plan.method
        if method is None or not self.stages:
            return
        away = np.abs(self.stages[-1].accuracy - self.share / 2)
        i, j = divmod(int(away.argmin()), away.shape[1])
        ball = plan.unit.scaled(plan.columns[j], plan.rows[i])
        data = (plan.x[self.pool], plan.y[self.pool])
        for limit in (2, 8):
            if self.masks and 4 * self.masks[2] > self.left:
                return
            yield self._begun("the search for masked gradients, on two examples", 1.0)
            self.masks[limit] = _of(
                lambda limit=limit: masking(plan.model, data, ball, scope=method.scope, attack=method.attack, limit=limit)
            )
            yield self._told()

    # --- from pieces to the whole

    def _begun(self, what: str, times: float) -> dict[str, Any]:
        """As told so far, in case that `what` never ends, which the run does so many times: then it takes longer than this."""
        told = self._told()
        if not self.patient:
            return told
        least = (told["seconds"] or 0.0) / told["factor"] + max(1.0, self.left) * max(1.0, times)
        return told | {"seconds": least, "unfinished": f"{what} did not end in time"}

    def _told(self) -> dict[str, Any]:
        parts, plan, last = dict[str, float](), self.plan, self.stages[-1] if self.stages else None
        n = len(plan.x) * self.share
        if last is None:
            points = {"attack": len(plan.columns) * len(plan.rows) / 4, "certificates": (len(plan.columns) + len(plan.rows)) / 2}
            for name, took in self.one.items():
                size = min(plan.most, n)
                parts[name] = _line(took, size) * n / max(size, 1) * points[name] / plan.workers
        else:
            if plan.method is not None:
                parts["attack"] = self._attack()
            if plan.proof is not None:
                parts["certificates"] = self._spans("proof") + self._spans("fronts")
        if self.masks and plan.method is not None:
            parts["masking"] = _line(self.masks, min(len(plan.x), EXAMPLES[plan.method.scope]))
        elif plan.masking and last is not None and plan.method is not None:
            parts["masking"] = 8 * last.attack / last.n / (len(plan.columns) * len(plan.rows)) * EXAMPLES[plan.method.scope]
        rest = REPORT + PASSES * self.passing * len(plan.x) + self._written() / DISK
        if plan.workers > 1:
            rest += START + plan.loading + self.passing * len(plan.x)
        parts["the rest"] = rest
        seconds = sum(parts.values())
        return {"seconds": seconds if len(parts) > 1 else None, "parts": parts, "factor": self._factor(), "unfinished": None}

    def _factor(self) -> float:
        """How far apart the ends are: the fewer examples, the further."""
        if not self.stages:
            return ROUGH
        last = self.stages[-1]
        if not last.fine:
            return 3.0
        if not self.plan.own:  # how often a point is attacked twice depends on its neighbours, which lie further apart here
            return 2.0
        return 1.5 if last.n == min(self.plan.most, len(self.pool)) else 1.7 if last.n >= 8 else 2.2

    def _of_size(self, what: str, size: float) -> float:
        """Seconds of `size` examples together, as they grow from stage to stage, or as single pieces do."""
        if len(self.stages) > 1:
            return _line({s.n: getattr(s, what) for s in self.stages}, size)
        (only,) = self.stages
        alone = self.one["attack" if what == "attack" else "certificates"]
        return getattr(only, what) * _line(alone, size) / _line(alone, only.n)

    def _attack(self) -> float:
        plan, method = self.plan, self.plan.method
        assert method is not None
        groups = [(stop - start) * self.share for start, stop in method.groups(plan.model, len(plan.x))]
        each = [self._of_size("attack", size) for size in groups]
        cells = len(plan.columns) * len(plan.rows)
        if not method.nested:  # points apart from each other
            return _spread([sum(each) / cells] * cells, plan.workers)
        if method.scope == "dataset":  # each point after its smaller neighbours
            return each[0] * max(1 / plan.workers, (len(plan.columns) + len(plan.rows) - 1) / cells)
        return _spread(each, plan.workers)

    def _spans(self, what: str) -> float:
        n = len(self.plan.x)
        each = [self._of_size(what, min(TOGETHER, n - i) * self.share) for i in range(0, n, TOGETHER)]
        return _spread(each, self.plan.workers)

    def _written(self) -> float:
        """Bytes of stored perturbations: x' of each example once, or of all at every point."""
        plan = self.plan
        if plan.method is None:
            return 0.0
        once = plan.x.element_size() * plan.x.numel()
        return float(once if plan.own else once * len(plan.columns) * len(plan.rows))


def _of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _part(radii: Sequence[float], fine: bool) -> list[int]:
    """Which radii of an axis are timed: its ends and its middle; finer, also below the middle, where most is lost."""
    last, middle = len(radii) - 1, len(radii) // 2
    return sorted({0, middle, last} | ({min(1, last), middle // 2} if fine else set()))


def _whole(values: NDArray[np.float64], at_w: Sequence[int], at_x: Sequence[int], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(rows, columns) of the whole grid, linear between the points at_w x at_x."""
    along = np.stack([np.interp(np.arange(shape[1]), at_x, row) for row in values])
    return np.stack([np.interp(np.arange(shape[0]), at_w, column) for column in along.T], axis=1)


def _line(seconds: Mapping[int, float], size: float) -> float:
    """Seconds of `size` examples, from those of some sizes: along the line through the two largest, which never falls.

    >>> _line({1: 2.0, 3: 4.0}, 10), _line({2: 3.0}, 4)
    (11.0, 6.0)
    """
    (n, most), *others = sorted(seconds.items(), reverse=True)
    if size <= n or not others:
        return most * size / n
    before, less = others[0]
    return most + max(0.0, most - less) / (n - before) * (size - n)


def _spread(pieces: Sequence[float], workers: int) -> float:
    """Seconds until the last of `workers` is done, which take the pieces in their order.

    >>> _spread([2.0, 2.0, 2.0], 2)
    4.0
    """
    busy = [0.0] * workers
    for piece in pieces:
        heapq.heapreplace(busy, busy[0] + piece)
    return max(busy)


def _memory(plan: Plan) -> int:
    shared = plan.method is not None and plan.method.scope == "dataset"  # x' of one row of the grid
    return plan.workers * (_peak() + plan.x.element_size() * plan.x.numel() * (2 * len(plan.columns) if shared else 1))


def _peak() -> int:
    """Largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _certifies(plan: Plan, clock: _Clock, bounds: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Bounds on one example at radius 0, as long as there is time."""
    x, y, ball = plan.x[:1], plan.y[:1].long(), plan.unit.scaled(0.0, 0.0)
    last: Callable[[], object] | None = None
    took = 0.0
    for bound in (b for b in bounds if b not in UNSOUND):
        dearer = 40 if bound == "alpha-crown" else 5  # times what the last one took, if it comes bad
        if took * dearer > max(clock.left, 1.0) and not clock.patient:
            took = min(took, _of(last)) if last else took  # without what was loaded the first time
            if took * dearer > max(clock.left, 1.0):
                return
        try:
            last = partial(Prover(plan.model, bound), x, y, ball)
            took = _of(last)
            yield bound, None
        except (UnsupportedModel, InvalidInput) as e:
            yield bound, " ".join(str(e).split())


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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
