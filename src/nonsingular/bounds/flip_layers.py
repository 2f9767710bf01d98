"""flip_layers.py - lower margins under one flipped bit, for each parameter by itself: what comes before it does not move.

In a row r of a matrix, a flip moves its output by some e in [-f_r, g_r], and the hinge behind by no more.  So with A the
coefficients behind the hinges, the margin is at least that of the network without a flip on its own boxes, minus the largest of
max(A_r, 0) f_r + max(-A_r, 0) g_r; only boxes of later nodes are wider (shifts.py), the next matrix moving by one column at most.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nonsingular.bounds.flips import Bounded, Slot, rows, settled, weighed
from nonsingular.bounds.interval import Boxed, Region, propagate
from nonsingular.bounds.linear import differences, lowest_over, pull_back
from nonsingular.bounds.shifts import away, near, shared_box, shift_of
from nonsingular.network.nodes import Activation, Product, Sum
from nonsingular.threat.interval import Interval


def layer_margins(where: Region, slots: Sequence[Slot], y: Tensor, still: Sequence[Interval]) -> Bounded:
    """Lower margins under at most one item.  still: boxes of every node without one.

    Cost: for each slot, one pass back from each margin, and the largest of a few numbers for each neuron.
    """
    last = len(still) - 1
    zeros = where.x.lo.new_zeros(where.graph.nodes[last].shape)
    A = differences(y, torch.arange(len(zeros), device=y.device)[:, None], zeros)
    low = settled(lowest_over(where.x, *pull_back(Boxed(where, still), last, A)), y)
    of: list[Tensor] = []
    for slot in slots:
        boxes, behind, sides = _moved(where, slot, still)
        heard: dict[int, Tensor] = {}
        base = lowest_over(where.x, *pull_back(Boxed(where, boxes), last, A, heard=heard))
        at = heard.get(slot.number if behind is None else behind)
        if at is None:
            groups = base.new_zeros(*base.shape, slot.groups)
        elif behind is None:
            groups = weighed(slot, still[slot.node.inputs[0]], at, 1)[1]
        else:
            groups = at.clamp(min=0) * sides[0] + (-at).clamp(min=0) * sides[1]
        of.append(settled(base[..., None] - groups, y))
        low = torch.minimum(low, of[-1].amin(2))
    return Bounded(low, still, of)


def layer_boxes(where: Region, slots: Sequence[Slot], still: Sequence[Interval]) -> list[Interval]:
    """Boxes under at most one item of every node that a parameter is multiplied with, from boxes of all nodes without one."""
    boxes = list(still)
    for slot in slots:
        moved, _, _ = _moved(where, slot, still)
        boxes = [Interval(torch.minimum(a.lo, b.lo), torch.maximum(a.hi, b.hi)) for a, b in zip(boxes, moved, strict=True)]
    return boxes


def _moved(where: Region, slot: Slot, still: Sequence[Interval]) -> tuple[list[Interval], int | None, tuple[Tensor, Tensor]]:
    """Boxes under one item of a slot, and how far it may move outputs down and up.

    The number is that of a hinge which alone reads the outputs of a matrix: these then keep their boxes.
    """
    nodes = where.graph.nodes
    behind, between = _hinge(where, slot)
    fall, rise = (t[0] for t in rows(slot, still[slot.node.inputs[0]], 1))
    boxes, shifts = list(still[: slot.number]), [Interval(torch.zeros_like(z.lo), torch.zeros_like(z.lo)) for z in still]
    for i, node in enumerate(nodes[slot.number :], slot.number):
        if i == slot.number:
            shifts[i] = Interval(-fall, rise)
            boxes.append(still[i] if behind is not None else Interval(still[i].lo - fall, still[i].hi + rise))
            continue
        if i in between:
            shifts[i] = shifts[slot.number]
            boxes.append(still[i])
            continue
        if not any(k >= slot.number for k in node.inputs):
            boxes.append(still[i])
            continue
        if (
            behind is not None
            and node.inputs == (behind,)
            and isinstance(node, Product)
            and node.dense
            and node.weight is not None
        ):
            shift = _of_one(where.box(node.weight).lo, shifts[behind])
        else:
            shift = shift_of(node, where, shifts)
        box = Interval(still[i].lo - fall, still[i].hi + rise) if i == behind else propagate(node, where, boxes)
        shifts[i] = shift or away(box, still[i])
        boxes.append(near(box, still[i], shifts[i]))
    return boxes, behind, (fall, rise)


def _hinge(where: Region, slot: Slot) -> tuple[int | None, set[int]]:
    """The hinge that alone reads the outputs of a matrix, perhaps after something is added to them; and the nodes between."""
    nodes, at, between = where.graph.nodes, slot.number, set[int]()
    while slot.node.dense:
        readers = [i for i, node in enumerate(nodes) if at in node.inputs]
        node = nodes[readers[0]] if len(readers) == 1 else None
        if isinstance(node, Activation) and node.form == "hinge":
            return readers[0], between
        if type(node) is not Sum or node.inputs.count(at) != 1 or node.factors[node.inputs.index(at)] != 1.0:
            break
        at = readers[0]
        between.add(at)
    return None, set()


def _of_one(w: Tensor, shift: Interval) -> Interval:
    """The box of w d over those d in a box around 0 of which one element alone is not 0."""
    if (first := shared_box(shift)) is not None:
        one = _of_one(w, first)
        return Interval(one.lo.expand(len(shift.lo), -1), one.hi.expand(len(shift.lo), -1))
    up, down = w.clamp(min=0), (-w).clamp(min=0)
    found: list[tuple[Tensor, Tensor]] = []
    for lo, hi in zip(shift.lo, shift.hi, strict=True):
        found.append((torch.minimum(up * lo, down * -hi).amin(1), torch.maximum(up * hi, down * -lo).amax(1)))
    return Interval(torch.stack([lo for lo, _ in found]), torch.stack([hi for _, hi in found]))
