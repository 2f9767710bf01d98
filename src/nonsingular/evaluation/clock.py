"""clock.py - times small pieces of a run, to estimate the time of the whole.

A few examples are timed at a few points of the grid: first one at one point, then more as long as there is time.  An example lost
in a small ball is lost in every larger one, so a point costs as much as its survivors: seconds are interpolated between the
points that were timed, and grow along a line with the number of examples.
"""

from __future__ import annotations

import heapq
import math
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
from nonsingular.certificates.shared import Known, counted
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.evaluation.attacked import rehearse
from nonsingular.evaluation.certified import TOGETHER, certified_part, lowest
from nonsingular.evaluation.estimate import ROUGH, Plan
from nonsingular.evaluation.masking import EXAMPLES, masking
from nonsingular.evaluation.problem import Case
from nonsingular.evaluation.schedule import cell_alone, span_nested
from nonsingular.results.surface import Cell
from nonsingular.threat.grid import Grid

REPORT, START, DISK = 2.5, 4.0, 2e8
"""Seconds to draw the report, seconds until a worker is at work, bytes a second that perturbations are written with."""
SOFT = 12.0
"""Seconds after which no new piece begins."""
PASSES = 4
"""Passes over all examples beside the attack: checks, clean accuracy, who was first to break."""


Axes = tuple[Sequence[int], Sequence[int]]
"""Some rows and some columns of a grid."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Seconds of some examples on the whole grid, from their time on a part of it.

    attack, proof, fronts, shared: of n examples together.  accuracy: (rows, columns) on the whole grid, interpolated.
    """

    n: int
    fine: bool
    took: float
    points: int
    attack: float
    proof: float
    fronts: float
    accuracy: NDArray[np.float64]
    shared: float = 0.0


@dataclass(frozen=True)
class Seen:
    """Results of a first look at the examples.  share: of those that cost time.  passing: seconds of one forward pass."""

    share: float
    passing: float


class Clock:
    """Times pieces of a plan, smaller ones first."""

    def __init__(self, plan: Plan, pool: Tensor, seen: Seen, deadline: float, patient: bool) -> None:
        """pool: numbers of the examples that may be timed."""
        self.plan, self.share, self.passing = plan, seen.share, seen.passing
        self.deadline, self.patient = deadline, patient
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))
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
        plan, each = self.plan, len(self.plan.case) * self.share / self.plan.workers
        pieces: list[tuple[str, str, Callable[[Case], object]]] = []
        if (method := plan.method) is not None:
            small = plan.grid.ball(*(min(1, size - 1) for size in plan.grid.shape))
            pieces.append(("attack", "one example at one point of the grid", lambda some: rehearse(some, method, small)))
        if (bound := plan.bound) is not None:
            prove = Prover(plan.case.network, bound.name, deployed=plan.case.deployed)
            of_one = f"the bound '{bound.name}' of one example"
            pieces.append(("certificates", of_one, lambda some: prove(some.x, some.y, plan.grid.largest)))
        for name, what, run in pieces:
            yield self._begun(what, each)
            took: dict[int, float] = {}
            for k, n in enumerate((1, 1, 16, 64)):  # the very first call also loads parts of torch
                ahead = took[max(took)] * n / max(took) if k > 1 else 0.0
                if n > min(plan.most, len(self.pool)) or self.left < 0 or ahead > 2 * self.left:
                    break  # ahead is too high where many examples are hardly slower than one, as in small networks
                took[n] = timed(partial(run, plan.case.part(self.pool[:n])))
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
        """Seconds of a step; too high rather than too low."""
        points = math.prod(len(_part(radii, fine)) for radii in (self.plan.grid.eps_x, self.plan.grid.eps_w))
        alone = sum(_line(took, n) for took in self.one.values())
        if not self.stages:
            return alone * points / 2  # a point that begins from its neighbours costs less than one by itself
        last = self.stages[-1]
        return last.took / last.points * points * alone / sum(_line(took, last.n) for took in self.one.values())

    def _timed(self, n: int, fine: bool) -> Stage:
        """n examples on a part of the grid."""
        plan, started = self.plan, time.perf_counter()
        at = _part(plan.grid.eps_w, fine), _part(plan.grid.eps_x, fine)
        case, grid, whole = plan.case.part(self.pool[:n]), plan.grid.part(*at), plan.grid.shape
        denser = sum(whole) / sum(grid.shape)  # by this factor, a border crosses more points
        proof = fronts = attack = shared = 0.0
        held = None
        if plan.bound and plan.own:
            _, held, proof = certified_part(case, grid, plan.bound, (0, n))
        accuracy = np.ones(grid.shape) if held is None else held.mean(2)
        if plan.method is not None:
            attack, cells = self._attacked(case, grid, at, held)
            accuracy = np.array([c.correct.mean() for c in cells]).reshape(grid.shape)
            if plan.bound and not plan.own:
                _, held, proof = certified_part(case, grid, plan.bound, (0, n), lowest(cells, grid))
                shared = 0.0 if plan.method.scope == "sample" else self._shared(case, grid, held, accuracy)
        if plan.bound and plan.fronts:
            bound, ball = plan.bound.name, grid.largest
            front = partial(certified_front, eps_x=grid.eps_x, bound=bound, deployed=case.deployed)
            fronts = timed(lambda: front(case.network, case.x, case.y, ball))
        return Stage(
            n, fine, time.perf_counter() - started, len(grid.points), attack, proof * denser, fronts * whole[1] / grid.shape[1],
            _whole(accuracy, at, whole), shared,
        )  # fmt: skip

    def _shared(self, case: Case, grid: Grid, held: NDArray[np.bool_], accuracy: NDArray[np.float64]) -> float:
        """Seconds of the shared certificates of these examples on the whole grid, from one cell that needs them."""
        assert self.plan.bound is not None
        gap = accuracy - held.mean(2)
        todo = sorted((gap[i, j], i, j) for i, j in np.argwhere(gap > 0) if grid.eps_w[i] > 0)
        if not todo:
            return 0.0
        _, i, j = todo[len(todo) // 2]
        known = Known(self.plan.bound.name, torch.from_numpy(held[i, j].copy()).to(case.x.device), deployed=case.deployed)
        took = timed(lambda: counted(case.network, case.x, case.y, grid.ball(i, j), known))
        return took * len(todo) * len(self.plan.grid.points) / len(grid.points)

    def _attacked(
        self, case: Case, grid: Grid, at: Axes, held: NDArray[np.bool_] | None
    ) -> tuple[float, list[Cell]]:  # fmt: skip
        """Seconds of the attack on the whole grid, and the cells of the part.  at: its rows and columns."""
        plan, method = self.plan, self.plan.method
        assert method is not None
        started = time.perf_counter()
        if method.nested:
            known = None if held is None or plan.bound is None else (plan.bound, held)
            _, cells, _ = span_nested(case, grid, method, (0, len(case)), known, keep=True)
        else:
            cells = [cell_alone(case, grid, method, radii, keep=True)[1][0] for radii in grid.points]
        whole = time.perf_counter() - started
        seconds = np.array([c.seconds for c in cells]).reshape(grid.shape)
        beside = whole - seconds.sum()  # what broke is written out, and certificates are challenged: once for each example
        if not plan.own:
            beside *= len(plan.grid.points) / len(cells)
        smooth = seconds.copy()
        if min(smooth.shape) > 1 and not any(grid.radii(0, 0)):
            smooth[0, 0] = (smooth[0, 1] + smooth[1, 0]) / 2  # nothing moves there, and nothing is attacked
        full = _whole(smooth, at, plan.grid.shape)
        return float(full.sum() - full[0, 0] + seconds[0, 0] + beside), cells

    def _masked(self) -> Iterator[dict[str, Any]]:
        plan, method = self.plan, self.plan.method
        if method is None or not self.stages:
            return
        away = np.abs(self.stages[-1].accuracy - self.share / 2)
        i, j = divmod(int(away.argmin()), away.shape[1])
        some, ball = plan.case.part(self.pool), plan.grid.ball(i, j)
        for limit in (2, 8):
            if self.masks and 4 * self.masks[2] > self.left:
                return
            yield self._begun("the search for masked gradients, on two examples", 1.0)
            self.masks[limit] = timed(
                lambda limit=limit: masking(
                    some.network, (some.x, some.y), ball, scope=method.scope, attack=method.attack, limit=limit
                )
            )
            yield self._told()

    # --- from pieces to the whole

    def _begun(self, what: str, times: float) -> dict[str, Any]:
        """The estimate in case `what` never ends: the run does it this many `times`, so it takes longer than that."""
        told = self._told()
        if not self.patient:
            return told
        least = (told["seconds"] or 0.0) / told["factor"] + max(1.0, self.left) * max(1.0, times)
        return told | {"seconds": least, "unfinished": f"{what} did not end in time"}

    def _told(self) -> dict[str, Any]:
        parts, plan, last = dict[str, float](), self.plan, self.stages[-1] if self.stages else None
        n = len(plan.case) * self.share
        if last is None:
            points = {"attack": len(plan.grid.points) / 4, "certificates": sum(plan.grid.shape) / 2}
            for name, took in self.one.items():
                size = min(plan.most, n)
                parts[name] = _line(took, size) * n / max(size, 1) * points[name] / plan.workers
        else:
            if plan.method is not None:
                parts["attack"] = self._attack()
            if plan.bound is not None:
                parts["certificates"] = self._spans("proof") + self._spans("fronts")
            if any(stage.shared for stage in self.stages):
                parts["shared certificates"] = self._counts()
        if self.masks and plan.method is not None:
            parts["masking"] = _line(self.masks, min(len(plan.case), EXAMPLES[plan.method.scope]))
        elif plan.masking and last is not None and plan.method is not None:
            parts["masking"] = 8 * last.attack / last.n / len(plan.grid.points) * EXAMPLES[plan.method.scope]
        rest = REPORT + PASSES * self.passing * len(plan.case) + self._written() / DISK
        if plan.workers > 1:
            rest += START + plan.loading + self.passing * len(plan.case)
        parts["the rest"] = rest
        seconds = sum(parts.values())
        return {"seconds": seconds if len(parts) > 1 else None, "parts": parts, "factor": self._factor(), "unfinished": None}

    def _factor(self) -> float:
        """How wide the range of the estimate is: the fewer examples, the wider."""
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
        groups = [(stop - start) * self.share for start, stop in method.groups(plan.case, plan.grid.unit)]
        each = [self._of_size("attack", size) for size in groups]
        cells = len(plan.grid.points)
        if not method.nested:  # points apart from each other
            return _spread([sum(each) / cells] * cells, plan.workers)
        if method.scope == "dataset":  # each point after its smaller neighbours
            return each[0] * max(1 / plan.workers, (sum(plan.grid.shape) - 1) / cells)
        return _spread(each, plan.workers)

    def _spans(self, what: str) -> float:
        n = len(self.plan.case)
        each = [self._of_size(what, min(TOGETHER, n - i) * self.share) for i in range(0, n, TOGETHER)]
        return _spread(each, self.plan.workers)

    def _counts(self) -> float:
        """Seconds of the shared certificates: each row of the grid of each group that shares W' is a piece."""
        plan, rows = self.plan, len(self.plan.grid.eps_w)
        assert plan.method is not None
        groups = plan.method.groups(plan.case, plan.grid.unit)
        each = [self._of_size("shared", (stop - start) * self.share) / rows for start, stop in groups for _ in range(rows)]
        return _spread(each, plan.workers)

    def _written(self) -> float:
        """Bytes of stored perturbations: x' of each example once, or of all at every point."""
        plan = self.plan
        if plan.method is None:
            return 0.0
        once = plan.case.x.element_size() * plan.case.x.numel()
        return float(once if plan.own else once * len(plan.grid.points))


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _part(radii: Sequence[float], fine: bool) -> list[int]:
    """Which radii of an axis are timed: its ends and its middle; finer, also below the middle, where most is lost."""
    last, middle = len(radii) - 1, len(radii) // 2
    return sorted({0, middle, last} | ({min(1, last), middle // 2} if fine else set()))


def _whole(values: NDArray[np.float64], at: Axes, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(rows, columns) of the whole grid, linear between these rows and columns."""
    at_w, at_x = at
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
    examples = plan.case.x.element_size() * plan.case.x.numel()
    return plan.workers * (peak_memory() + examples * (2 * len(plan.grid.eps_x) if shared else 1))


def peak_memory() -> int:
    """Largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def probed_certificates(plan: Plan, clock: Clock, bounds: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Bounds on one example at radius 0, as long as there is time."""
    one, ball = plan.case.part(slice(1)), plan.grid.at((0.0, 0.0))
    last: Callable[[], object] | None = None
    took = 0.0
    for bound in (b for b in bounds if b not in UNSOUND):
        dearer = 40 if bound == "alpha-crown" else 5  # times the last one, in a bad case
        if took * dearer > max(clock.left, 1.0) and not clock.patient:
            took = min(took, timed(last)) if last else took  # without what was loaded the first time
            if took * dearer > max(clock.left, 1.0):
                return
        try:
            last = partial(Prover(one.network, bound, deployed=plan.case.deployed), one.x, one.y, ball)
            took = timed(last)
            yield bound, None
        except (UnsupportedModel, InvalidInput) as e:
            yield bound, " ".join(str(e).split())
