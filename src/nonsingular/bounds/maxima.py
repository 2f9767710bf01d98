"""maxima.py - linear bounds of a round of maxima, max(a, b) = a + relu(b - a).

Where it is open which is larger, with the lines p d <= relu(d) <= q d + r of activations.py on the box of d = b - a:

    (1 - p) a + p b  <=  max(a, b)  <=  (1 - q) a + q b + r,     and     max(a, b)  <=  the largest value of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nonsingular.bounds.activations import lines
from nonsingular.bounds.interval import Boxed, Region, propagate
from nonsingular.bounds.products import dot, pull_all
from nonsingular.network.nodes import Activation, Larger, Lead, Node, Windows
from nonsingular.threat.interval import Interval


def behind(A: Tensor, count: int) -> Tensor:
    """Coefficients A (S, B, n, ...) of b - a as those of the `count` rows: -1 on a, 1 on b, 0 on one that waits."""
    n = A.shape[2]
    return torch.cat([-A, A, A.new_zeros(*A.shape[:2], count - 2 * n, *A.shape[3:])], 2)


def through_larger(z: Sequence[Interval], A: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """relu(b - a) + a, or its largest value where that lies below the line above it in the middle of the box."""
    top, still = _level(z)
    n = top.shape[1]
    A = A.expand(-1, len(top), *A.shape[2:])
    first, waits = A[:, :, :n], A[:, :, n:]
    level = first.clamp(max=0) * still
    kept = first - level
    return (kept, torch.cat([kept, torch.zeros_like(kept), waits], 2)), dot(level, top)


def _level(z: Sequence[Interval]) -> tuple[Tensor, Tensor]:
    """(the largest value of both, 1 where it is taken for their upper bound and 0 elsewhere).  z: boxes of relu(b - a), rows.

    The line above relu(d) runs from 0, or the least relu(d), to the largest: in the middle it is half way between these.
    """
    lead, rows = z
    n = lead.lo.shape[1]
    top = torch.maximum(rows.hi[:, :n], rows.hi[:, n : 2 * n])
    middle = (rows.lo[:, :n] + rows.hi[:, :n] + lead.lo + lead.hi) / 2
    return top, (middle >= top).to(top.dtype)


def round_before(nodes: Sequence[Node], i: int) -> int | None:
    """The number of the rows whose maxima node i is; None if it is no `Larger` behind its own activation and `Lead`."""
    if not isinstance(nodes[i], Larger) or nodes[i].inputs[0] != i - 1:
        return None
    hinge, lead = nodes[i - 1], nodes[i - 2]
    whole = isinstance(hinge, Activation) and hinge.inputs == (i - 2,) and isinstance(lead, Lead)
    return nodes[i].inputs[1] if whole and lead.inputs == nodes[i].inputs[1:] else None


def slopes_of_round(inside: Boxed, i: int) -> Tensor:
    """(B, 4, n, ...): p; q, or 0 where the largest value is taken; r, or that value; and 1 where it is.  inside: of all nodes."""
    node, boxes = inside.where.graph.nodes[i - 1], inside.boxes
    assert isinstance(node, Activation)
    top, still = _level([boxes[k] for k in inside.where.graph.nodes[i].inputs])
    ends = lines(node, boxes[i - 2], lambda default: default)
    taken = still > 0
    return torch.stack(
        [ends.lower[0], torch.where(taken, 0.0, ends.upper), torch.where(taken, top, ends.above), still], 1
    )  # fmt: skip


def through_round(slopes: Sequence[Tensor], A: Tensor) -> tuple[Tensor, Tensor]:
    """(coefficients of the rows, constant) of A (S, B, rows, ...) over the maxima.  slopes: of `slopes_of_round`, (B, n, ...)."""
    lower, upper, above, still = slopes
    n = lower.shape[1]
    A = A.expand(-1, len(lower), *A.shape[2:])
    first, waits = A[:, :, :n], A[:, :, n:]
    up = first.relu()
    down = first - up
    second = torch.addcmul(up * lower, down, upper)
    return torch.cat([torch.addcmul(first - second, down, still, value=-1), second, waits], 2), dot(down, above)


def contested(node: Windows, z: Interval) -> Tensor:
    """(B, *input) elements that may be the largest of a window in which another may be, too.  z: the box of its input."""
    lo, hi = node.apply(z.lo), node.apply(z.hi)
    may = hi > lo.amax(1, keepdim=True)
    found = may & (may.sum(1, keepdim=True) > 1)
    return pull_all(node.apply, [tuple(z.lo.shape[1:])], found.to(lo.dtype)[None])[0][0] > 0


# --- the hinge first ------------------------------------------------------------------------------------------------------
#
# The largest of several is taken before a hinge rho that follows or precedes it: rho(max z) = max rho(z), and a quarter of the
# hinges (network/rules/maxima.py).  The other order has other relaxations, and for some functions better ones.


def hinge_of(nodes: Sequence[Node], i: int) -> int | None:
    """The number of the hinge in which the maximum that begins at node i ends; None if there is none."""
    if not isinstance(nodes[i], Windows):
        return None
    end = i + 1
    while isinstance(nodes[end], Lead):
        end += 3
    hinge = nodes[end + 1] if end + 1 < len(nodes) else nodes[end]
    ends = isinstance(hinge, Activation) and hinge.form == "hinge" and hinge.inputs == (end,) and hinge.name == nodes[i].name
    return end + 1 if ends else None


def least_slope(nodes: Sequence[Node], at: int) -> float:
    """The least lower slope of the hinge at a node of these, or of the same nodes with hinges first."""
    node, last = nodes[at], hinge_of(nodes, at)
    hinge = node if last is None else nodes[last]
    return hinge.slope if isinstance(hinge, Activation) else 0.0  # a round of a maximum, moved by one


def hinges_first(inside: Boxed) -> Boxed | None:
    """The same network with the hinge of every maximum before it; None if there is none.  inside: boxes of all nodes.

    Nodes keep their numbers, but for those of such a maximum: its hinge is the first, the others move by one.
    """
    nodes, boxes = list(inside.where.graph.nodes), list(inside.boxes)
    spans = [(i, last) for i in range(len(nodes)) for last in [hinge_of(nodes, i)] if last is not None]
    for first, last in spans:
        nodes[first : last + 1] = _turned(nodes, first, last)
    where = replace(inside.where, graph=replace(inside.where.graph, nodes=tuple(nodes)))
    for first, last in spans:
        boxes[first : last + 1] = _boxes_turned(where, boxes, first, last)
    return Boxed(where, boxes) if spans else None


def _turned(nodes: Sequence[Node], first: int, last: int) -> list[Node]:
    *rest, hinge = nodes[first : last + 1]
    before = rest[0].inputs
    begin = replace(hinge, inputs=before, shape=nodes[before[0]].shape)
    moved = [replace(node, inputs=tuple(k + 1 if k >= first else k for k in node.inputs)) for node in rest[1:]]
    return [begin, replace(rest[0], inputs=(first,)), *moved]


def _boxes_turned(where: Region, boxes: Sequence[Interval], first: int, last: int) -> list[Interval]:
    """The boxes of a maximum behind its hinge.  boxes: those before it.  With rows z there, here they are rho(z), and

    rho(max z) = max rho(z);     as rho rises, and by at most as much as z,     -rho(a - b)  <=  rho(b) - rho(a)  <=  rho(b - a).
    """
    found = list(boxes[:first])
    hinge = where.graph.nodes[first]
    assert isinstance(hinge, Activation)
    exact = where.floats is None or hinge.slope == 0  # what is computed for another slope is rounded
    for i in range(first, last + 1):
        node = where.graph.nodes[i]
        box = propagate(node, where, found)
        if i > first and exact and not isinstance(node, Activation):
            lo, hi = boxes[i - 1].lo, boxes[i - 1].hi
            lo = -hinge.apply(-lo) if isinstance(node, Lead) else hinge.apply(lo)
            lo, hi = torch.fmax(box.lo, lo), torch.fmin(box.hi, hinge.apply(hi))
            box = Interval(torch.minimum(lo, hi), torch.maximum(lo, hi))  # they can only cross by rounding
        found.append(box)
    return found[first:]
