"""walk.py - what attacks reach over a grid of radii, from small balls to large ones.

A perturbation found in a ball lies in every larger one.  So each point of the grid begins from those of its smaller neighbours,
grown to its own radii, and never ends above them: the surface falls along both axes because it was attacked that way.
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

ROUNDS = 2
"""Most attacks on one point of the grid.  Each begins where the last one ended, if that one lowered the accuracy by more than
half the width of its 95 % interval.  A point where the final one still did has the flag "moving"."""


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


def reach(
    case: Case, grid: Grid, method: Method, radii: Radii, smaller: Sequence[Reached] = (), proven: Tensor | None = None
) -> Reached:  # fmt: skip
    """Attacks one group of examples in one cell.

    smaller: what was reached at neighbours with smaller radii.  The accuracy is not above theirs; in scope sample, examples that
    are lost there are lost here.  proven: (n,) examples that are certified here, which scope sample skips.
    """
    started, before = time.perf_counter(), so_far()
    smaller = [s.to(case.x.device) for s in smaller]  # from another process they come without their device
    with torch.no_grad():
        if method.alone:
            found = _each(case, grid, method, radii, smaller, proven)
        else:
            found = _together(case, grid, method, radii, smaller)
    seconds, passes = time.perf_counter() - started, so_far().since(before)
    return replace(found, eps_x=radii[0], eps_w=radii[1], seconds=seconds, passes=passes)


def walk(case: Case, grid: Grid, method: Method, proven: NDArray[np.bool_] | None = None) -> Iterator[Reached]:
    """`reach` over the whole grid for one group, row by row.  proven: (rows, columns, n)."""
    above: list[Reached] = []
    rows, columns = grid.shape
    for i in range(rows):
        here: list[Reached] = []
        for j in range(columns):
            known = None if proven is None else torch.from_numpy(proven[i, j]).to(case.x.device)
            smaller = ([above[j]] if above else []) + here[-1:]
            here.append(reach(case, grid, method, grid.radii(i, j), smaller, known))
            yield here[-1]
        above = here


# --- one point of the grid ------------------------------------------------------------------------------------------------


def _attack(case: Case, method: Method, ball: JointBall, start: Perturbation | None) -> tuple[Perturbation, Tensor]:
    """A point of the ball and its (n, K) logits, taken from its tensors."""

    def run(size: int) -> Perturbation:
        """In scope sample examples can be attacked separately; an attack with a shared W' handles a lack of memory itself."""
        found: list[Perturbation] = []
        for at in (slice(i, i + size) for i in range(0, len(case), size)):
            some = case.part(at)
            part = method.at(some, ball, None if start is None else start.part(at))
            found.append(part.check(case.network, some.x, ball))
        return Perturbation.joined(found)

    point = halving(run, len(case)) if method.scope == "sample" else run(len(case))
    if point.weights and point.scope != method.scope:
        raise NotInBall(f"the attack '{method.attack.name}' returned W' of scope {point.scope}; it was asked for {method.scope}")
    return point, logits_at(case.network, point)


def _together(case: Case, grid: Grid, method: Method, radii: Radii, smaller: Sequence[Reached]) -> Reached:
    """One perturbation of the group as a whole."""
    n, y, everyone = len(case), case.y, torch.arange(len(case), device=case.x.device)
    nearest = min(smaller, key=_right, default=None)
    if nearest is not None and not _right(nearest):
        return replace(nearest, flags=())
    start, before = None, n
    for s in smaller:
        grown = _grown(case, grid, method.scope, radii, everyone, [s])
        right = int(is_correct(logits_at(case.network, grown), y).sum())
        if start is None or right < before:
            start, before = grown, right

    def attempt(start: Perturbation | None) -> Reached:
        point, logits = _attack(case, method, grid.at(radii), start)
        flags = ("one-class",) if n > 1 and len(logits.argmax(1).unique()) == 1 else ()
        return Reached(*radii, is_correct(logits, y), attained(logits, y), everyone, point, radii, flags)

    best = attempt(start)
    for _ in range(1, ROUNDS if method.nested else 1):
        if not _moves(before, _right(best), n):
            break
        before, best = _right(best), min(best, attempt(best.point), key=_right)
    if method.nested and _moves(before, _right(best), n):
        best = replace(best, flags=(*best.flags, "moving"))
    return best if nearest is None else min(nearest, best, key=_right)


def _each(
    case: Case, grid: Grid, method: Method, radii: Radii, smaller: Sequence[Reached], proven: Tensor | None
) -> Reached:  # fmt: skip
    """A separate perturbation for each example: only examples that are neither lost nor proven are attacked."""
    flags: tuple[str, ...] = ()
    x, y = case.x, case.y
    if smaller:
        correct = torch.stack([s.correct for s in smaller]).all(0)
        margin = torch.stack([s.margins for s in smaller]).amin(0)
    else:
        logits = logits_at(case.network, Perturbation(x))  # anew: its passes count
        correct, margin = is_correct(logits, y), attained(logits, y)
        flags = ("one-class",) if len(x) > 1 and len(logits.argmax(1).unique()) == 1 else ()
    rows = (correct if proven is None else correct & ~proven).nonzero().flatten()
    if not len(rows) or not any(radii):
        nothing = rows[:0]
        return Reached(*radii, correct, margin, nothing, Perturbation(x[nothing], scope="sample"), radii, flags)
    start = _grown(case, grid, method.scope, radii, rows, smaller) if smaller else None
    point, logits = _attack(case.part(rows), method, grid.at(radii), start)
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
    """What was found in smaller balls, scaled to this one; in scope sample, for each row the one with the lower margin."""
    ball, x, params = grid.at(radii), case.x, {n: p.detach() for n, p in case.network.named_parameters()}
    boxes, box = ball.weight_boxes(params), ball.input_box(x[rows])
    own = scope == "sample"
    x_new = x[rows].clone()
    weights = {n: params[n].expand(len(rows), *params[n].shape).clone() if own else params[n].clone() for n in boxes}
    margin = x.new_full((len(rows),), torch.inf)
    for s in smaller:
        place = torch.full((len(x),), -1, device=x.device)
        place[s.rows] = torch.arange(len(s.rows), device=x.device)
        into = ((place[rows] >= 0) & (s.margins[rows] < margin)).nonzero().flatten()
        at, margin[into] = place[rows[into]], s.margins[rows[into]]
        further_x, further_w = (new / old if old else 1.0 for new, old in zip(radii, s.origin, strict=True))
        x_new[into] = x[rows[into]] + (s.point.x[at] - x[rows[into]]) * further_x
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
