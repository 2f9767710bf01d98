"""interval.py - interval bounds over inputs and weights.  Gowal et al., arXiv:1810.12715; weights: arXiv:2102.11935."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.bounds.bilinear import bilinear_range
from nonsingular.bounds.floats import Weights, lost, widened
from nonsingular.network.constants import check_deployable
from nonsingular.network.curves import Curve
from nonsingular.network.dense import Dense
from nonsingular.network.graph import Graph, check_graph, trace_graph
from nonsingular.network.heads import classifier
from nonsingular.network.margins import check_labels
from nonsingular.network.memory import room
from nonsingular.network.nodes import (
    Activation,
    Bilinear,
    Larger,
    Lead,
    Map,
    NegativePart,
    Node,
    Parameter,
    Product,
    Rounded,
    Sum,
    Within,
)
from nonsingular.network.precision import Floats
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Region:
    """A network and the region it may take: every input in `x`, every parameter in its box (those without one are fixed).

    x: ends of shape (B, *input).  boxes: by name, any ends lo <= hi, symmetric about the parameter or not.
    floats: what bounds allow for rounding, if anything (floats.py).  sizes, reached: what was found for that, of all
        parts of a region; for a box of a node's input.
    """

    graph: Graph
    x: Interval
    boxes: Mapping[str, Interval]
    floats: Floats | None = None
    sizes: dict[Node, Weights] = field(default_factory=dict)
    reached: dict[Node, tuple[Interval, Tensor]] = field(default_factory=dict)

    def box(self, parameter: Parameter) -> Interval:
        """The box of a node's parameter; a point if it does not move (then its ends are one tensor)."""
        if isinstance(parameter, str) and parameter in self.boxes:
            return self.boxes[parameter]
        value = self.graph.value(parameter)
        return Interval(value, value)

    def moves(self, parameter: Parameter | None) -> bool:
        return isinstance(parameter, str) and parameter in self.boxes

    def part(self, at: slice) -> Region:
        """The same for some of the examples."""
        return replace(self, x=Interval(self.x.lo[at], self.x.hi[at]))

    def enters(self) -> Interval:
        """The box of the first node: that of the inputs, as rounded on their way in."""
        return self.x if self.floats is None else widened(self.graph.nodes[0], self, [], self.x)

    def lost(self, i: int, boxes: Sequence[Interval], A: Tensor) -> Tensor | float:
        """(S, B) what rounding at node i may take off a linear function A of its output."""
        node = self.graph.nodes[i]
        return 0.0 if self.floats is None else lost(node, self, [boxes[k] for k in node.inputs], boxes[i], A)


@dataclass(frozen=True, eq=False)
class Boxed:
    """A region, and a box for every node's output there: of intervals, met with linear bounds or cut to some signs.

    kept: what was found from boxes that do not change any more.
    """

    where: Region
    boxes: Sequence[Interval]
    kept: dict[Any, Any] = field(default_factory=dict)

    def keep(self, found: Callable[..., T], *at: int) -> T:
        """found(self, *at), once.  at: the number of a node, or nothing."""
        if (found, at) not in self.kept:
            self.kept[found, at] = found(self, *at)
        return self.kept[found, at]

    def part(self, at: slice) -> Boxed:
        """The same for some of the examples."""
        return Boxed(self.where.part(at), [Interval(z.lo[at], z.hi[at]) for z in self.boxes])


def region(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Region:
    """The network and its ball.

    Raises UnsupportedModel without a rule for an operation and where graph and model differ in the ball, InvalidInput for x or y.
    """
    model = classifier(model, x, ball)
    graph = trace_graph(model, x.shape[1:])
    box, boxes = ball.input_box(x.detach(), outward=True), model.weight_boxes(ball)
    check_labels(y, len(x), graph.nodes[-1].shape[0])
    check_graph(graph, model, x, box, ball)
    check_deployable(model, graph, x.shape[1:])
    return Region(graph, box, boxes, model.floats)


def interval(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball, by interval arithmetic; column y is 0.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode, of the operations in network/operators.py.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic.
    A margin over a last Linear layer is bounded as one, not as the difference of two logits.
    Raises UnsupportedModel without a rule for an operation.  Cost: about four forward passes.  Source: arXiv:1810.12715.
    """
    with torch.no_grad():
        where = region(model, x, y, ball)
        return interval_margins(where, y.long(), interval_bounds(where))


def interval_bounds(where: Region) -> list[Interval]:
    """The box of every node's output."""
    boxes = [where.enters()]
    for node in where.graph.nodes[1:]:
        boxes.append(propagate(node, where, boxes))
    return boxes


def propagate(node: Node, where: Region, boxes: Sequence[Interval]) -> Interval:
    """The box of `node`'s output from the boxes of the nodes before it.

    An end that is no number, of inf - inf or 0 inf, may be anything; one that overflowed to the inside is the largest number.
    Where bounds allow for rounding, no end is replaced: what may overflow in the deployed network must stay visible.
    """
    z = [boxes[i] for i in node.inputs]
    box = image(node, where, z)
    if where.floats is not None:
        return widened(node, where, z, box)
    most = torch.finfo(box.lo.dtype).max
    lo = box.lo.nan_to_num(-torch.inf, posinf=most, neginf=-torch.inf)
    return Interval(lo, box.hi.nan_to_num(torch.inf, posinf=torch.inf, neginf=-most))


def image(node: Node, where: Region, z: Sequence[Interval]) -> Interval:
    """The box of a node's output from those of its inputs, in exact arithmetic.  One rule for each kind of node."""
    match node:
        case Product():
            y = z[0]
            if node.weight is not None:
                y = product(node.apply, where.box(node.weight), y, node.dense)
            if node.bias is not None:
                b = where.box(node.bias)
                y = Interval(y.lo + node.spread(b.lo), y.hi + node.spread(b.hi))
            return y
        case NegativePart():  # max(-z, 0) falls
            return Interval((-z[1].hi).clamp(min=0), (-z[1].lo).clamp(min=0))
        case Lead():
            n = node.shape[0]
            return Interval(z[0].lo[:, n : 2 * n] - z[0].hi[:, :n], z[0].hi[:, n : 2 * n] - z[0].lo[:, :n])
        case Larger():
            n = z[0].lo.shape[1]
            ends = (torch.cat([torch.maximum(t[:, :n], t[:, n : 2 * n]), t[:, 2 * n :]], 1) for t in (z[1].lo, z[1].hi))
            return Interval(*ends)
        case Within() if where.floats is None or where.floats.deployed is None:  # what is computed may lie outside
            return Interval(z[0].lo.clamp(node.lo, node.hi), z[0].hi.clamp(node.lo, node.hi))
        case Bilinear():
            return bilinear_range(node, *z)
        case Sum():  # c >= 0: ends stay; c < 0: ends swap
            ends = [_scaled(c, t) for c, t in zip(node.factors, z, strict=True)]
            lo, hi = [e.lo for e in ends], [e.hi for e in ends]
            return Interval(sum(lo[1:], lo[0]) + node.offset, sum(hi[1:], hi[0]) + node.offset)
        case Rounded(tie=tie):
            return Interval(torch.ceil(z[0].lo - (0.5 + tie)), torch.floor(z[0].hi + (0.5 + tie)))
        case Activation(curve=Curve() as curve):
            return curve_range(node.apply, curve, z[0])
        case Map() | Activation():  # non-decreasing in every input: ends map to ends
            return Interval(node.apply(*(t.lo for t in z)), node.apply(*(t.hi for t in z)))
        case _:
            raise AssertionError(f"no interval rule for {type(node).__name__}")


def curve_range(rho: Callable[[Tensor], Tensor], curve: Curve, z: Interval) -> Interval:
    """rho falls to its bottom, if it has one, and then rises: largest at an end, least at the bottom or the end nearest to it.

    Where it is not defined on the whole box it may be anything.
    """
    if curve.defined is not None:
        inside = curve.defined(z.lo, z.hi)
        box = curve_range(rho, replace(curve, defined=None), Interval(*(torch.where(inside, t, 1.0) for t in (z.lo, z.hi))))
        return Interval(torch.where(inside, box.lo, -torch.inf), torch.where(inside, box.hi, torch.inf))
    ends = rho(z.lo), rho(z.hi)
    if curve.bottom == -math.inf:
        lo, hi = ends
    else:
        lo = rho(torch.minimum(torch.maximum(z.lo, z.lo.new_tensor(curve.bottom)), z.hi))
        hi = torch.maximum(*ends)
    return Interval(lo - curve.error(z.hi), hi + curve.error(z.hi))


def _scaled(c: Tensor | float, z: Interval) -> Interval:
    a, b = c * z.lo, c * z.hi
    return Interval(torch.minimum(a, b), torch.maximum(a, b))


def product(apply: Callable[[Tensor, Tensor], Tensor], w: Interval, z: Interval, dense: bool) -> Interval:
    """The box of apply(z, w) over both boxes, each product of one element of z and one of w at its own worst corner.

    With w in [a, b] and z in [l, u], and t+ = max(t, 0), t- = min(t, 0), where a = b or l >= 0:

        a+ l + a- u  <=  w z  <=  b+ u + b- l             exact
    """
    if w.lo is w.hi or bool((z.lo >= 0).all()):
        return Interval(
            apply(z.lo, w.lo.clamp(min=0)) + apply(z.hi, w.lo.clamp(max=0)),
            apply(z.hi, w.hi.clamp(min=0)) + apply(z.lo, w.hi.clamp(max=0)),
        )
    low = _lowest_product(apply, w, z, dense)
    return Interval(low, -_lowest_product(apply, Interval(-w.hi, -w.lo), z, dense))  # max w z = - min (-w) z


def _lowest_product(apply: Callable[[Tensor, Tensor], Tensor], w: Interval, z: Interval, dense: bool) -> Tensor:
    """The lower ends.  With w in [a, b] and z in [l, u]:

        w z  >=  a+ l+ + b+ l- + a- u+ + b- u-            exact, except where both w and z may have either sign:
        there the sum counts b l + a u, the exact minimum is min(b l, a u) = b l + a u + min(b |l|, |a| u)
                                                                           >= b l + a u + min(b, |a|) min(|l|, u).
    `dense` (apply is F.linear) uses the exact one.
    """
    a, b, lo, hi = w.lo, w.hi, z.lo, z.hi
    b_up, a_down, hi_up, lo_down = b.clamp(min=0), a.clamp(max=0), hi.clamp(min=0), lo.clamp(max=0)
    low = (
        apply(lo.clamp(min=0), a.clamp(min=0))
        + apply(lo_down, b_up)
        + apply(hi_up, a_down)
        + apply(hi.clamp(max=0), b.clamp(max=0))
    )
    if not bool(((a < 0) & (b > 0)).any()):
        return low
    if not dense:
        return low + apply(torch.minimum(-lo_down, hi_up), torch.minimum(b_up, -a_down))
    rows = max(1, room(lo) // max(1, 4 * lo.numel()))
    both = [
        torch.minimum(q * -lo_down[:, None], -p * hi_up[:, None]).sum(2)
        for p, q in zip(a_down.split(rows), b_up.split(rows), strict=True)
    ]
    return low + torch.cat(both, 1)


def interval_margins(where: Region, y: Tensor, boxes: Sequence[Interval]) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j from the boxes of all nodes."""
    last = where.graph.nodes[-1]
    if isinstance(last, Product) and last.dense and last.weight is not None:
        w, z = where.box(last.weight), boxes[last.inputs[0]]
        b = None if last.bias is None else where.box(last.bias)
        size = max(1, room(w.lo) // max(1, 6 * w.lo.numel()))
        pieces = zip(y.split(size), z.lo.split(size), z.hi.split(size), strict=True)
        low = torch.cat([_merged(w, b, labels, *ends) for labels, *ends in pieces])
        if where.floats is not None:
            one = torch.eye(low.shape[1], dtype=low.dtype, device=low.device)
            low = low - lost(last, where, [z], boxes[-1], one[y] - one[:, None]).T
    else:
        logits = boxes[-1]
        low = logits.lo.gather(1, y[:, None]) - logits.hi
    if where.floats is not None:
        low = low + _unknown(boxes)[:, None]
    return torch.where(torch.isfinite(low), low, -torch.inf).scatter(1, y[:, None], 0.0)


def _unknown(boxes: Sequence[Interval]) -> Tensor:
    """(B,) 0, or NaN for an example with a box that is not finite."""
    zeros = [z.lo - z.lo + (z.hi - z.hi) for z in boxes]
    return torch.stack([z.reshape(len(z), math.prod(z.shape[1:])).sum(1) for z in zeros]).sum(0)


def _merged(w: Interval, b: Interval | None, y: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """min over z of sum_k min over D_k of D_k z_k, D = W_y - W_j in [a_y - b_j, b_y - a_j]: rows y and j move apart."""
    d_lo, d_hi = w.lo[y][:, None] - w.hi, w.hi[y][:, None] - w.lo  # (B, K, d)
    lo, hi = lo[:, None], hi[:, None]
    # w z is bilinear: its minimum over a box is at a corner.  For lo >= 0 the two corners with d_hi are never below.
    low = torch.minimum(d_lo * lo, d_lo * hi)
    if not bool((lo >= 0).all()):
        low = torch.minimum(low, torch.minimum(d_hi * lo, d_hi * hi))
    total = low.sum(2)
    return total if b is None else total + b.lo[y][:, None] - b.hi


def hidden_upper_bounds(net: Dense, x: Tensor, eps_w: list[float], eps_b: list[float]) -> list[Tensor]:
    """Upper bounds u^k >= z'^k of the activations k = 1..L-1 at the *natural* x, over all weights and biases in their balls.

    x: (B, *input), signed or not.  Returns L-1 tensors (B, d_k).  Needs a monotone, non-negative activation.
    Cost: one forward pass for layer 1, two products a side for each further layer.
    """
    bounds: list[Tensor] = []
    z = net.enter(x)
    lo = hi = z
    for k, (W, b) in enumerate(zip(net.weights[:-1], net.biases[:-1], strict=True)):
        if k == 0:  # row lemma at a point: {(W + D) x : |D| <= eps} = W x +- eps ||x||_1, both ends attained
            centre = F.linear(z, W)
            spread = eps_w[0] * z.abs().sum(1, keepdim=True)
            lo, hi = centre - spread, centre + spread
        else:  # 0 <= l <= z <= u, w in [p, q]  =>  p+ l + p- u <= w z <= q+ u + q- l
            p, q = W - eps_w[k], W + eps_w[k]
            lo, hi = (
                F.linear(lo, p.clamp(min=0)) + F.linear(hi, p.clamp(max=0)),
                F.linear(hi, q.clamp(min=0)) + F.linear(lo, q.clamp(max=0)),
            )
        if b is not None:
            lo, hi = lo + (b - eps_b[k]), hi + (b + eps_b[k])
        lo, hi = net.activation(lo), net.activation(hi)  # monotone: ends map to ends
        bounds.append(hi)
    return bounds
