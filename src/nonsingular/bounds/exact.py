"""exact.py - the worst margin of a small network over the joint ball: the program of program.py, solved by HiGHS."""

from __future__ import annotations

import copy
import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import vjp  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Region, region
from nonsingular.bounds.linear import hidden_bounds, margin_bounds, pieces
from nonsingular.bounds.program import Program, refuse_relaxations
from nonsingular.errors import InvalidInput
from nonsingular.network.graph import precise
from nonsingular.network.heads import classifier
from nonsingular.network.nodes import Parameter, Product
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

TOLERANCE = 1e-9
"""HiGHS's tolerances here: of a row, of a reduced cost and of a whole number."""
Status = Literal["optimal", "decided", "time limit", "failed"]
"""How the search for one margin ended.

`optimal`: searched to the end, or there was nothing to search.  `decided`: left, because the sign of this margin, or of another
of the example, is known (only `decide`).  `time limit`: left.  `failed`: HiGHS could not go on.
"""


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

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode; `solve` says which ones, and what else is raised.
    time_limit: seconds for each margin; an element that reaches it is what was proved until then, and may be far below.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic
    and as far as HiGHS is right: it searches in float64, with tolerances that `solve` allows for, and leaves no proof to check.
    Never below `crown`, but for rounding.  Cost: at worst exponential in the neurons of open sign.  Source: arXiv:1711.07356.
    """
    return solve(model, x, y, ball, time_limit=time_limit).lower


def solve(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, time_limit: float = 60.0, gap: float = 1e-6,
    start: Perturbation | None = None,
) -> Solution:  # fmt: skip
    """The worst margin of every example and class: proved from below, attained from above.

    x: (B, *input) inside ball.domain.  y: (B,).  time_limit: seconds for each margin.
    gap: a search ends when its two bounds are this near.
    start: a point of the ball that is known, such as an attack's, for `upper` where the search finds none below it.
    lower is HiGHS's dual bound, also at the time limit, less `gap` (which a search that ends leaves unsearched) and less
    TOLERANCE times 1 + the widths of all unknowns (what such an error in every reduced cost can cost); never below CROWN's.
    upper is recomputed in float64 from the stored tensors, so it is attained whatever HiGHS does.
    Raises InvalidInput without the package highspy; UnsupportedModel for activations other than ReLU and LeakyReLU, for
    max-pooling, and for a moving parameter that is used at several places (a shared kernel, tied layers), where the program
    would be a relaxation.  Cost: as `exact`.  Memory: a dense matrix (unknowns x outputs) for each layer.
    """
    search = _Search(model, x, y, ball, gap, time_limit, start)
    for b in range(len(x)):
        for j in search.order(b):
            search.improve(b, j, time_limit)
    return search.solution()


def decide(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, time_limit: float = 60.0, gap: float = 1e-6,
    start: Perturbation | None = None,
) -> Solution:  # fmt: skip
    """As `solve`, but no further than it takes to see whether a class can overtake y.

    An example is verified if its other lower margins are above 0, and falsified if an upper one is below 0; then its other
    classes stay as they are.  time_limit: seconds for each example.
    """
    search = _Search(model, x, y, ball, gap, time_limit, start)
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
        self, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, gap: float, time_limit: float, start: Perturbation | None
    ) -> None:  # fmt: skip
        _highspy()
        for name, value in (("gap", gap), ("time_limit", time_limit)):
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"{name} is {value}; give a finite number above 0")
        model = classifier(model, x, ball)
        self.model, self.x, self.ball, self.gap = model, x.detach(), ball, gap
        with torch.no_grad():
            here = model if x.device.type == "cpu" else copy.deepcopy(model).cpu()
            self.where = region(precise(here, torch.float64), self.x.double().cpu(), y.cpu(), ball)
            refuse_relaxations(self.where)
            self.stored = _stored(self.where, model, self.x, ball)
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
        """A search for the margin over class j.  sign_only: no further than its sign."""
        if self.lower[b, j] >= self.upper[b, j] - self.gap:
            return
        y = int(self.y[b])
        with torch.no_grad():
            program = self._program_of(b)
            slack = self.gap + TOLERANCE * (1 + program.width)
            found = _minimise(
                program, program.margin(y, j), time_limit=time_limit, gap=self.gap, enough=(-slack, slack) if sign_only else None
            )  # fmt: skip
            self.status[b][j] = found.status
            self.lower[b, j] = max(self.lower[b, j].item(), found.bound - slack)
            if found.unknowns is not None:
                self._keep(b, _realised(program, self.stored.part(slice(b, b + 1)), found.unknowns, y, j))

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

    def _margins(self, b: int, point: _Point) -> Tensor:
        logits = point.outputs[-1][0]
        return logits[self.y[b]] - logits

    def _keep(self, b: int, point: _Point) -> None:
        """A point that was found for one class may be the lowest known for another."""
        for j, margin in enumerate(self._margins(b, point)):
            if margin < self.upper[b, j]:
                self.upper[b, j], self.points[b][j] = margin, point

    def _start(self, b: int, start: Perturbation | None) -> _Point:
        at = slice(b, b + 1)
        if start is None:
            return _replay(self.where.part(at), self.stored.part(at), self.x[at].cpu().double(), lambda i, z: {})
        own = start.check(self.model, self.x, self.ball).scope == "sample"
        weights = {name: (w[b] if own else w).cpu().double() for name, w in start.weights.items()}

        def moved(i: int, z: Tensor) -> dict[str, Tensor]:
            node = cast(Product, self.where.graph.nodes[i])
            return {p: weights[p] for p in (node.weight, node.bias) if isinstance(p, str) and p in weights}

        return _replay(self.where.part(at), self.stored.part(at), start.x[at].cpu().double(), moved)

    def _perturbation(self, points: Sequence[_Point]) -> Perturbation:
        params = dict(self.model.named_parameters())
        weights = {
            name: torch.stack([p.weights.get(name, params[name].detach().cpu()) for p in points]).to(params[name].device)
            for name in self.stored.boxes
            if points
        }
        x = torch.cat([self.x[:0], *(p.x.to(self.x.device) for p in points)])
        return Perturbation(x, weights, "sample").check(self.model, self.x, self.ball)


# --- HiGHS --------------------------------------------------------------------------------------------------------------------


def _highspy() -> Any:
    try:
        return importlib.import_module("highspy")
    except ModuleNotFoundError:
        raise InvalidInput(
            "an exact bound needs the solver HiGHS, which is not installed; pip install nonsingular[exact]"
        ) from None


@dataclass(frozen=True, eq=False)
class _Found:
    """What HiGHS gives back: its bound of the objective, the unknowns of its best point, and how it ended."""

    bound: float
    unknowns: Tensor | None
    status: Status


def _minimise(program: Program, cost: Tensor, *, time_limit: float, gap: float, enough: tuple[float, float] | None) -> _Found:
    """Minimises cost[0] + cost[1:] unknowns.  enough: stop at a point below the first or a bound above the second.

    HiGHS is given no point to start from, and no presolve: with both, 1.15.1 may call that point optimal where it is not, without
    searching a node.  Presolve saves no time here.
    """
    if not program.rows:  # every unknown at its better end
        lo, hi = (torch.cat(ends) for ends in zip(*((c.lo, c.hi) for c in program.columns), strict=True))
        unknowns = torch.where(cost[1:] > 0, lo, hi)
        return _Found((cost[0] + cost[1:] @ unknowns).item(), unknowns, "optimal")
    highspy = _highspy()
    h = highspy.Highs()
    options = {
        "output_flag": False, "threads": 1, "time_limit": time_limit, "mip_abs_gap": gap, "mip_rel_gap": 0.0,
        "presolve": "off", "primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE,
        "mip_feasibility_tolerance": TOLERANCE, "small_matrix_value": 1e-12,
    }  # fmt: skip
    for name, value in options.items():
        h.setOptionValue(name, value)
    h.passModel(_lp(highspy, program, cost))
    if enough is not None:
        below, above = enough

        def look(event: Any) -> None:
            if event.data_out.mip_primal_bound < below or event.data_out.mip_dual_bound > above:
                event.interrupt()

        h.cbMipInterrupt += look
    h.run()
    ended, info = h.getModelStatus(), h.getInfo()
    names: Mapping[Any, Status] = {
        highspy.HighsModelStatus.kOptimal: "optimal",
        highspy.HighsModelStatus.kInterrupt: "decided",
        highspy.HighsModelStatus.kTimeLimit: "time limit",
    }
    status: Status = names.get(ended, "failed")
    assert ended != highspy.HighsModelStatus.kInfeasible, "the program of a ball has no point: a fault of nonsingular"
    if program.binaries:
        bound = -math.inf if status == "failed" else info.mip_dual_bound
    else:  # a linear program has no bound before its end
        bound = info.objective_function_value if status == "optimal" else -math.inf
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    unknowns = torch.tensor(list(h.getSolution().col_value), dtype=cost.dtype) if feasible else None
    return _Found(bound, unknowns, status)


def _lp(highspy: Any, program: Program, cost: Tensor) -> Any:
    def joined(parts: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Any:
        return torch.cat([torch.zeros(0, dtype=dtype), *(p.to(dtype) for p in parts)]).numpy()

    lp = highspy.HighsLp()
    columns, rows = program.columns, program.rows
    lp.num_col_, lp.num_row_ = program.count, sum(len(r.lo) for r in rows)
    lp.col_cost_, lp.offset_ = cost[1:].numpy(), cost[0].item()
    lp.col_lower_, lp.col_upper_ = joined([c.lo for c in columns]), joined([c.hi for c in columns])
    lp.row_lower_, lp.row_upper_ = joined([r.lo for r in rows]), joined([r.hi for r in rows])
    matrix = lp.a_matrix_
    matrix.format_, matrix.num_col_, matrix.num_row_ = highspy.MatrixFormat.kRowwise, lp.num_col_, lp.num_row_
    matrix.start_ = joined([torch.cat([torch.zeros(1, dtype=torch.long), *(r.counts for r in rows)]).cumsum(0)], torch.int32)
    matrix.index_, matrix.value_ = joined([r.index for r in rows], torch.int32), joined([r.value for r in rows])
    whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    lp.integrality_ = [whole if c.whole else real for c in columns for _ in c.lo]
    return lp


# --- from unknowns to a point of the ball ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Point:
    """One input and the weights that moved, as stored, and every node's output there, in float64."""

    x: Tensor
    weights: dict[str, Tensor]
    outputs: list[Tensor]


def _stored(where: Region, model: nn.Module, x: Tensor, ball: JointBall) -> Region:
    """The ball as `Perturbation.check` sees it: boxes rounded in the dtypes of the data and of the model."""
    boxes = ball.weight_boxes(dict(model.named_parameters()))
    return Region(where.graph, _cpu(ball.input_box(x)), {name: _cpu(box) for name, box in boxes.items()})


def _cpu(box: Interval) -> Interval:
    return Interval(box.lo.cpu(), box.hi.cpu())


def _rounded(t: Tensor, box: Interval, stored: Interval) -> Tensor:
    """`t` in the dtype of `stored`: inside the box where that dtype has a number there, and inside `stored` in any case."""
    near = t.to(stored.lo.dtype, copy=True)
    inf = torch.full_like(near, torch.inf)
    near = torch.where(near.double() > box.hi, near.nextafter(-inf), near)
    near = torch.where(near.double() < box.lo, near.nextafter(inf), near)
    return stored.project_(near)


def _replay(where: Region, stored: Region, x: Tensor, moved: Callable[[int, Tensor], Mapping[str, Tensor]]) -> _Point:
    """Runs the network at x, with the weights moved(node number, its input), everything rounded into its box first."""
    x = _rounded(x, where.x, stored.x)
    outputs, weights = [x.double()], dict[str, Tensor]()
    for i, node in enumerate(where.graph.nodes[1:], 1):
        z = [outputs[k] for k in node.inputs]
        if not isinstance(node, Product):
            outputs.append(cast(Any, node).apply(*z))
            continue
        for name, w in moved(i, z[0]).items():
            weights[name] = _rounded(w, where.boxes[name], stored.boxes[name])
        y = z[0] if node.weight is None else node.apply(z[0], _value(where, node.weight, weights))
        outputs.append(y if node.bias is None else y + node.spread(_value(where, node.bias, weights)))
    return _Point(x, weights, outputs)


def _value(where: Region, parameter: Parameter, weights: Mapping[str, Tensor]) -> Tensor:
    moved = weights.get(parameter) if isinstance(parameter, str) else None
    return where.graph.value(parameter) if moved is None else moved.double()


def _realised(program: Program, stored: Region, unknowns: Tensor, y: int, j: int) -> _Point:
    """The input and the weights that these unknowns stand for: rows shifted to their outputs, in the last layer y down, j up."""
    where, last = program.where, len(program.nodes) - 1

    def moved(i: int, z: Tensor) -> dict[str, Tensor]:
        node = cast(Product, program.nodes[i])
        if not (where.moves(node.weight) or where.moves(node.bias)):
            return {}
        if i < last:
            return _shifted(where, node, z, program.output(i, unknowns))
        far = torch.zeros(1, *node.shape, dtype=z.dtype)
        far[0, y], far[0, j] = -torch.inf, torch.inf
        return _shifted(where, node, z, far, torch.isfinite(far))

    return _replay(where, stored, program.output(0, unknowns), moved)


def _shifted(where: Region, node: Product, z: Tensor, target: Tensor, free: Tensor | None = None) -> dict[str, Tensor]:
    """The weight and the bias of a product, as far as they move, that take its output at z as near to `target` as they can.

    s in [-1, 1] is how far each row goes, in its reach; 0 where `free`.  Each element of the weight meets one z and one row:
    derivatives tell which.
    """
    point = torch.zeros_like(target)
    middle, reach = z if node.weight is None else point, point
    w = b = None
    if node.weight is not None:
        w = where.box(node.weight)
        middle, reach = node.apply(z, _centre(w)), node.apply(z.abs(), _radius(w))
    if node.bias is not None:
        b = where.box(node.bias)
        middle, reach = middle + node.spread(_centre(b)), reach + node.spread(_radius(b))
    s = torch.where(reach > 0, (target - middle) / torch.where(reach > 0, reach, 1.0), 0.0).clamp(-1, 1)
    if free is not None:
        s = torch.where(free, 0.0, s)
    found: dict[str, Tensor] = {}
    if w is not None and isinstance(node.weight, str) and where.moves(node.weight):
        sign = vjp(partial(node.apply, z), w.lo)[1](torch.ones_like(s))[0].sign()
        row = vjp(partial(node.apply, torch.ones_like(z)), w.lo)[1](s)[0]
        found[node.weight] = _centre(w) + row * sign * _radius(w)
    if b is not None and isinstance(node.bias, str) and where.moves(node.bias):

        def bias(t: Tensor) -> Tensor:
            return node.spread(t).expand(s.shape)

        row = vjp(bias, b.lo)[1](s)[0]
        found[node.bias] = _centre(b) + row * _radius(b)
    return found


def _centre(box: Interval) -> Tensor:
    return (box.lo + box.hi) / 2


def _radius(box: Interval) -> Tensor:
    return (box.hi - box.lo) / 2
