"""shifts.py - boxes of a network something was added to, from boxes without: how far each output can be from where it was.

With z' - z in D, a linear node gives W D, and a hinge max(z, s z), 0 <= s <= 1, an end of D or 0.  So a change of one output does
not cost the boxes of what follows all that linear bounds found for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonsingular.bounds.interval import Region, product, propagate
from nonsingular.network.nodes import Activation, Lead, Map, NegativePart, Node, Product, Sum, Within
from nonsingular.threat.interval import Interval


def shift_of(node: Node, where: Region, shifts: Sequence[Interval]) -> Interval | None:
    """A box of y' - y at a node, from those at the nodes before it; None without a rule.  Weights are the same in both."""
    d = [shifts[i] for i in node.inputs]
    match node:
        case Product():
            found = d[0] if node.weight is None else product(node.apply, where.box(node.weight), d[0], node.dense)
        case NegativePart():  # max(-z, 0)
            found = Interval(-d[1].hi.clamp(min=0), -d[1].lo.clamp(max=0))
        case Lead():
            n = node.shape[0]
            found = Interval(d[0].lo[:, n : 2 * n] - d[0].hi[:, :n], d[0].hi[:, n : 2 * n] - d[0].lo[:, :n])
        case Sum() if type(node) in (Sum, Within):
            pairs = [(c * t.lo, c * t.hi) for c, t in zip(node.factors, d, strict=True)]
            lo, hi = ([f(a, b) for a, b in pairs] for f in (torch.minimum, torch.maximum))
            found = Interval(sum(lo[1:], lo[0]), sum(hi[1:], hi[0]))
        case Map():
            found = Interval(node.apply(*(t.lo for t in d)), node.apply(*(t.hi for t in d)))
        case Activation(form="hinge"):
            found = Interval(d[0].lo.clamp(max=0), d[0].hi.clamp(min=0))
        case _:
            return None
    return Interval(found.lo.nan_to_num(-torch.inf, torch.inf, -torch.inf), found.hi.nan_to_num(torch.inf, torch.inf, -torch.inf))


def shared_box(z: Interval) -> Interval | None:
    """The box of the first example, where it is that of several; else None."""
    same = len(z.lo) > 1 and all(bool((t == t[:1]).all()) for t in (z.lo, z.hi))
    return Interval(z.lo[:1], z.hi[:1]) if same else None


def away(box: Interval, still: Interval) -> Interval:
    """The box of y' - y from boxes of y' and of y."""
    return Interval(box.lo - still.hi, box.hi - still.lo)


def near(box: Interval, still: Interval, shift: Interval) -> Interval:
    """The box of y', met with that of y and its shift."""
    lo, hi = torch.fmax(box.lo, still.lo + shift.lo), torch.fmin(box.hi, still.hi + shift.hi)
    return Interval(torch.minimum(lo, hi), torch.maximum(lo, hi))  # both are sound: ends cross by rounding alone


def shifted(where: Region, still: Sequence[Interval]) -> list[Interval]:
    """Boxes of all nodes, from boxes `still` of the same network on other inputs.

    Every input of `where` is one of still[0] plus something between where.x.lo - still[0].lo and where.x.hi - still[0].hi.
    """
    boxes = [where.enters()]
    shifts = [Interval(boxes[0].lo - still[0].lo, boxes[0].hi - still[0].hi)]
    for i, node in enumerate(where.graph.nodes[1:], 1):
        box = propagate(node, where, boxes)
        shift = shift_of(node, where, shifts)
        shifts.append(away(box, still[i]) if shift is None else shift)
        boxes.append(near(box, still[i], shifts[i]))
    return boxes
