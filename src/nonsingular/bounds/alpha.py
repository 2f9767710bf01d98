"""alpha.py - alpha-CROWN: the lower slopes of all hinges moved by gradient ascent.  arXiv:2011.13824.

Every linear function that is bounded has slopes of its own: each end of each hidden neuron, and each margin.  Nothing is traded
off between them: layer after layer, each end is raised as far as it goes from the boxes before it, and no gradient passes through
these.  What does not fit into memory at once is done in pieces, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from nonsingular.bounds.interval import Boxed, Region, propagate, region
from nonsingular.bounds.linear import hidden_bounds, lowest, margins_over, met, pieces, refined
from nonsingular.bounds.maxima import least_slope
from nonsingular.bounds.patches import Choose, Patches
from nonsingular.network.calling import recording
from nonsingular.network.memory import room
from nonsingular.network.nodes import Product
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

T = TypeVar("T")
AT_ONCE = 64
"""Examples whose slopes are moved together, at most."""


def alpha_crown(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 20, hidden: int | None = None, rate: float = 0.5
) -> Tensor:  # fmt: skip
    """(B, K) as `crown`, with the lower slopes of every bounded function, and its planes of products, moved by gradient ascent.

    Any slope is sound; each element is the best of all steps, so it is never below `crown`.
    steps: for the margins.  hidden: for each end of each hidden neuron; by default half of `steps`, but 3 at most where the
        gradients of all these would take more than twice the memory budget (network/memory.py) at once, and none where 64 times.
    Cost: about 3 `hidden` times crown, and 3 `steps` times crown-ibp.  Source: arXiv:2011.13824.
    """
    with recording():
        whole = region(model, x.clone(), y, ball)
        hidden = affordable(whole, steps) if hidden is None else hidden
        cuts = pieces(whole, y.long(), together(whole, AT_ONCE))
        return torch.cat([ascend(part, labels, steps, rate, hidden) for part, labels in cuts])


def affordable(where: Region, steps: int) -> int:
    """Steps for hidden ends: half of `steps`, 3 or none on larger networks."""
    numbers = sum(2 * torch.Size(where.graph.nodes[i].shape).numel() * _kept(where, i) for i in refined(where))
    rooms, half = numbers / room(where.x.lo), -(-steps // 2)
    return half if rooms <= 2 else min(half, 3) if rooms <= 64 else 0


def together(where: Region, batch: int) -> int:
    """Examples at a time in an ascent on all margins whose gradients fit into memory."""
    last = len(where.graph.nodes) - 1
    return min(batch, room(where.x.lo) // (2 * where.graph.nodes[-1].shape[0] * _kept(where, last)))


def _kept(where: Region, number: int) -> int:
    """Numbers kept for the gradient of one linear function of a node, for one example."""
    nodes = where.graph.nodes[: number + 1]
    total = sum(torch.Size(node.shape).numel() for node in nodes)
    for node in nodes:
        if isinstance(node, Product) and not node.dense and node.weight is not None and where.moves(node.weight):
            total += where.graph.value(node.weight).numel()
    return max(1, 4 * total)


class Alphas:
    """Lower slopes as variables, of each function and each example at each hinge; they begin at the default."""

    def __init__(self, where: Region, functions: int) -> None:
        self.where, self.functions = where, functions
        self.of: dict[int, Tensor] = {}

    def __call__(self, at: int, default: Tensor) -> Tensor:
        if at not in self.of:
            in_windows = default.shape[1] != len(self.where.x.lo)  # there each function is an example
            copies = 1 if in_windows else self.functions
            self.of[at] = default.detach().repeat(copies, *[1] * (default.dim() - 1)).requires_grad_()
        return self.of[at]

    def clamp_(self) -> None:
        with torch.no_grad():
            for at, alpha in self.of.items():
                alpha.clamp_(least_slope(self.where.graph.nodes, at), 1.0)


def raised_bounds(where: Region, steps: int, rate: float = 0.5) -> list[Interval]:
    """As `hidden_bounds`, each end with slopes of its own, moved by `steps` of ascent.  Never wider."""
    with torch.set_grad_enabled(steps > 0):
        return hidden_bounds(where, partial(_raised, steps, rate) if steps else None)


def raised_among(inside: Boxed, wanted: Mapping[int, Tensor], steps: int, rate: float = 0.5) -> list[Interval]:
    """The boxes with the ends of some hidden neurons raised: node -> which (B, *shape); and what then follows by intervals."""
    where, boxes = inside.where, list[Interval]()
    now = Boxed(where, boxes)
    for i, node in enumerate(where.graph.nodes):
        box = inside.boxes[i]
        if i:
            anew = propagate(node, where, boxes)
            lo, hi = torch.fmax(box.lo, anew.lo), torch.fmin(box.hi, anew.hi)
            box = Interval(torch.minimum(lo, hi), torch.maximum(lo, hi))  # they can only cross by rounding
        boxes.append(box)
        if i in wanted:
            boxes[i] = met(now, i, wanted[i], partial(_raised, steps, rate))
    return boxes


def _raised(steps: int, rate: float, inside: Boxed, number: int, A: Tensor | Patches) -> Tensor:
    """As `lowest`, with the best slopes of the ascent."""
    where = inside.where
    size = max(1, room(where.x.lo) // (2 * _kept(where, number) * len(where.x.lo)))
    count = A.values.shape[1] if isinstance(A, Patches) else len(A)
    found: list[Tensor] = []
    for start in range(0, count, size):
        some = A[start : start + size]

        def bounds(choose: Choose, some: Tensor | Patches = some) -> tuple[Tensor, Tensor]:
            low = lowest(inside, number, some, choose)
            return low.sum(), low.detach()

        found.append(_best(ascent(where, min(size, count - start), bounds, steps, rate)))
    return torch.cat(found)


def ascend(where: Region, y: Tensor, steps: int, rate: float, hidden: int) -> Tensor:
    """(B, K) lower bounds of the margins: hidden boxes raised, then the margins."""
    boxes, last = raised_bounds(where, hidden, rate), len(where.graph.nodes) - 1
    inside, classes = Boxed(where, boxes), torch.arange(where.graph.nodes[last].shape[0], device=y.device)
    found: list[Tensor] = []
    for some in classes.split(max(1, room(where.x.lo) // (2 * _kept(where, last) * max(1, len(y))))):

        def bounds(choose: Choose, some: Tensor = some) -> tuple[Tensor, Tensor]:
            low = margins_over(inside, y, some, choose)
            return low.sum(), low.detach()

        found.append(_best(ascent(where, len(some), bounds, steps, rate)))
    return torch.cat(found).T.scatter(1, y[:, None], 0.0)


def _best(found: Iterator[Tensor]) -> Tensor:
    best = next(found)
    for low in found:
        best = torch.fmax(best, low)
    return best


def ascent(
    where: Region, functions: int, evaluate: Callable[[Choose], tuple[Tensor, T]], steps: int, rate: float
) -> Iterator[T]:  # fmt: skip
    """What `evaluate` gives beside its goal, a sum that Adam raises: at the default slopes, and after each of up to `steps`.

    functions: how many linear functions it pulls back.  The rate falls by 5 % a step.
    """
    alphas = Alphas(where, functions)
    goal, found = evaluate(alphas)
    yield found
    if not alphas.of or not goal.requires_grad or not steps:
        return
    optimiser = torch.optim.Adam(alphas.of.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.95)
    for _ in range(steps):
        optimiser.zero_grad()
        goal.neg().backward()
        optimiser.step()
        schedule.step()
        alphas.clamp_()
        goal, found = evaluate(alphas)
        yield found
