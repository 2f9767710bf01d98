"""linear.py - linear bounds over inputs and weights, pulled back through the network.

CROWN (arXiv:1811.00866) and CROWN-IBP (arXiv:1906.06316) with the weights in boxes: a linear function A y of a node is bounded
below by a linear function of the nodes before it, and so on down to the input box.  Rules: products.py and activations.py.

Coefficients have shape (S, B, *shape): S linear functions, B examples (1 while they do not depend on the example).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from functools import partial

import torch
from torch import Tensor, nn

from nonsingular.bounds.activations import lines, of_input, through_lines
from nonsingular.bounds.bilinear import through_bilinear
from nonsingular.bounds.interval import Boxed, Region, interval_bounds, propagate, region
from nonsingular.bounds.maxima import (
    behind,
    contested,
    hinge_of,
    hinges_first,
    round_before,
    slopes_of_round,
    through_larger,
    through_round,
)
from nonsingular.bounds.patches import Choose, Patches, covering, numbers_in_windows, through_patches, unit
from nonsingular.bounds.products import charges, dot, hardly_moves, of_constant, pull_all, through_product, through_sum
from nonsingular.network.derivatives import fitted
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Bilinear, Larger, Lead, Map, Moment, Node, Product, Rounded, Sum, Windows
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

APART = 2**20
"""The examples of a batch are bounded one at a time if together this many numbers for each would be computed in vain."""
AT_ONCE = 2**22
"""Numbers in the windows of functions that are pulled back together: more would not stay in the processor's cache."""
Lower = Callable[[Boxed, int, "Tensor | Patches"], Tensor]
"""(boxes of all nodes, number of a node, N linear functions A of its output) -> (N, B) lower bounds of these; as `lowest`."""


def default_slopes(at: int, default: Tensor) -> Tensor:
    return default


def _one_plane(below: float, above: float, where: Region, at: int, default: Tensor) -> Tensor:
    """The default slopes, and these shares of the planes of a product."""
    if not isinstance(where.graph.nodes[at], Bilinear):
        return default
    return torch.stack([torch.full_like(default[:, :, 0], share) for share in (below, above)], 2)


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


def margin_bounds(where: Region, boxes: Sequence[Interval], y: Tensor) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j, given the boxes of the hidden nodes; 0 for y, also where there is no bound."""
    last = len(where.graph.nodes) - 1
    classes = torch.arange(where.graph.nodes[last].shape[0], device=y.device)
    parts, inside = classes.split(max(1, room(where.x.lo) // alive(where, last))), Boxed(where, boxes)
    return torch.cat([margins_over(inside, y, part) for part in parts]).T.scatter(1, y[:, None], 0.0)


def margins_over(inside: Boxed, y: Tensor, classes: Tensor, choose: Choose = default_slopes) -> Tensor:
    """(S, B) lower bounds of logit_y - logit_j for these classes j (S,).  inside: boxes of all nodes, which stay as they are."""
    where = inside.where
    last = len(where.graph.nodes) - 1
    A = differences(y, classes[:, None], where.x.lo.new_zeros(where.graph.nodes[last].shape))
    low = lowest(inside, last, A, choose)
    if (other := inside.keep(hinges_first)) is not None:  # the better of two ways
        low = torch.fmax(low, lowest(other, last, A, choose))
    if choose is default_slopes and any(isinstance(node, Bilinear) for node in where.graph.nodes):
        for below, above in itertools.product((0.0, 1.0), repeat=2):
            low = torch.fmax(low, lowest(inside, last, A, partial(_one_plane, below, above, where)))
    return low


def differences(y: Tensor, other: Tensor, zeros: Tensor) -> Tensor:
    """(..., K): logit_y - logit_j as functions of the logits, for class indices that broadcast.  zeros: (K,)."""
    y, other = (t[..., None] for t in torch.broadcast_tensors(y, other))
    A = zeros.expand(*y.shape[:-1], -1)
    return A.scatter_add(-1, y, zeros.new_ones(()).expand(y.shape)).scatter_add(-1, other, zeros.new_tensor(-1.0).expand(y.shape))


def refined(where: Region) -> set[int]:
    """Nodes whose boxes a relaxation starts from.  The box of an activation is its range over such a box, and as good.

    So is that of what is rounded to whole numbers, which is clipped before, and that of a moment.
    """
    nodes = where.graph.nodes
    found = {i for node in nodes if isinstance(node, Activation) and not isinstance(node, Rounded) for i in node.inputs}
    others = {i for node in nodes if isinstance(node, Bilinear | Windows) for i in node.inputs}
    return found | {i for i in others if not isinstance(nodes[i], Activation | Moment)}


def _to_refine(nodes: Sequence[Node], i: int, box: Interval) -> Tensor:
    """(B, *shape) where what follows node i depends on its box."""
    mixed = (box.lo < 0) & (box.hi > 0)
    found = torch.zeros_like(mixed)
    for k, node in enumerate(nodes):
        if i not in node.inputs:
            continue
        if (isinstance(node, Activation) and node.form == "hinge") or hinge_of(nodes, k) is not None:
            found |= mixed
        elif isinstance(node, Windows):
            found |= contested(node, box)
        else:
            return box.lo < box.hi
    return found


def hidden_bounds(where: Region, lower: Lower | None = None) -> list[Interval]:
    """The box of every node's output: intervals, met with linear bounds where a nonlinearity follows and more is to gain.

    lower: how linear functions are bounded below; by default with the default slopes.
    """
    nodes = where.graph.nodes
    nonlinear = refined(where)
    boxes, tight = [where.enters()], [Tight.SET]
    inside = Boxed(where, boxes)
    for i, node in enumerate(nodes[1:], 1):
        box = propagate(node, where, boxes)
        tight.append(_tightness(node, tight[node.inputs[0]], where, boxes))
        boxes.append(box)
        if i in nonlinear and tight[i] is Tight.NO:
            boxes[i] = met(inside, i, _to_refine(nodes, i, box), lower or lowest)
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


def met(inside: Boxed, number: int, wanted: Tensor, lower: Lower) -> Interval:
    """The box of node `number`, met with linear bounds where `wanted` (B, *shape)."""
    where, box = inside.where, inside.boxes[number]
    lo, hi, open_ = (t.reshape(len(t), math.prod(t.shape[1:])) for t in (box.lo, box.hi, wanted))  # also of a scalar
    chosen = open_.any(0).nonzero().flatten()
    if not len(chosen):
        return box
    windows = where.floats is None and numbers_in_windows(where, number)
    in_vain = len(chosen) - int(open_.sum()) // len(lo)  # functions for each example whose element is not open there
    if len(lo) > 1 and (windows or in_vain * alive(where.part(slice(1)), number) > APART):
        found = [met(inside.part(slice(b, b + 1)), number, wanted[b : b + 1], lower) for b in range(len(lo))]
        return Interval(torch.cat([z.lo for z in found]), torch.cat([z.hi for z in found]))
    if windows:
        low, high = _in_windows(inside, number, chosen, max(1, min(AT_ONCE, room(lo) // 8) // windows), lower)
    else:
        low, high = _everywhere(inside, number, chosen, lower)
    kept = open_[:, chosen]  # not where it is open for another example alone: a bound must not depend on who shares its batch
    new_lo = lo.index_copy(1, chosen, torch.where(kept, torch.fmax(lo[:, chosen], low.T), lo[:, chosen]))
    new_hi = hi.index_copy(1, chosen, torch.where(kept, torch.fmin(hi[:, chosen], high.T), hi[:, chosen]))
    # Both are sound, so the ends can only cross by rounding: then take them the other way round.
    return Interval(torch.minimum(new_lo, new_hi).view_as(box.lo), torch.maximum(new_lo, new_hi).view_as(box.hi))


def _everywhere(inside: Boxed, number: int, chosen: Tensor, lower: Lower) -> tuple[Tensor, Tensor]:
    """(S, B) linear bounds, lower and upper, of these elements of node `number`, as many at a time as fit into memory."""
    where, node, like = inside.where, inside.where.graph.nodes[number], inside.where.x.lo
    low: list[Tensor] = []
    high: list[Tensor] = []
    width, affine = math.prod(node.shape), _affine(where, number)
    for part in chosen.split(max(1, room(like) // alive(where, number))):
        A = like.new_zeros(len(part), width).scatter_(1, part[:, None], 1.0).view(len(part), 1, *node.shape)
        if affine:  # one function of the input: its minimum and its maximum
            A, offset = _pulled(inside, number, A)
            ends = _least(where, A, offset), -_least(where, -A, -offset)
        else:
            ends = lower(inside, number, A), -lower(inside, number, -A)
        low.append(ends[0])
        high.append(ends[1])
    return torch.cat(low), torch.cat(high)


def _in_windows(inside: Boxed, number: int, chosen: Tensor, size: int, lower: Lower) -> tuple[Tensor, Tensor]:
    """(S, 1) as `_everywhere`, of one example, `size` neurons of a convolution at a time, each with the window that it sees."""
    where, shape = inside.where, inside.where.graph.nodes[number].shape
    order = (chosen % math.prod(shape[-2:])).argsort(stable=True)  # neighbours share what they see
    found: list[Tensor] = []
    affine = _affine(where, number)
    for part in chosen[order].split(size):
        A = unit(part, shape, where.x.lo)
        if affine:
            A, offset = _pulled(inside, number, A)
            ends = _least(where, A, offset), -_least(where, -A, -offset)
        else:
            both = lower(inside, number, A.both())
            ends = both[: len(part)], -both[len(part) :]
        found.append(torch.stack(ends))
    low, high = torch.cat(found, 1).index_select(1, order.argsort())
    return low, high


def _affine(where: Region, number: int) -> bool:
    """Whether a node is an affine function of the input, the same for all weights of the region."""
    nodes, wanted = where.graph.nodes, {number}
    for i in range(number, 0, -1):
        if i in wanted:
            node = nodes[i]
            if isinstance(node, Activation | Bilinear) or (
                isinstance(node, Product) and (where.moves(node.weight) or where.moves(node.bias))
            ):
                return False
            wanted.update(node.inputs)
    return True


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


def lowest(inside: Boxed, number: int, A: Tensor | Patches, choose: Choose = default_slopes) -> Tensor:
    """(S, B) lower bounds of the linear functions A (S, B or 1, *shape) of the output of node `number`."""
    return _least(inside.where, *_pulled(inside, number, A, choose))


def _least(where: Region, A: Tensor | Patches, offset: Tensor) -> Tensor:
    """(S, B) minimum of A x + offset over the inputs; of N functions that live in windows (N, 1)."""
    if isinstance(A, Patches):
        return lowest_over(Interval(A.of(where.x.lo), A.of(where.x.hi)), A.values, offset.T).T
    return lowest_over(where.x, A, offset)


def lowest_over(x: Interval, A: Tensor, offset: Tensor) -> Tensor:
    """(S, B) minimum of A x + offset over a box of inputs: a linear function is smallest at a corner.  No number: no bound."""
    up = A.relu()
    found = offset + dot(up, x.lo) + dot(A - up, x.hi)
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
    inside: Boxed, number: int, A: Tensor | Patches, choose: Choose = default_slopes,
    penalties: Mapping[int, Tensor] | None = None, heard: dict[int, Tensor] | None = None,
) -> tuple[Tensor | Patches, Tensor]:  # fmt: skip
    """`pull_back`, also of functions that live in windows (then without penalties; slopes (1, N, *window))."""
    where, boxes = inside.where, inside.boxes
    nodes = where.graph.nodes
    own = None if choose is default_slopes else choose
    plain = own is None and not penalties and heard is None and where.floats is None
    found: dict[int, Tensor | Patches] = {number: A}
    count = A.values.shape[1] if isinstance(A, Patches) else len(A)
    total = where.x.lo.new_zeros(count, len(where.x.lo))
    for i in range(number, 0, -1):
        if i not in found:
            continue
        node, A = nodes[i], found.pop(i)
        if isinstance(A, Patches) and covering(A.size, node.shape):
            A = A.dense(node.shape)
        inputs: Sequence[int] = node.inputs
        if plain and (rows := round_before(nodes, i)) is not None:
            part, offset = _through_round(inside, i, A)
            parts, inputs = (part,), (rows,)
        elif isinstance(A, Patches) and (moved := through_patches(node, i, inside, A, own)) is not None:
            parts, offset = moved[0], moved[1].T if isinstance(moved[1], Tensor) else moved[1]
        else:
            A = A.dense(node.shape) if isinstance(A, Patches) else A
            if penalties and i in penalties:
                A = A + penalties[i]
            if heard is not None:
                heard[i] = A
            total = total - where.lost(i, boxes, A)
            parts, offset = through(inside, i, A, choose)
        total = total + offset
        for k, coefficients in zip(inputs, parts, strict=True):
            found[k] = _added(found[k], coefficients, nodes[k].shape) if k in found else coefficients
    first = found.get(0, total.new_zeros(1, 1, *nodes[0].shape))
    return first, total - (0.0 if isinstance(first, Patches) else where.lost(0, boxes, first))


def _through_round(inside: Boxed, i: int, A: Tensor | Patches) -> tuple[Tensor | Patches, Tensor]:
    """(coefficients of the rows, constant) for a whole round of maxima, which ends at node i."""
    if isinstance(A, Patches):
        values, offset = through_round(A.kept(inside, i, slopes_of_round), A.values)
        return replace(A, values=values), offset.T
    return through_round(inside.keep(slopes_of_round, i).unbind(1), A)


def _added(a: Tensor | Patches, b: Tensor | Patches, shape: tuple[int, ...]) -> Tensor | Patches:
    if isinstance(a, Patches) and isinstance(b, Patches) and (both := a.plus(b)) is not None:
        return both
    return (a.dense(shape) if isinstance(a, Patches) else a) + (b.dense(shape) if isinstance(b, Patches) else b)


def through(
    inside: Boxed, i: int, A: Tensor, choose: Choose = default_slopes
) -> tuple[tuple[Tensor, ...], Tensor | float]:  # fmt: skip
    """(coefficients of each input, constant): a linear function below A times node i's output.  inside: boxes of all nodes."""
    where, node = inside.where, inside.where.graph.nodes[i]
    z = [inside.boxes[k] for k in node.inputs]
    match node:
        case Product():
            known = inside.keep(charges, i) if hardly_moves(node, where) else None
            return through_product(node, where, z[0], A, known)
        case Activation():
            part, offset = through_lines(node, lines(node, z[0], partial(choose, i), of_input(where.graph.nodes, i)).ends, A)
            return (part,), offset
        case Bilinear():
            half = A.new_full((1, len(z[0].lo), 2, *node.shape), 0.5)
            share = choose(i, half)
            return through_bilinear(node, z[0], z[1], A, None if share is half else share)
        case Lead():
            return (behind(A, z[0].lo.shape[1]),), 0.0
        case Larger():
            return through_larger(z, A)
        case Map(back=back, kernel=kernel) if back is not None and kernel is not None:
            return (fitted(back(A), z[0].lo.shape[1:], kernel),), 0.0
        case Map(back=back) if back is not None:
            return (back(A),), 0.0
        case Sum():
            parts = through_sum(node, [tuple(b.lo.shape[1:]) for b in z], A)
            moved = isinstance(node.offset, Tensor) or node.offset != 0.0
            return parts, of_constant(A, node.offset) if moved else 0.0
        case Map():
            return pull_all(node.apply, [tuple(b.lo.shape[1:]) for b in z], A), 0.0
        case _:
            raise AssertionError(f"no linear rule for {type(node).__name__}")
