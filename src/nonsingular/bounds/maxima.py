"""maxima.py - linear bounds of a round of maxima, max(a, b) = a + relu(b - a).

Where it is open which is larger, with the lines p d <= relu(d) <= q d + r of activations.py on the box of d = b - a:

    (1 - p) a + p b  <=  max(a, b)  <=  (1 - q) a + q b + r,     and     max(a, b)  <=  the largest value of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nonsingular.bounds.activations import lines
from nonsingular.bounds.interval import Boxed
from nonsingular.bounds.products import dot
from nonsingular.network.nodes import Activation, Larger, Lead, Node
from nonsingular.threat.interval import Interval


def behind(A: Tensor, count: int) -> Tensor:
    """Coefficients A (S, B, n, ...) of b - a as those of the `count` rows: -1 on a, 1 on b, 0 on one that waits."""
    n = A.shape[2]
    return torch.cat([-A, A, A.new_zeros(*A.shape[:2], count - 2 * n, *A.shape[3:])], 2)


def through_larger(z: Sequence[Interval], A: Tensor, flat: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """relu(b - a) + a, or its largest value where that lies below the line above it in the middle of the box.

    flat: the largest value wherever it is open which of both is larger.
    """
    top, still = _level(z, flat)
    n = top.shape[1]
    A = A.expand(-1, len(top), *A.shape[2:])
    first, waits = A[:, :, :n], A[:, :, n:]
    level = first.clamp(max=0) * still
    kept = first - level
    return (kept, torch.cat([kept, torch.zeros_like(kept), waits], 2)), dot(level, top)


def _level(z: Sequence[Interval], flat: bool) -> tuple[Tensor, Tensor]:
    """(the largest value of both, 1 where it is taken for their upper bound and 0 elsewhere).  z: boxes of relu(b - a), rows.

    The line above relu(d) runs from 0, or the least relu(d), to the largest: in the middle it is half way between these.
    """
    lead, rows = z
    n = lead.lo.shape[1]
    top = torch.maximum(rows.hi[:, :n], rows.hi[:, n : 2 * n])
    middle = (rows.lo[:, :n] + rows.hi[:, :n] + lead.lo + lead.hi) / 2
    return top, ((middle >= top) | (flat & (lead.lo <= 0) & (lead.hi > 0))).to(top.dtype)


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
    top, still = _level([boxes[k] for k in inside.where.graph.nodes[i].inputs], inside.flat)
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
