"""linear.py - linear bounds over inputs and weights, pulled back through the network.

CROWN (arXiv:1811.00866) and CROWN-IBP (arXiv:1906.06316) with the weights in boxes: a linear function A y of a node is bounded
below by a linear function of the nodes before it, and so on down to the input box.  Rules: products.py and activations.py.

Coefficients have shape (S, B, *shape): S linear functions, B examples (1 while they do not depend on the example).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial

import torch
from torch import Tensor, nn

from nonsingular.bounds.activations import lines
from nonsingular.bounds.interval import Boxed, Region, interval_bounds, propagate, region
from nonsingular.bounds.products import dot, expanded, pull, pull_all, through_product, through_sum
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Map, Maximum, Node, Product, Sum
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

APART = 2**20
"""Numbers computed in vain for each example from which on the examples of a batch are bounded one at a time."""
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
    return lowest(where, boxes, last, A, slopes(last, 1, torch.arange(K, device=A.device)) if slopes else default_slopes).T


def hidden_bounds(where: Region, slopes: Slopes | None = None) -> list[Interval]:
    """The box of every node's output: intervals, met with linear bounds where a nonlinearity follows and more is to gain."""
    nodes = where.graph.nodes
    nonlinear = {i for node in nodes if isinstance(node, Activation | Maximum) for i in node.inputs}
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
    """What an interval is: the exact set of values, the exact range of each element, or perhaps more than that."""

    SET = auto()
    RANGES = auto()
    NO = auto()


def _tightness(node: Node, before: Tight, where: Region, boxes: Sequence[Interval]) -> Tight:
    """Of the interval of the node's output, from that of its first input's."""
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
    lo, hi = box.lo.flatten(1), box.hi.flatten(1)
    open_ = (lo < 0) & (hi > 0) if hinges else lo < hi
    chosen = open_.any(0).nonzero().flatten()
    if not len(chosen):
        return box
    in_vain = len(chosen) - int(open_.sum()) // len(lo)  # functions for each example whose element is not open there
    if not slopes and len(lo) > 1 and in_vain * alive(where.part(slice(1)), number) > APART:
        ones = [slice(b, b + 1) for b in range(len(lo))]
        found = [_refined(where.part(b), [Interval(z.lo[b], z.hi[b]) for z in boxes], number, hinges, None) for b in ones]
        return Interval(torch.cat([z.lo for z in found]), torch.cat([z.hi for z in found]))
    size = max(1, room(lo) // alive(where, number))
    low: list[Tensor] = []
    high: list[Tensor] = []
    for part in chosen.split(size):
        A = lo.new_zeros(len(part), lo.shape[1]).scatter_(1, part[:, None], 1.0).view(len(part), 1, *box.lo.shape[1:])
        low.append(lowest(where, boxes, number, A, slopes(number, 1, part) if slopes else default_slopes))
        high.append(-lowest(where, boxes, number, -A, slopes(number, -1, part) if slopes else default_slopes))
    met = open_[:, chosen]  # not where it is open for another example alone: a bound must not depend on who shares its batch
    new_lo = lo.index_copy(1, chosen, torch.where(met, _larger(lo[:, chosen], torch.cat(low).T), lo[:, chosen]))
    new_hi = hi.index_copy(1, chosen, torch.where(met, -_larger(-hi[:, chosen], -torch.cat(high).T), hi[:, chosen]))
    # Both are sound, so the ends can only cross by rounding: then take them the other way round.
    return Interval(torch.minimum(new_lo, new_hi).view_as(box.lo), torch.maximum(new_lo, new_hi).view_as(box.hi))


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


def lowest(where: Region, boxes: Sequence[Interval], number: int, A: Tensor, choose: Choose = default_slopes) -> Tensor:
    """(S, B) lower bounds of the linear functions A (S, B or 1, *shape) of the output of node `number`."""
    return lowest_over(where.x, *pull_back(Boxed(where, boxes), number, A, choose))


def lowest_over(x: Interval, A: Tensor, offset: Tensor) -> Tensor:
    """(S, B) minimum of A x + offset over a box of inputs: a linear function is smallest at a corner."""
    return offset + dot(A.clamp(min=0), x.lo) + dot(A.clamp(max=0), x.hi)


def pull_back(
    inside: Boxed, number: int, A: Tensor, choose: Choose = default_slopes,
    penalties: Mapping[int, Tensor] | None = None, heard: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(coefficients (S, B or 1, *input), offset (S, B)) of a linear function of the input below A times node `number`.

    penalties: node -> coefficients m (S or 1, B, *shape) with m z <= 0 wherever the bound has to hold: adding m z keeps it below.
    heard: filled with the coefficients that reach each node.
    """
    where, boxes = inside.where, inside.boxes
    nodes = where.graph.nodes
    found: dict[int, Tensor] = {number: A}
    total = A.new_zeros(len(A), len(where.x.lo))
    for i in range(number, 0, -1):
        if i not in found:
            continue
        node, A = nodes[i], found.pop(i)
        if penalties and i in penalties:
            A = A + penalties[i]
        if heard is not None:
            heard[i] = A
        total = total - where.lost(i, boxes, A)
        z = [boxes[k] for k in node.inputs]
        match node:
            case Product():
                parts, offset = through_product(node, where, z[0], A)
            case Activation():
                # positive coefficients take the lower line, negative ones the upper
                ends = lines(node, z[0], partial(choose, i))
                parts, offset = (A * torch.where(A > 0, ends.lower, ends.upper),), dot(A.clamp(max=0), ends.above)
                if node.form != "hinge":  # whose lower line has no offset
                    offset = offset + dot(A.clamp(min=0), ends.below)
            case Maximum():  # y >= z_k for the k with the largest l_k, and y <= max u
                up, down = A.clamp(min=0), A.clamp(max=0)
                route = z[0].lo.expand(len(A), *z[0].lo.shape)
                parts = (pull(node.apply, route, up.expand(len(A), len(z[0].lo), *node.shape)),)
                offset = dot(down, boxes[i].hi)
            case Sum():
                parts = through_sum(node, [nodes[k].shape for k in node.inputs], A)
                moved = isinstance(node.offset, Tensor) or node.offset != 0.0
                offset = dot(A, expanded(node.offset, node.shape, A)) if moved else 0.0
            case Map():
                parts, offset = pull_all(node.apply, [nodes[k].shape for k in node.inputs], A), 0.0
            case _:
                raise AssertionError(f"no linear rule for {type(node).__name__}")
        total = total + offset
        for k, part in zip(node.inputs, parts, strict=True):
            found[k] = found[k] + part if k in found else part
    first = found.get(0, A.new_zeros(1, 1, *nodes[0].shape))
    return first, total - where.lost(0, boxes, first)
