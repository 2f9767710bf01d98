"""walk.py - what attacks reach over a grid of radii, in sweeps from small balls to large ones and back (effort.py).

A perturbation found in a ball lies in every larger one.  So each point of the grid begins from those of its smaller neighbours,
grown to its own radii, and never ends above them: the surface falls along both axes because it was attacked that way.  On the way
back it begins from those of its larger neighbours, shrunk, whose W' are near to good ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nonsingular.errors import NotInBall
from nonsingular.evaluation.certified import margins_of
from nonsingular.evaluation.effort import Budget, Sweep
from nonsingular.evaluation.problem import Case, Method
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import attained, is_correct
from nonsingular.network.memory import halving
from nonsingular.network.passes import so_far
from nonsingular.results.statistics import wilson
from nonsingular.results.surface import Cell
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.grid import Grid, Radii
from nonsingular.threat.perturbation import Perturbation


@dataclass(frozen=True, eq=False)
class Reached:
    """What is reached at one point of the grid, for a group of n examples.

    correct: (n,) which survive.  margins: (n,) the smallest that were attained.
    point: the perturbation of the examples `rows` (k,): in scopes batch and dataset of all, with one W'; in scope sample of those
    that were attacked here, each with its own.  origin: the radii at which it was found.
    """

    eps_x: float
    eps_w: float
    correct: Tensor
    margins: Tensor
    rows: Tensor
    point: Perturbation
    origin: tuple[float, float]
    flags: tuple[str, ...] = ()
    seconds: float = 0.0
    passes: tuple[int, int] = (0, 0)

    @property
    def cell(self) -> Cell:
        """The record of it."""
        correct, margins = self.correct.cpu().numpy(), self.margins.float().cpu().numpy()
        here = (self.eps_x, self.eps_w)
        origin = None if self.origin == here else self.origin
        return Cell(*here, correct, self.seconds, self.flags, margins, origin, self.passes)

    def to(self, device: torch.device) -> Reached:
        """The same on a device."""
        weights = {n: w.to(device) for n, w in self.point.weights.items()}
        point = Perturbation(self.point.x.to(device), weights, self.point.scope)
        correct, margins, rows = (t.to(device) for t in (self.correct, self.margins, self.rows))
        return replace(self, correct=correct, margins=margins, rows=rows, point=point)

    def broken(self) -> tuple[Tensor, Perturbation]:
        """The examples of `rows` that are lost, and their perturbations."""
        lost = (~self.correct[self.rows]).nonzero().flatten()
        return self.rows[lost], self.point.part(lost)

    def __reduce__(self) -> tuple[Any, ...]:  # through arrays: tensors would be sent in shared memory, of which there is little
        point = ({n: t.cpu().numpy() for n, t in {"": self.point.x, **self.point.weights}.items()}, self.point.scope)
        arrays = [t.cpu().numpy() for t in (self.correct, self.margins, self.rows)]
        return _rebuilt, (self.eps_x, self.eps_w, arrays, point, self.origin, self.flags, self.seconds, self.passes)


def _rebuilt(
    eps_x: float, eps_w: float, arrays: Sequence[NDArray[Any]], point: tuple[dict[str, NDArray[Any]], Scope], *rest: Any
) -> Reached:
    weights = {n: torch.from_numpy(a) for n, a in point[0].items()}
    correct, margins, rows = (torch.from_numpy(a) for a in arrays)
    return Reached(eps_x, eps_w, correct, margins, rows, Perturbation(weights.pop(""), weights, point[1]), *rest)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a cell before it is attacked.

    own: what the sweep before reached there.  neighbours: what this sweep reached next to it, at smaller radii, or at larger ones
    where it goes down.  sweep: its number.  proven: (n,) examples that are certified here, which scope sample skips.
    """

    own: Reached | None = None
    neighbours: Sequence[Reached] = ()
    sweep: int = 0
    proven: Tensor | None = None

    @property
    def reached(self) -> list[Reached]:
        return [*([] if self.own is None else [self.own]), *self.neighbours]

    def to(self, device: torch.device) -> Known:
        """The same on a device."""
        own = None if self.own is None else self.own.to(device)
        return replace(self, own=own, neighbours=[r.to(device) for r in self.neighbours])


NOTHING = Known()
"""A cell that is attacked by itself."""


def reach(case: Case, grid: Grid, method: Method, radii: Radii, known: Known = NOTHING) -> Reached:
    """Attacks one group of examples in one cell, in one sweep.

    The accuracy is not above what is known of this ball and of smaller ones; in scope sample, examples that are lost there are
    lost here.  Seconds and passes are those of all sweeps so far.
    """
    started, before = time.perf_counter(), so_far()
    known = known.to(case.x.device)  # from another process it comes without its device
    with torch.no_grad():
        found = (_each if method.alone else _together)(case, grid, method, radii, known)
    seconds, passes = time.perf_counter() - started, so_far().since(before)
    if known.own is not None:
        seconds, passes = seconds + known.own.seconds, (passes[0] + known.own.passes[0], passes[1] + known.own.passes[1])
    return replace(found, eps_x=radii[0], eps_w=radii[1], seconds=seconds, passes=passes)


def order(grid: Grid, sweep: Sweep) -> list[tuple[int, tuple[int, ...]]]:
    """The cells of a grid in the order of a sweep, by their number, each with the neighbours that come before it."""
    rows, columns = grid.shape
    step = 1 if sweep.down else -1
    cells = range(rows * columns)
    found = list[tuple[int, tuple[int, ...]]]()
    for k in reversed(cells) if sweep.down else cells:
        i, j = divmod(k, columns)
        beside = ((k + step * columns, 0 <= i + step < rows), (k + step, 0 <= j + step < columns))
        found.append((k, tuple(m for m, there in beside if there)))
    return found


def walk(case: Case, grid: Grid, method: Method, proven: NDArray[np.bool_] | None = None) -> Iterator[tuple[int, Reached]]:
    """`reach` over the whole grid for one group, sweep by sweep, each with its number.  proven: (rows, columns, n)."""
    before = dict[int, Reached]()
    for number, sweep in enumerate(method.sweeps):
        now = dict[int, Reached]()
        for k, beside in order(grid, sweep):
            i, j = divmod(k, grid.shape[1])
            certified = None if proven is None else torch.from_numpy(proven[i, j]).to(case.x.device)
            known = Known(before.get(k), [now[m] for m in beside], number, certified)
            now[k] = reach(case, grid, method, grid.radii(i, j), known)
            yield number, now[k]
        before = now


# --- one point of the grid ------------------------------------------------------------------------------------------------


def _attack(
    case: Case, method: Method, ball: JointBall, start: Perturbation | None, budget: Budget
) -> tuple[Perturbation, Tensor]:  # fmt: skip
    """A point of the ball and its (n, K) logits, taken from its tensors."""

    def run(size: int) -> Perturbation:
        """In scope sample examples can be attacked separately; an attack with a shared W' handles a lack of memory itself."""
        found: list[Perturbation] = []
        for at in (slice(i, i + size) for i in range(0, len(case), size)):
            some = case if size >= len(case) else case.part(at)
            part = method.at(some, ball, None if start is None else start.part(at), budget)
            found.append(part.check(case.network, some.x, ball, None if some.crew is None else some.crew.box(ball)))
        return Perturbation.joined(found)

    point = halving(run, len(case)) if method.scope == "sample" else run(len(case))
    if point.weights and point.scope != method.scope:
        raise NotInBall(f"the attack '{method.attack.name}' returned W' of scope {point.scope}; it was asked for {method.scope}")
    return point, case.logits(point)


def _together(case: Case, grid: Grid, method: Method, radii: Radii, known: Known) -> Reached:
    """One perturbation of the group as a whole."""
    n, y, everyone = len(case), case.y, torch.arange(len(case), device=case.x.device)
    sweep = method.sweep(known.sweep)
    within = [r for r in known.reached if r.eps_x <= radii[0] and r.eps_w <= radii[1]]
    nearest = min(within, key=_right, default=None)
    if nearest is not None:  # what is still true of it in another ball, and after another attack
        nearest = replace(nearest, flags=tuple(f for f in nearest.flags if f != "moving" and nearest is known.own))
        if not _right(nearest) or not sweep.attacks:
            return nearest
    points = [r.point if r.origin == radii else _grown(case, grid, method.scope, radii, everyone, [r]) for r in known.reached]
    start, before = _best(case, points) if points else (None, n)
    budget = {**sweep.budget, **({} if sweep.explores_at(radii, grid) else {"explore": False})}

    def attempt(start: Perturbation | None) -> Reached:
        point, logits = _attack(case, method, grid.at(radii), start, budget)
        flags = ("one-class",) if n > 1 and len(logits.argmax(1).unique()) == 1 else ()
        return Reached(*radii, is_correct(logits, y), attained(logits, y), everyone, point, radii, flags)

    best = attempt(start)
    for _ in range(1, sweep.rounds):
        if not _moves(before, _right(best), n):
            break
        before, best = _right(best), min(best, attempt(best.point), key=_right)
    if method.nested and _moves(before, _right(best), n):
        best = replace(best, flags=(*best.flags, "moving"))
    return best if nearest is None else min(nearest, best, key=_right)


def _best(case: Case, points: Sequence[Perturbation]) -> tuple[Perturbation, int]:
    """The W' of the point that leaves the fewest right, each input the best of all points' against it; how many these leave."""
    logits = [case.logits(point) for point in points]
    k = min(range(len(points)), key=lambda k: int(is_correct(logits[k], case.y).sum()))
    best = points[k]
    x, margin = best.x.clone(), attained(logits[k], case.y)
    for point in points:
        if not torch.equal(point.x, best.x):
            reached = attained(case.logits(replace(best, x=point.x)), case.y)
            lower = reached < margin
            x[lower], margin[lower] = point.x[lower], reached[lower]
    return replace(best, x=x), int((margin > 0).sum())


def _each(case: Case, grid: Grid, method: Method, radii: Radii, known: Known) -> Reached:
    """A separate perturbation for each example: only examples that are neither lost nor proven are attacked."""
    flags: tuple[str, ...] = ()
    x, y, smaller = case.x, case.y, known.reached
    if smaller:
        correct = torch.stack([s.correct for s in smaller]).all(0)
        margin = torch.stack([s.margins for s in smaller]).amin(0)
        flags = () if known.own is None else known.own.flags
    else:
        logits = logits_at(case.network, Perturbation(x))  # anew: its passes count
        correct, margin = is_correct(logits, y), attained(logits, y)
        flags = ("one-class",) if len(x) > 1 and len(logits.argmax(1).unique()) == 1 else ()
    rows = (correct if known.proven is None else correct & ~known.proven).nonzero().flatten()
    if not len(rows) or not any(radii):
        nothing = rows[:0]
        return Reached(*radii, correct, margin, nothing, Perturbation(x[nothing], scope="sample"), radii, flags)
    start = _grown(case, grid, method.scope, radii, rows, smaller) if smaller else None
    point, logits = _attack(case.part(rows), method, grid.at(radii), start, method.sweeps[known.sweep].budget)
    correct[rows] &= is_correct(logits, y[rows])
    margin[rows] = torch.minimum(margin[rows], attained(logits, y[rows]))
    return Reached(*radii, correct, margin, rows, point, radii, flags)


def _right(reached: Reached) -> int:
    return int(reached.correct.sum())


def _moves(before: int, right: int, n: int) -> bool:
    """Whether fewer are right by more than half the width of the interval, and some are left."""
    low, high = wilson(right, n)
    return right > 0 and before - right > n * float(high - low) / 2


def _grown(
    case: Case, grid: Grid, scope: Scope, radii: Radii, rows: Tensor, smaller: Sequence[Reached]
) -> Perturbation:  # fmt: skip
    """What was found in other balls, scaled to this one; in scope sample, for each row the one with the lower margin."""
    ball, x, params = grid.at(radii), case.x, {n: p.detach() for n, p in case.network.named_parameters()}
    own = scope == "sample"
    home = x[rows] if own else x  # all share one W': all examples, in their order
    boxes, box = ball.weight_boxes(params), ball.input_box(home) if case.crew is None else case.crew.box(ball)
    x_new = home.clone()
    weights = {n: params[n].expand(len(rows), *params[n].shape).clone() if own else params[n].clone() for n in boxes}
    margin = x.new_full((len(rows),), torch.inf)
    for s in smaller:
        at: Tensor | slice = slice(None)
        into: Tensor | slice = slice(None)
        if own:
            place = torch.full((len(x),), -1, device=x.device)
            place[s.rows] = torch.arange(len(s.rows), device=x.device)
            into = ((place[rows] >= 0) & (s.margins[rows] < margin)).nonzero().flatten()
            at, margin[into] = place[rows[into]], s.margins[rows[into]]
        further_x, further_w = (new / old if old else 1.0 for new, old in zip(radii, s.origin, strict=True))
        x_new[into] = home[into] + (s.point.x[at] - home[into]) * further_x
        for name in s.point.weights.keys() & weights.keys():
            moved = s.point.weights[name]
            grown = params[name] + ((moved[at] if own else moved) - params[name]) * further_w
            if own:
                weights[name][into] = grown
            else:
                weights[name] = grown
    return Perturbation(box.project_(x_new), {n: boxes[n].project_(w) for n, w in weights.items()}, scope)


def nested(cells: Sequence[Cell], grid: Grid) -> list[Cell]:
    """The cells of a grid, made nested: an example lost in a ball is lost in every larger one, which holds its perturbation.

    Exact in scope `sample` alone, where each example has its own perturbation.
    """
    at = {(c.eps_x, c.eps_w): c for c in cells}
    correct = np.array([at[radii].correct for radii in grid.points]).reshape(*grid.shape, -1)
    reached = margins_of(cells, grid)
    for along in (0, 1):
        correct = np.logical_and.accumulate(correct, axis=along)
        reached = np.minimum.accumulate(reached, axis=along)
    each = zip(grid.points, correct.reshape(len(cells), -1), reached.reshape(len(cells), -1), strict=True)
    return [replace(at[radii], correct=right, margins=low) for radii, right, low in each]
