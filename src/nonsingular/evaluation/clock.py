"""clock.py - small pieces of a run, timed, and what they say of the whole.

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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonsingular.catalog import UNSOUND
from nonsingular.certificates.certify import Prover
from nonsingular.certificates.radii import certified_front
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.attacked import rehearse
from nonsingular.evaluation.certified import TOGETHER, certified_part, margins_of
from nonsingular.evaluation.estimate import ROUGH, Plan
from nonsingular.evaluation.masking import EXAMPLES, masking
from nonsingular.evaluation.schedule import cell_alone, span_nested
from nonsingular.results.surface import Cell

REPORT, START, DISK = 2.5, 4.0, 2e8
"""Seconds to draw the report, seconds until a worker is at work, bytes a second that perturbations are written with."""
SOFT = 12.0
"""Seconds after which nothing new is begun."""
PASSES = 4
"""Passes over all examples beside the attack: checks, clean accuracy, who was first to break."""


@dataclass(frozen=True, eq=False)
class Stage:
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


class Clock:
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
        self.stages: list[Stage] = []
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
                took[n] = timed(partial(run, x, y))
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

    def _timed(self, n: int, fine: bool) -> Stage:
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
            fronts = timed(
                lambda: certified_front(plan.model, x, y, ball, eps_x=columns, method=plan.proof.method if plan.proof else "")
            )
        return Stage(
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
            self.masks[limit] = timed(
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


def timed(run: Callable[[], object]) -> float:
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


def memory_of(plan: Plan) -> int:
    shared = plan.method is not None and plan.method.scope == "dataset"  # x' of one row of the grid
    return plan.workers * (peak_memory() + plan.x.element_size() * plan.x.numel() * (2 * len(plan.columns) if shared else 1))


def peak_memory() -> int:
    """Largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def probed_certificates(plan: Plan, clock: Clock, bounds: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Bounds on one example at radius 0, as long as there is time."""
    x, y, ball = plan.x[:1], plan.y[:1].long(), plan.unit.scaled(0.0, 0.0)
    last: Callable[[], object] | None = None
    took = 0.0
    for bound in (b for b in bounds if b not in UNSOUND):
        dearer = 40 if bound == "alpha-crown" else 5  # times what the last one took, if it comes bad
        if took * dearer > max(clock.left, 1.0) and not clock.patient:
            took = min(took, timed(last)) if last else took  # without what was loaded the first time
            if took * dearer > max(clock.left, 1.0):
                return
        try:
            last = partial(Prover(plan.model, bound), x, y, ball)
            took = timed(last)
            yield bound, None
        except (UnsupportedModel, InvalidInput) as e:
            yield bound, " ".join(str(e).split())
