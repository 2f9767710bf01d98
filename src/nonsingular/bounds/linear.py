"""linear.py - linear bounds over inputs and weights, pulled back through the network.

CROWN (arXiv:1811.00866) and CROWN-IBP (arXiv:1906.06316) with the weights in boxes: a linear function A y of a node is bounded
below by a linear function of the nodes before it, and so on down to the input box.  Rules: products.py and activations.py.

Coefficients have shape (S, B, *shape): S linear functions, B examples (1 while they do not depend on the example).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from functools import partial

import torch
from torch import Tensor, nn

from nonsingular.bounds.activations import lines
from nonsingular.bounds.bilinear import through_bilinear
from nonsingular.bounds.cuts import Cut, cut_of, part_of, tiles, unit, whole
from nonsingular.bounds.interval import Boxed, Region, interval_bounds, propagate, region
from nonsingular.bounds.products import dot, expanded, pull_all, through_product, through_sum
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Bilinear, Larger, Lead, Map, Node, Product, Sum
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

APART = 2**20
"""The examples of a batch are bounded one at a time if together this many numbers for each would be computed in vain."""
SIDE = 4
"""Rows and columns of hidden neurons of a convolution that are bounded together."""
Choose = Callable[[int, Tensor], Tensor]
"""(number of a hinge, its default slopes (1, B, *shape)) -> the lower slopes to use, (S or 1, B, *shape)."""
Slopes = Callable[[int, int, Tensor], Choose]
"""(number of the bounded node, +1 or -1 for its lower or upper ends, which of its elements (S,)) -> how to choose."""


def default_slopes(at: int, default: Tensor) -> Tensor:
    return default


def crown_ibp(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball: one pass back, hidden layers by intervals; column y is 0.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode, of the operations in network/operators.py.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic.
    Raises UnsupportedModel without a rule for an operation.  Cost: about K passes back.  Source: arXiv:1906.06316.
    """
    with torch.no_grad():
        parts = pieces(region(model, x, y, ball), y.long())
        return torch.cat([margin_bounds(part, interval_bounds(part), labels) for part, labels in parts])


def crown(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball, hidden layers bounded in the same way; column y is 0.

    As `crown_ibp`, usually much tighter.  Cost: two passes back for each hidden neuron whose sign is open, and K for the logits.
    Source: arXiv:1811.00866.
    """
    with torch.no_grad():
        parts = pieces(region(model, x, y, ball), y.long())
        return torch.cat([margin_bounds(part, hidden_bounds(part), labels) for part, labels in parts])


def pieces(where: Region, y: Tensor, size: int | None = None) -> list[tuple[Region, Tensor]]:
    """The examples, `size` at a time; by default as many as leave room for one linear function of each logit."""
    if size is None:
        size = room(where.x.lo) // alive(where.part(slice(1)), len(where.graph.nodes) - 1) // where.graph.nodes[-1].shape[0]
    size = max(1, size)
    cuts = [slice(i, i + size) for i in range(0, max(1, len(y)), size)]  # one empty piece for no examples
    return [(where.part(at), y[at]) for at in cuts]


def margin_bounds(where: Region, boxes: Sequence[Interval], y: Tensor, slopes: Slopes | None = None) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j, given the boxes of the hidden nodes."""
    K = where.graph.nodes[-1].shape[0]
    one = torch.eye(K, dtype=where.x.lo.dtype, device=where.x.lo.device)
    A = one[y] - one[:, None]  # (K, B, K): row j of example b is e_y - e_j
    last = len(where.graph.nodes) - 1
    choose = slopes(last, 1, torch.arange(K, device=A.device)) if slopes else default_slopes
    low = lowest(where, boxes, last, A, choose)
    if any(isinstance(node, Larger) for node in where.graph.nodes):  # two ways over each maximum, the better counts
        low = torch.fmax(low, _least(where, *_pulled(Boxed(where, boxes, flat=True), last, A, choose)))
    return low.T.scatter(1, y[:, None], 0.0)  # also where there is no bound


def refined(where: Region) -> set[int]:
    """Nodes whose boxes a relaxation starts from.  The box of an activation is its range over such a box, and as good."""
    nodes = where.graph.nodes
    found = {i for node in nodes if isinstance(node, Activation) for i in node.inputs}
    factors = {i for node in nodes if isinstance(node, Bilinear) for i in node.inputs}
    return found | {i for i in factors if not isinstance(nodes[i], Activation)}


def hidden_bounds(where: Region, slopes: Slopes | None = None) -> list[Interval]:
    """The box of every node's output: intervals, met with linear bounds where a nonlinearity follows and more is to gain."""
    nodes = where.graph.nodes
    nonlinear = refined(where)
    boxes, tight = [where.enters()], [Tight.SET]
    for i, node in enumerate(nodes[1:], 1):
        box = propagate(node, where, boxes)
        tight.append(_tightness(node, tight[node.inputs[0]], where, boxes))
        if i in nonlinear and tight[i] is Tight.NO:
            hinges = all(isinstance(n, Activation) and n.form == "hinge" for n in nodes if i in n.inputs)
            box = _refined(where, [*boxes, box], i, hinges, slopes)
        boxes.append(box)
    return boxes


class Tight(Enum):
    """How tight an interval is: the exact set of values, the exact range of each element, or possibly wider."""

    SET = auto()
    RANGES = auto()
    NO = auto()


def _tightness(node: Node, before: Tight, where: Region, boxes: Sequence[Interval]) -> Tight:
    """The tightness of the interval of the node's output, from that of its first input."""
    same_shape = node.shape == where.graph.nodes[node.inputs[0]].shape  # otherwise a sum may repeat elements
    alone = isinstance(node, Activation) or (isinstance(node, Sum) and len(node.inputs) == 1 and same_shape)
    if before is Tight.NO or alone or (isinstance(node, Map) and node.moves_only):
        return before
    if not isinstance(node, Product):
        return Tight.NO
    if node.weight is None:
        return Tight.RANGES
    z, w = boxes[node.inputs[0]], where.box(node.weight)
    # an interval counts each product's exact range, where it knows the sign of one factor; products of one output must be free
    one_sign = node.dense or w.lo is w.hi or bool((z.lo >= 0).all()) or (node.scales and bool(((w.lo >= 0) | (w.hi <= 0)).all()))
    return Tight.RANGES if one_sign and (node.scales or before is Tight.SET) else Tight.NO


def _refined(where: Region, boxes: list[Interval], number: int, hinges: bool, slopes: Slopes | None) -> Interval:
    """The box of node `number`, met with linear bounds of those of its elements that are open for some example."""
    box = boxes[number]
    lo, hi = (t.reshape(len(t), math.prod(t.shape[1:])) for t in (box.lo, box.hi))  # also of a scalar
    open_ = (lo < 0) & (hi > 0) if hinges else lo < hi
    chosen = open_.any(0).nonzero().flatten()
    if not len(chosen):
        return box
    in_vain = len(chosen) - int(open_.sum()) // len(lo)  # functions for each example whose element is not open there
    if not slopes and len(lo) > 1 and in_vain * alive(where.part(slice(1)), number) > APART:
        ones = [slice(b, b + 1) for b in range(len(lo))]
        found = [_refined(where.part(b), [Interval(z.lo[b], z.hi[b]) for z in boxes], number, hinges, None) for b in ones]
        return Interval(torch.cat([z.lo for z in found]), torch.cat([z.hi for z in found]))
    low: list[Tensor] = []
    high: list[Tensor] = []
    done: list[Tensor] = []
    affine = _affine(where, number)
    for part, A in _functions(where, number, chosen, cuts=not slopes and where.floats is None):
        done.append(part)
        if affine:  # one function of the input: its minimum and its maximum
            A, offset = _pulled(Boxed(where, boxes), number, A)
            low.append(_least(where, A, offset))
            high.append(-_least(where, _minus(A), -offset))
            continue
        low.append(lowest(where, boxes, number, A, slopes(number, 1, part) if slopes else default_slopes))
        high.append(-lowest(where, boxes, number, _minus(A), slopes(number, -1, part) if slopes else default_slopes))
    chosen = torch.cat(done)
    met = open_[:, chosen]  # not where it is open for another example alone: a bound must not depend on who shares its batch
    new_lo = lo.index_copy(1, chosen, torch.where(met, _larger(lo[:, chosen], torch.cat(low).T), lo[:, chosen]))
    new_hi = hi.index_copy(1, chosen, torch.where(met, -_larger(-hi[:, chosen], -torch.cat(high).T), hi[:, chosen]))
    # Both are sound, so the ends can only cross by rounding: then take them the other way round.
    return Interval(torch.minimum(new_lo, new_hi).view_as(box.lo), torch.maximum(new_lo, new_hi).view_as(box.hi))


def _functions(where: Region, number: int, chosen: Tensor, cuts: bool) -> Iterator[tuple[Tensor, Tensor | Cut]]:
    """(which elements of node `number`, the functions that are one of these each), as many at a time as fit into memory.

    cuts: those of a convolution as the window that they live in, neighbours together.
    """
    node, like = where.graph.nodes[number], where.x.lo
    size = max(1, room(like) // alive(where, number))
    if cuts and len(node.shape) > 2 and _local(where, number):
        for some, window in tiles(chosen, node.shape, SIDE):
            for part in some.split(size):
                yield part, unit(part, node.shape, window, like)
        return
    width = torch.Size(node.shape).numel()
    for part in chosen.split(size):
        yield part, like.new_zeros(len(part), width).scatter_(1, part[:, None], 1.0).view(len(part), 1, *node.shape)


def _local(where: Region, number: int) -> bool:
    """Whether the node or the one before it knows windows: else they would be written out at once."""
    nodes = where.graph.nodes
    node = nodes[number]
    return all(
        part_of(nodes[k], [nodes[i].shape for i in nodes[k].inputs], whole(nodes[k].shape)) is not None
        for k in (number, *node.inputs)
        if nodes[k].inputs and len(nodes[k].shape) > 2
    )


def _affine(where: Region, number: int) -> bool:
    """Whether a node is an affine function of the input, the same for all weights of the region."""
    nodes, wanted = where.graph.nodes, {number}
    for i in range(number, 0, -1):
        if i in wanted:
            node = nodes[i]
            if isinstance(node, Activation) or (
                isinstance(node, Product) and (where.moves(node.weight) or where.moves(node.bias))
            ):
                return False
            wanted.update(node.inputs)
    return True


def _minus(A: Tensor | Cut) -> Tensor | Cut:
    return Cut(-A.values, A.window) if isinstance(A, Cut) else -A


def _larger(fixed: Tensor, linear: Tensor) -> Tensor:
    """The larger bound, with the gradient of `linear` everywhere: its slopes must move to overtake what is better now."""
    found = torch.fmax(fixed, linear)
    if not linear.requires_grad:
        return found
    return torch.where(torch.isfinite(linear), found.detach() + (linear - linear.detach()), found)


def alive(where: Region, number: int) -> int:
    """Numbers that one linear function of node `number` needs at once, for all examples: coefficients, their parts, and what is
    computed from them; with a weight that each function moves in its own way, that weight, its worst move and their parts.
    """
    nodes = where.graph.nodes[: number + 1]
    sizes = [torch.Size(node.shape).numel() for node in nodes]
    most = 2 * sizes[0]
    for node, size in zip(nodes[1:], sizes[1:], strict=True):
        numbers = 3 * size + 3 * sum(sizes[i] for i in node.inputs)
        if isinstance(node, Product) and not node.dense and isinstance(node.weight, str) and where.moves(node.weight):
            numbers += 6 * where.graph.value(node.weight).numel()
        most = max(most, numbers)
    return max(1, most * len(where.x.lo))


def lowest(
    where: Region, boxes: Sequence[Interval], number: int, A: Tensor | Cut, choose: Choose = default_slopes
) -> Tensor:  # fmt: skip
    """(S, B) lower bounds of the linear functions A (S, B or 1, *shape) of the output of node `number`."""
    return _least(where, *_pulled(Boxed(where, boxes), number, A, choose))


def _least(where: Region, A: Tensor | Cut, offset: Tensor) -> Tensor:
    """(S, B) minimum of A x + offset over the inputs."""
    if isinstance(A, Cut):
        return lowest_over(Interval(cut_of(where.x.lo, A.window), cut_of(where.x.hi, A.window)), A.values, offset)
    return lowest_over(where.x, A, offset)


def _dot_with_infinities(A: Tensor, z: Tensor) -> Tensor:
    """As `dot`; no bound on what does not count is none needed: 0 inf = 0."""
    if bool(torch.isfinite(z).all()):
        return dot(A, z)
    terms = torch.where(A == 0, 0.0, A * z)
    return terms.reshape(*terms.shape[:2], math.prod(terms.shape[2:])).sum(2)


def lowest_over(x: Interval, A: Tensor, offset: Tensor) -> Tensor:
    """(S, B) minimum of A x + offset over a box of inputs: a linear function is smallest at a corner.  No number: no bound."""
    found = offset + dot(A.clamp(min=0), x.lo) + dot(A.clamp(max=0), x.hi)
    return torch.where(torch.isfinite(found), found, -torch.inf)


def pull_back(
    inside: Boxed, number: int, A: Tensor, choose: Choose = default_slopes,
    penalties: Mapping[int, Tensor] | None = None, heard: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(coefficients (S, B or 1, *input), offset (S, B)) of a linear function of the input below A times node `number`.

    penalties: node -> coefficients m (S or 1, B, *shape) with m z <= 0 wherever the bound has to hold: adding m z keeps it below.
    heard: filled with the coefficients that reach each node.
    """
    coefficients, offset = _pulled(inside, number, A, choose, penalties, heard)
    assert isinstance(coefficients, Tensor)  # as A
    return coefficients, offset


def _pulled(
    inside: Boxed, number: int, A: Tensor | Cut, choose: Choose = default_slopes,
    penalties: Mapping[int, Tensor] | None = None, heard: dict[int, Tensor] | None = None,
) -> tuple[Tensor | Cut, Tensor]:  # fmt: skip
    """`pull_back`, also of functions that live in a window (then without penalties, and with the default slopes)."""
    where, boxes = inside.where, inside.boxes
    nodes = where.graph.nodes
    found: dict[int, Tensor | Cut] = {number: A}
    values = A.values if isinstance(A, Cut) else A
    total = values.new_zeros(len(values), len(where.x.lo))
    for i in range(number, 0, -1):
        if i not in found:
            continue
        node, A = nodes[i], found.pop(i)
        z, shapes = [boxes[k] for k in node.inputs], [nodes[k].shape for k in node.inputs]
        part = part_of(node, shapes, A.window) if isinstance(A, Cut) else None
        if isinstance(A, Cut) and part is not None:
            values, offset = through(part.node, Boxed(where, part.boxes(z), inside.flat), A.values, partial(choose, i))
            parts: Sequence[Tensor | Cut] = part.parts(values, shapes)
        else:
            A = A.dense(node.shape) if isinstance(A, Cut) else A
            if penalties and i in penalties:
                A = A + penalties[i]
            if heard is not None:
                heard[i] = A
            total = total - where.lost(i, boxes, A)
            parts, offset = through(node, Boxed(where, z, inside.flat), A, partial(choose, i))
        total = total + offset
        for k, coefficients in zip(node.inputs, parts, strict=True):
            found[k] = _added(found[k], coefficients, nodes[k].shape) if k in found else coefficients
    first = found.get(0, total.new_zeros(1, 1, *nodes[0].shape))
    return first, total - (0.0 if isinstance(first, Cut) else where.lost(0, boxes, first))


def _added(a: Tensor | Cut, b: Tensor | Cut, shape: tuple[int, ...]) -> Tensor | Cut:
    if isinstance(a, Cut) and isinstance(b, Cut):
        return a.joined(b)
    return (a.dense(shape) if isinstance(a, Cut) else a) + (b.dense(shape) if isinstance(b, Cut) else b)


def through(
    node: Node, inside: Boxed, A: Tensor, choose: Callable[[Tensor], Tensor]
) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """(coefficients of each input, constant): a linear function below A times the node's output.  inside: boxes of its inputs."""
    where, z = inside.where, inside.boxes
    match node:
        case Product():
            return through_product(node, where, z[0], A)
        case Activation():
            # positive coefficients take the lower line, negative ones the upper
            ends = lines(node, z[0], choose)
            over = dot if node.curve is None or node.curve.defined is None else _dot_with_infinities
            part, offset = A * torch.where(A > 0, ends.lower, ends.upper), over(A.clamp(max=0), ends.above)
            if node.form != "hinge":  # whose lower line has no offset
                offset = offset + over(A.clamp(min=0), ends.below)
            return (part,), offset
        case Bilinear():
            return through_bilinear(node, z[0], z[1], A)
        case Lead():  # (b - a) is -1 on a, 1 on b, 0 on one that waits
            return (torch.cat([-A, A, A.new_zeros(*A.shape[:2], z[0].lo.shape[1] - 2 * A.shape[2], *A.shape[3:])], 2),), 0.0
        case Larger():
            return _through_larger(z, A, inside.flat)
        case Map(back=back) if back is not None:
            return (back(A),), 0.0
        case Sum():
            parts = through_sum(node, [tuple(b.lo.shape[1:]) for b in z], A)
            moved = isinstance(node.offset, Tensor) or node.offset != 0.0
            return parts, dot(A, expanded(node.offset, node.shape, A)) if moved else 0.0
        case Map():
            return pull_all(node.apply, [tuple(b.lo.shape[1:]) for b in z], A), 0.0
        case _:
            raise AssertionError(f"no linear rule for {type(node).__name__}")


def _through_larger(z: Sequence[Interval], A: Tensor, flat: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """relu(b - a) + a, or its largest value where that lies below the line above it in the middle of the box.

    The line above relu(d) runs from 0, or the least relu(d), to the largest: in the middle it is half way between these.
    flat: the largest value wherever it is open which of both is larger.
    """
    lead, rows = z
    n = lead.lo.shape[1]
    top = torch.maximum(rows.hi[:, :n], rows.hi[:, n : 2 * n])
    middle = (rows.lo[:, :n] + rows.hi[:, :n] + lead.lo + lead.hi) / 2
    A = A.expand(-1, len(top), *A.shape[2:])
    first, waits = A[:, :, :n], A[:, :, n:]
    still = ((middle >= top) | (flat & (lead.lo <= 0) & (lead.hi > 0))) & (first < 0)
    kept = torch.where(still, 0.0, first)
    parts = kept, torch.cat([kept, torch.zeros_like(kept), waits], 2)
    return parts, dot(torch.where(still, first, 0.0), top)
