"""flips.py - lower margins under every set of at most m changed weights out of a finite list: flipped bits of stored words.

An item is (weight t, change d): flipping one bit of the word of t.  Bits of one word count as items of their own, since their
changes add up.  At a product y = apply(z, w), linear in w, an item moves A y by d S_t(z), S_t the derivative with respect to w_t,
which is linear in z:

    A y(z, w + sum of at most m items)  >=  A y(z, w) - sum of the m largest of  max(0, max over z of -d S_t(z))

with z in boxes that hold under m - 1 items: one is spent here.  Of one weight only its m largest changes to either side can be
among these.  What is left of a bound is then that of the fixed weights.  Source: this library, docs/faults.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Boxed, Region, interval_bounds, propagate
from nonsingular.bounds.linear import alive, differences, hidden_bounds, lowest_over, pull_back, refined
from nonsingular.bounds.shifts import away, near, shared_box, shift_of
from nonsingular.errors import UnsupportedModel
from nonsingular.network.derivatives import by_differentiation
from nonsingular.network.graph import Graph
from nonsingular.network.memory import room
from nonsingular.network.nodes import Product
from nonsingular.threat.interval import Interval

Change = Mapping[str, Tensor]
"""Name of a parameter -> (bits, *shape) by how much each flip changes it."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter where the network uses it: at node `number`, as its weight or its bias.

    changes: (bits, *w).  up, down: (m, *w) the m largest changes upward and downward of each weight, in falling order, >= 0.
    shape_in: of the node's input.
    """

    number: int
    node: Product
    is_bias: bool
    changes: Tensor
    up: Tensor
    down: Tensor
    shape_in: tuple[int, ...]

    @property
    def name(self) -> str:
        """The parameter's."""
        return str(self.node.bias if self.is_bias else self.node.weight)

    @property
    def groups(self) -> int:
        """Rows of a matrix, output channels of a kernel, elements of a bias."""
        return self.changes.shape[1] if self.changes.dim() > 1 else 1

    @property
    def alone(self) -> bool:
        """Whether each output is moved by items of its own."""
        return math.prod(self.node.shape) == self.changes[0].numel() if self.is_bias else self.node.dense

    def reached(self) -> Tensor:
        """(groups, *shape) which outputs the items of a group may move."""
        one = torch.eye(self.groups, dtype=self.changes.dtype, device=self.changes.device)
        w_shape = self.changes.shape[1:]
        found: list[Tensor] = []
        for row in one:
            w = row.view(-1, *[1] * (len(w_shape) - 1)).expand(w_shape) if w_shape else row[0]
            found.append(self.spread(w)[0] != 0)
        return torch.stack(found)

    def spread(self, w: Tensor, z: Tensor | None = None) -> Tensor:
        """(B, *shape) what a change of the parameter by w adds to the output at inputs z (B, *input); by default of ones."""
        if self.is_bias:
            return self.node.spread(w).expand(1, *self.node.shape)
        return self.node.apply(w.new_ones(1, *self.shape_in) if z is None else z, w)


def slots_of(graph: Graph, changes: Change, most: int) -> list[Slot]:
    """Every place of the graph where one of these parameters is used.

    Raises UnsupportedModel for a parameter that is used more than once: one flip would move several products.
    """
    found: list[Slot] = []
    seen: dict[str, str] = {}
    for number, node in enumerate(graph.nodes):
        if not isinstance(node, Product):
            continue
        for name, is_bias in ((node.weight, False), (node.bias, True)):
            if not isinstance(name, str) or name not in changes or not changes[name].numel():
                continue
            if name in seen:
                raise UnsupportedModel(f"'{name}' is used at '{seen[name]}' and at '{node.name}'; a flip there would move both")
            seen[name] = node.name
            d = changes[name]
            m = min(most, len(d))
            up, down = (t.clamp(min=0).sort(0, descending=True).values[:m] for t in (d, -d))
            found.append(Slot(number, node, is_bias, d, up, down, graph.nodes[node.inputs[0]].shape))
    return found


# --- items at one product ---------------------------------------------------------------------------------------------------


def rows(slot: Slot, z: Interval, most: int) -> tuple[Tensor, Tensor]:
    """(falls, rises), each (m, B, *shape) in falling order: the largest moves of each output by items of this slot.

    The sum of the first k bounds what any k items do, for k = 1..m.
    """
    node, up, down = slot.node, slot.up, slot.down
    if (one := shared_box(z)) is not None:
        fall, rise = rows(slot, one, most)
        return tuple(t.expand(-1, len(z.lo), *t.shape[2:]) for t in (fall, rise))  # type: ignore[return-value]
    if slot.is_bias:
        zeros = z.lo.new_zeros(len(up), len(z.lo), *node.shape)
        return tuple(torch.stack([slot.spread(d)[0] for d in side])[:, None] + zeros for side in (down, up))  # type: ignore[return-value]
    low, high = (-z.lo).clamp(min=0), z.hi.clamp(min=0)  # d > 0 lowers by d times low, d < 0 by |d| times high
    if node.dense:
        return _dense_rows(up, down, low, high, most), _dense_rows(down, up, low, high, most)
    if node.kernel is not None:
        return _kernel_rows(slot, up, down, (low, high), most), _kernel_rows(slot, down, up, (low, high), most)
    # an output sees one weight (a scale), or the sum of what several do, which is never less
    falls = [node.apply(low, a) + node.apply(high, b) for a, b in zip(up, down, strict=True)]
    rises = [node.apply(high, a) + node.apply(low, b) for a, b in zip(up, down, strict=True)]
    return torch.stack(falls), torch.stack(rises)


def _largest(pieces: Sequence[Tensor], most: int) -> Tensor:
    """(most, ...) the largest along the last dimension of all pieces, in falling order."""
    if most == 1:
        return torch.stack([t.amax(-1) for t in pieces]).amax(0, keepdim=True)
    best = torch.cat([t.topk(min(most, t.shape[-1]), -1).values for t in pieces], -1)
    best = best.topk(min(most, best.shape[-1]), -1).values
    return F.pad(best, (0, most - best.shape[-1])).movedim(-1, 0)


def _dense_rows(up: Tensor, down: Tensor, low: Tensor, high: Tensor, most: int) -> Tensor:
    """(m, B, out)."""
    size = max(1, room(low) // max(1, 8 * low.numel()))
    found: list[Tensor] = []
    for a, b in zip(up.split(size, 1), down.split(size, 1), strict=True):
        signed = [(d, z) for d, z in ((b, high), (a, low)) if d is b or bool((z > 0).any())]
        found.append(_largest([side * z[:, None] for d, z in signed for side in d], most))
    return torch.cat(found, 2)


def _kernel_rows(slot: Slot, up: Tensor, down: Tensor, z: tuple[Tensor, Tensor], most: int) -> Tensor:
    """(m, B, channels, *positions)."""
    k = slot.node.kernel
    assert k is not None
    seen = [F.unfold(t, k.size, k.dilation, k.padding, k.stride).unflatten(1, (k.groups, -1)) for t in z]  # (B, G, patch, P)
    B, G, _, P = seen[0].shape
    found: list[Tensor] = []
    for o in range(up.shape[1]):
        at = o * G // up.shape[1]
        pieces = [
            d[o].flatten()[None, :, None] * patches[:, at] for side, patches in zip((up, down), seen, strict=True) for d in side
        ]
        found.append(_largest([piece.mT for piece in pieces], most))
    return torch.stack(found, 2).view(most, B, len(found), *slot.node.shape[1:]) if P else up.new_zeros(most, B, *slot.node.shape)


def weighed(slot: Slot, z: Interval, A: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(largest (m, S, B), of each group (S, B, groups)): by how much items of this slot lower A y, A (S, B or 1, *shape)."""
    S, B = len(A), len(z.lo)
    if slot.alone:
        falls, rises = rows(slot, z, most)
        items = A.clamp(min=0) * falls[:, None] + (-A).clamp(min=0) * rises[:, None]  # (m, S, B, *shape)
        if slot.is_bias:  # its elements in their order
            items = items.flatten(3).view(len(items), S, B, *slot.changes.shape[1:])
        each = items[0]
        pieces = [t.flatten(2) for t in items]
    else:
        lo, hi = _slopes(slot, z, A)
        pieces = [(a * (-lo).clamp(min=0)).flatten(2) for a in slot.up] + [(b * hi.clamp(min=0)).flatten(2) for b in slot.down]
        each = torch.maximum(pieces[0], pieces[len(slot.up)])
    groups = each.reshape(S, B, slot.groups, -1).amax(3)
    return _largest(pieces, most), groups


def _slopes(slot: Slot, z: Interval, A: Tensor) -> tuple[Tensor, Tensor]:
    """The box (S, B, *w) of the derivative of A y with respect to the parameter, over the box of z."""
    w_shape = slot.changes.shape[1:]
    if slot.is_bias:

        def spread(b: Tensor) -> Tensor:
            return slot.node.spread(b).expand(slot.node.shape)

        def pull(a: Tensor) -> Tensor:
            zero = a.new_zeros(w_shape)
            return vjp(spread, zero)[1](a)[0]

        found = vmap(pull)(A.flatten(0, 1)).view(*A.shape[:2], *w_shape).expand(len(A), len(z.lo), *w_shape)
        return found, found
    w = slot.changes[0]
    derivatives = slot.node.derivatives(tuple(w.shape)) or by_differentiation(slot.node.apply, slot.shape_in, w)
    A = A.expand(len(A), len(z.lo), *slot.node.shape)
    middle, radius = derivatives.w(A, (z.lo + z.hi) / 2), derivatives.w(A.abs(), (z.hi - z.lo) / 2)
    return middle - radius, middle + radius


# --- the network under at most m items ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bounded:
    """low: (B, K) lower margins under at most m items.  calm: boxes of every node under one item less (m = 0: under none).

    of: for each slot (B, K, groups) the same for those sets of which one item is of that group.
    """

    low: Tensor
    calm: Sequence[Interval]
    of: Sequence[Tensor]


def flip_margins(
    where: Region, slots: Sequence[Slot], y: Tensor, most: int, *, linear: bool = True, still: Sequence[Interval] | None = None
) -> Bounded:
    """Lower margins over the region and every set of at most `most` items.

    linear: boxes of hidden nodes by linear bounds, too; else by intervals.  still: boxes of every node without an item, if known.
    Cost: that of CROWN, with the m largest of a few numbers for each neuron, and for each weight of a kernel.
    """
    with torch.no_grad():
        levels = flip_boxes(where, slots, most, linear, still)
        boxes, calm = levels[-1], levels[max(0, most - 1)]
        zeros = where.x.lo.new_zeros(where.graph.nodes[-1].shape)
        A = differences(y, torch.arange(len(zeros), device=y.device)[:, None], zeros)
        base, tops, groups = _lowered(where, (boxes, calm), slots, (len(boxes) - 1, A), most)
        total = torch.cat(tops).topk(min(most, sum(map(len, tops))), 0).values if tops else base.new_zeros(0, *base.shape)
        rest = base - total[: most - 1].sum(0)

        return Bounded(settled(base - total.sum(0), y), calm, [settled(rest[..., None] - g, y) for g in groups])


def settled(t: Tensor, y: Tensor) -> Tensor:
    """(K, B, ...) -> (B, K, ...), column y 0; what is no number is no bound."""
    t = torch.where(torch.isfinite(t), t, -torch.inf).transpose(0, 1)
    return t.scatter(1, y.view(-1, *[1] * (t.dim() - 1)).expand(-1, 1, *t.shape[2:]), 0.0)


def _lowered(
    where: Region, levels: tuple[Sequence[Interval], Sequence[Interval]], slots: Sequence[Slot], of: tuple[int, Tensor], most: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(bounds (S, B) without items, and for each slot its largest items (m, S, B) and those of its groups (S, B, groups)).

    levels: boxes under `most` items, and under one less.  of: (a node, linear functions A (S, B or 1, *shape) of it).
    """
    boxes, calm = levels
    heard: dict[int, Tensor] = {}
    low = lowest_over(where.x, *pull_back(Boxed(where, boxes), *of, heard=heard))
    tops: list[Tensor] = []
    groups: list[Tensor] = []
    for slot in slots if most else ():
        A = heard.get(slot.number)
        if A is None:
            zero = low.new_zeros(most, *low.shape)
            tops.append(zero)
            groups.append(low.new_zeros(*low.shape, slot.groups))
            continue
        top, each = weighed(slot, calm[slot.node.inputs[0]], A, most)
        tops.append(top)
        groups.append(each)
    return low, tops, groups


def flip_boxes(
    where: Region, slots: Sequence[Slot], most: int, linear: bool, still: Sequence[Interval] | None = None
) -> list[list[Interval]]:
    """The boxes of every node's output under at most 0, 1, ..., `most` items.  still: the first of these, if known."""
    levels = [list(still) if still is not None else hidden_bounds(where) if linear else interval_bounds(where)]
    for m in range(1, most + 1):
        levels.append(_next(where, slots, m, levels, linear))
    return levels


def _next(where: Region, slots: Sequence[Slot], most: int, levels: Sequence[Sequence[Interval]], linear: bool) -> list[Interval]:
    """The boxes under at most m items.  levels: under 0, ..., m - 1 items."""
    still, calm = levels[0], levels[-1]
    nodes, wanted = where.graph.nodes, refined(where)
    by_number: dict[int, list[Slot]] = {}
    for slot in slots:
        by_number.setdefault(slot.number, []).append(slot)
    boxes, moved = [where.enters()], [False]
    shifts = [Interval(torch.zeros_like(boxes[0].lo), torch.zeros_like(boxes[0].lo))]  # from the network without items
    for i, node in enumerate(nodes[1:], 1):
        box, shift = propagate(node, where, boxes), shift_of(node, where, shifts)
        here = by_number.get(i, [])
        if here:
            sides = [rows(slot, calm[node.inputs[0]], most) for slot in here]
            fall, rise = (
                torch.cat(side).topk(min(most, sum(map(len, side))), 0).values.sum(0) for side in zip(*sides, strict=True)
            )
            box = Interval(box.lo - fall, box.hi + rise)
            shift = shift and Interval(shift.lo - fall, shift.hi + rise)
        shifts.append(shift or away(box, still[i]))
        boxes.append(near(box, still[i], shifts[i]))
        moved.append(bool(here) or any(moved[k] for k in node.inputs))
        if linear and i in wanted and any(moved[k] for k in node.inputs):
            boxes[i] = _met(where, (boxes, calm), slots, i, most)
    return boxes


def _met(
    where: Region, levels: tuple[list[Interval], Sequence[Interval]], slots: Sequence[Slot], number: int, most: int
) -> Interval:
    """The box of a node met with linear bounds of those elements that are open for some example.  levels: as in `_lowered`."""
    boxes, _ = levels
    box, node = boxes[number], where.graph.nodes[number]
    lo, hi = box.lo.flatten(1), box.hi.flatten(1)
    chosen = ((lo < 0) & (hi > 0)).any(0).nonzero().flatten()
    if not len(chosen):
        return box
    earlier = [slot for slot in slots if slot.number <= number]
    weights = sum(slot.changes[0].numel() for slot in earlier if not slot.alone)
    size = max(1, room(lo) // (alive(where, number) + 8 * most * len(lo) * (weights + 1)))
    new_lo, new_hi = lo.clone(), hi.clone()
    for part in chosen.split(size):
        A = lo.new_zeros(len(part), lo.shape[1]).scatter_(1, part[:, None], 1.0).view(len(part), 1, *node.shape)
        for sign, new in ((1, new_lo), (-1, new_hi)):
            low, tops, _ = _lowered(where, levels, earlier, (number, sign * A), most)
            low = low - torch.cat(tops).topk(min(most, sum(map(len, tops))), 0).values.sum(0)
            old = sign * new[:, part]
            new[:, part] = sign * torch.fmax(old, low.T)
    return Interval(torch.minimum(new_lo, new_hi).view_as(box.lo), torch.maximum(new_lo, new_hi).view_as(box.hi))


# --- the items of one group ---------------------------------------------------------------------------------------------------


def over_items(slot: Slot, group: int, z: Tensor, f: Callable[[Tensor], Tensor], most: int) -> Tensor:
    """(bits, *w of the group, *R) what f (N, *shape) -> (N, *R) gives of what each single item of a group adds to the output.

    z: one input (*input).  most: items at a time.  Items that add the same are asked about once.
    """
    changes = slot.changes[:, group] if slot.changes.dim() > 1 else slot.changes
    if not slot.is_bias and slot.node.dense:
        t, which = (changes * z).flatten().unique(return_inverse=True)
        found: list[Tensor] = []
        for part in t.split(most):
            made = z.new_zeros(len(part), *slot.node.shape)
            made[:, group] = part
            found.append(f(made))
        result = torch.cat(found)[which]
    elif not slot.is_bias and (k := slot.node.kernel) is not None:
        patches = F.unfold(z[None], k.size, k.dilation, k.padding, k.stride).view(k.groups, -1, math.prod(slot.node.shape[1:]))
        patch, d = patches[group * k.groups // slot.groups], changes.flatten()
        found = []
        for part in torch.arange(len(d), device=d.device).split(most):
            made = z.new_zeros(len(part), *slot.node.shape)
            made[:, group] = (d[part, None] * patch[part % len(patch)]).view(len(part), *slot.node.shape[1:])
            found.append(f(made))
        result = torch.cat(found)
    else:
        rest = changes[0].numel()
        found = []
        for n in range(changes.numel()):
            w, at = torch.zeros_like(slot.changes[0]), group * rest + n % rest
            w.view(-1)[at] = slot.changes[n // rest].flatten()[at]
            found.append(f(slot.spread(w, z[None])))
        result = torch.cat(found)
    return result.view(*changes.shape, *result.shape[1:])


def items_of(slot: Slot, group: int, z: Interval) -> tuple[Interval, Tensor] | None:
    """Boxes (N, *shape) of what each single item of a group adds to the output, over the box of one input; and which they are.

    None for products whose items are not written out.  Items that add nothing are left out.  Of a row of a matrix its one output
    alone: (N, 1).  Which: (N,) numbers in (bits, *w of the group), flat.
    """
    changes = slot.changes[:, group] if slot.changes.dim() > 1 else slot.changes
    if slot.is_bias:
        if changes.dim() > 1 or slot.groups != slot.node.shape[0] or not (slot.node.dense or slot.node.kernel):
            return None
        d = changes[changes != 0][:, None].expand(-1, math.prod(slot.node.shape[1:]))
        return Interval(d, d), changes.nonzero().flatten()
    if slot.node.dense:
        seen = z
    elif (k := slot.node.kernel) is not None:
        patches = [F.unfold(t, k.size, k.dilation, k.padding, k.stride).unflatten(1, (k.groups, -1)) for t in (z.lo, z.hi)]
        seen = Interval(*(t[0, group * k.groups // slot.groups] for t in patches))  # (patch, positions)
    else:
        return None
    bit, place = changes.flatten(1).nonzero().unbind(1)
    d = changes.flatten(1)[bit, place][:, None]
    ends = (seen.lo[0][place, None], seen.hi[0][place, None]) if slot.node.dense else (seen.lo[place], seen.hi[place])
    a, b = d * ends[0], d * ends[1]
    lo, hi = torch.minimum(a, b), torch.maximum(a, b)
    some = ((lo != 0) | (hi != 0)).any(1)
    return Interval(lo[some], hi[some]), (bit * changes[0].numel() + place)[some]
