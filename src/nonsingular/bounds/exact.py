"""exact.py - the worst margin of a small network over the joint ball: the program of program.py, solved by HiGHS."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from nonsingular.bounds.highs import TOLERANCE, Effort, Status, minimise, solver
from nonsingular.bounds.interval import region
from nonsingular.bounds.linear import hidden_bounds, margin_bounds, pieces
from nonsingular.bounds.points import Point, realised, replay, stored
from nonsingular.bounds.program import Program, refuse_relaxations
from nonsingular.network.graph import precise
from nonsingular.network.heads import classifier
from nonsingular.network.nodes import Product
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation


@dataclass(frozen=True, eq=False)
class Solution:
    """Worst margins logit_y - logit_j over the joint ball, each example with its own W' (scope `sample`), in float64.

    lower: (B, K) proved.  upper: (B, K) attained by a point of the ball.  Column y is 0 in both.
    status: [example][class].  points: for each class j a Perturbation of scope "sample" that attains upper[:, j].
    """

    lower: Tensor
    upper: Tensor
    status: tuple[tuple[Status, ...], ...]
    points: tuple[Perturbation, ...]


def exact(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, time_limit: float = 60.0) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball: the worst margins, less about 2e-6; column y is 0.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode; `solve` states which ones, and what else is raised.
    time_limit: seconds for each margin; an element that reaches it is the bound proved until then, and may be far below.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic
    and as far as HiGHS is right: it searches in float64, with tolerances that `solve` allows for, and leaves no proof to check.
    Never below `crown`, but for rounding.  Cost: at worst exponential in the neurons of open sign.  Source: arXiv:1711.07356.
    """
    return solve(model, x, y, ball, time_limit=time_limit).lower


def solve(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, time_limit: float = 60.0, gap: float = 1e-6,
    start: Perturbation | None = None,
) -> Solution:  # fmt: skip
    """The worst margin of every example and class: proved lower bounds, attained upper bounds.

    x: (B, *input) inside ball.domain.  y: (B,).  time_limit: seconds for each margin.
    gap: a search ends when its two bounds are this close.
    start: a point of the ball that is known, such as an attack's, for `upper` where the search finds none below it.
    lower is HiGHS's dual bound, also at the time limit, less `gap` (which a search that ends leaves unsearched) and less
    TOLERANCE times 1 + the widths of all unknowns (what such an error in every reduced cost can cost); never below CROWN's.
    upper is recomputed in float64 from the stored tensors, so it is attained whatever HiGHS does.
    Raises InvalidInput without the package highspy; UnsupportedModel for activations other than ReLU and LeakyReLU, for
    max-pooling, and for a moving parameter that is used at several places (a shared kernel, tied layers), where the program
    would be a relaxation.  Cost: as `exact`.  Memory: a dense matrix (unknowns x outputs) for each layer.
    """
    search = _Search(model, x, y, ball, Effort(time_limit, gap), start)
    for b in range(len(x)):
        for j in search.order(b):
            search.improve(b, j, time_limit)
    return search.solution()


def decide(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, time_limit: float = 60.0, gap: float = 1e-6,
    start: Perturbation | None = None,
) -> Solution:  # fmt: skip
    """As `solve`, but stops when it is known whether a class can overtake y.

    An example is verified if its other lower margins are above 0, and falsified if an upper one is below 0; then its other
    classes stay as they are.  time_limit: seconds for each example.
    """
    search = _Search(model, x, y, ball, Effort(time_limit, gap), start)
    for b in range(len(x)):
        end = time.monotonic() + time_limit
        for j in search.order(b):
            if search.lower[b, j] > 0 or search.falsified(b):
                search.status[b][j] = "decided"
            else:
                search.improve(b, j, max(0.0, end - time.monotonic()), sign_only=True)
    return search.solution()


class _Search:
    """Bounds, status and points of all margins so far: CROWN's and those of the start, until HiGHS improves on them."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, effort: Effort, start: Perturbation | None
    ) -> None:
        solver()
        model = classifier(model, x, ball)
        self.model, self.x, self.ball, self.effort = model, x.detach(), ball, effort.checked()
        with torch.no_grad():
            here = model if x.device.type == "cpu" else copy.deepcopy(model).cpu()
            self.where = region(precise(here, torch.float64), self.x.double().cpu(), y.cpu(), ball)
            refuse_relaxations(self.where)
            self.stored = stored(self.where, model, self.x, ball)
            self.y = y.long().cpu()
            self.boxes: list[list[Interval]] = []
            lower: list[Tensor] = []
            for part, labels in pieces(self.where, self.y, 1):
                self.boxes.append(hidden_bounds(part))
                lower.append(margin_bounds(part, self.boxes[-1], labels))
            self.lower = torch.cat(lower).nan_to_num(nan=-torch.inf)
            self.points = [[self._start(b, start)] * self.lower.shape[1] for b in range(len(x))]
            self.upper = (
                torch.stack([self._margins(b, row[0]) for b, row in enumerate(self.points)]) if self.points else self.lower
            )
        self.status: list[list[Status]] = [["optimal"] * len(row) for row in self.points]
        self._program: tuple[int, Program] | None = None

    def order(self, b: int) -> list[int]:
        """The classes other than y, nearest first."""
        return [j for j in self.lower[b].argsort().tolist() if j != int(self.y[b])]

    def falsified(self, b: int) -> bool:
        return bool((self.upper[b] < 0).any())

    def improve(self, b: int, j: int, time_limit: float, *, sign_only: bool = False) -> None:
        """A search for the margin over class j.  sign_only: stops when its sign is known."""
        if self.lower[b, j] >= self.upper[b, j] - self.effort.gap:
            return
        y = int(self.y[b])
        with torch.no_grad():
            program = self._program_of(b)
            slack = self.effort.gap + TOLERANCE * (1 + program.width)
            effort = replace(self.effort, time_limit=time_limit)
            found = minimise(program, program.margin(y, j), effort, enough=(-slack, slack) if sign_only else None)
            self.status[b][j] = found.status
            self.lower[b, j] = max(self.lower[b, j].item(), found.bound - slack)
            if found.unknowns is not None:
                self._keep(b, realised(program, self.stored.part(slice(b, b + 1)), found.unknowns, y, j))

    def solution(self) -> Solution:
        device, y = self.x.device, self.y[:, None]
        lower, upper = (t.scatter(1, y, 0.0).to(device) for t in (self.lower, self.upper))
        assert (lower <= upper + 1e-9 * (1 + upper.abs())).all(), "a bound lies above a point: a fault of nonsingular or of HiGHS"
        lower = torch.minimum(lower, upper)  # what is left is rounding
        points = tuple(self._perturbation([row[j] for row in self.points]) for j in range(lower.shape[1]))
        return Solution(lower, upper, tuple(tuple(row) for row in self.status), points)

    def _program_of(self, b: int) -> Program:
        if self._program is None or self._program[0] != b:
            self._program = b, Program(self.where.part(slice(b, b + 1)), self.boxes[b])
        return self._program[1]

    def _margins(self, b: int, point: Point) -> Tensor:
        logits = point.outputs[-1][0]
        return logits[self.y[b]] - logits

    def _keep(self, b: int, point: Point) -> None:
        """A point that was found for one class may be the lowest known for another."""
        for j, margin in enumerate(self._margins(b, point)):
            if margin < self.upper[b, j]:
                self.upper[b, j], self.points[b][j] = margin, point

    def _start(self, b: int, start: Perturbation | None) -> Point:
        at = slice(b, b + 1)
        if start is None:
            return replay(self.where.part(at), self.stored.part(at), self.x[at].cpu().double(), lambda i, z: {})
        own = start.check(self.model, self.x, self.ball).scope == "sample"
        weights = {name: (w[b] if own else w).cpu().double() for name, w in start.weights.items()}

        def moved(i: int, z: Tensor) -> dict[str, Tensor]:
            node = cast(Product, self.where.graph.nodes[i])
            return {p: weights[p] for p in (node.weight, node.bias) if isinstance(p, str) and p in weights}

        return replay(self.where.part(at), self.stored.part(at), start.x[at].cpu().double(), moved)

    def _perturbation(self, points: Sequence[Point]) -> Perturbation:
        params = dict(self.model.named_parameters())
        weights = {
            name: torch.stack([p.weights.get(name, params[name].detach().cpu()) for p in points]).to(params[name].device)
            for name in self.stored.boxes
            if points
        }
        x = torch.cat([self.x[:0], *(p.x.to(self.x.device) for p in points)])
        return Perturbation(x, weights, "sample").check(self.model, self.x, self.ball)
