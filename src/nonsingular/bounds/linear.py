"""linear.py - linear bounds over inputs and weights, pulled back through the network.

CROWN (arXiv:1811.00866), CROWN-IBP (arXiv:1906.06316), alpha-CROWN (arXiv:2011.13824), with the weights in boxes:

A linear function A y of a node is bounded below by a linear function of the nodes before it, and so on down to the input box.

* A parameter that enters linearly moves A y by sum_t D_t S_t(z), where S(z) (the derivative of A y with respect to the parameter)
  is linear in z.  With w = w_c + D and |D| <= E the worst case is -E |S(z)|, attained; |S| lies below its chord on [S_lo, S_hi],
  which is linear in z:                A y  >=  A (w_c z)  -  sum_t E_t (slope_t S_t(z) + offset_t).
  A shared kernel stays shared: S is summed over positions before the absolute value.
* For a dense layer S = A_i z_j, so it is |A| E chord(|z|): exact for z >= 0 (the row lemma: {W' z} is the box
  [(W-E) z, (W+E) z]), and exact at the input, where a chord meets the concave -|z_j| at both ends of its box, and a linear
  minimum is at an end.
* For a hinge rho(z) = max(z, s z) with l < 0 < u:   a z <= rho(z) <= chord,  for any a in [s, 1].

Coefficients have shape (S, B, *shape): S linear functions, B examples (1 while they do not depend on the example).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import ELEMENTS, Region, interval_bounds, propagate, region
from nonsingular.graph import recording
from nonsingular.operators import Activation, Map, Maximum, Node, Product, Sum
from nonsingular.threat import Interval, JointBall

Choose = Callable[[int, Tensor], Tensor]
"""(number of a hinge, its default slopes (1, B, *shape)) -> the lower slopes to use, (S or 1, B, *shape)."""
Slopes = Callable[[int, int, Tensor], Choose]
"""(number of the bounded node, +1 or -1 for its lower or upper ends, which of its elements (S,)) -> how to choose."""


def _default(at: int, default: Tensor) -> Tensor:
    return default


def crown_ibp(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball: one pass back, hidden layers by intervals; column y is 0.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode, of the operations in operators.py.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic.
    Raises UnsupportedModel without a rule for an operation.  Cost: about K passes back.  Source: arXiv:1906.06316.
    """
    with torch.no_grad():
        pieces = _pieces(region(model, x, y, ball), y.long())
        return torch.cat([margin_bounds(part, interval_bounds(part), labels) for part, labels in pieces])


def crown(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball, hidden layers bounded in the same way; column y is 0.

    As `crown_ibp`, usually much tighter.  Cost: two passes back for each hidden neuron whose sign is open, and K for the logits.
    Source: arXiv:1811.00866.
    """
    with torch.no_grad():
        pieces = _pieces(region(model, x, y, ball), y.long())
        return torch.cat([margin_bounds(part, hidden_bounds(part), labels) for part, labels in pieces])


def alpha_crown(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 10, rate: float = 0.3, batch: int = 64
) -> Tensor:
    """(B, K) as `crown`, with every lower slope, also those for hidden layers, moved by `steps` of gradient ascent.

    Any slope is sound; each element is the best of all steps, so it is never below `crown`.
    batch: largest number of examples at a time.  Where the gradients of one example's hidden bounds do not fit into memory,
    these stay as in `crown` and only the slopes for the logits move.
    Cost: `steps` times crown with gradients.  Source: arXiv:2011.13824.
    """
    with recording():
        whole = region(model, x.clone(), y, ball)
        logits, hidden = _kept(whole)
        deep = logits + hidden <= ELEMENTS
        size = min(batch, ELEMENTS // (logits + hidden if deep else logits))
        return torch.cat([_ascend(part, labels, steps, rate, deep) for part, labels in _pieces(whole, y.long(), size)])


def _pieces(where: Region, y: Tensor, size: int | None = None) -> list[tuple[Region, Tensor]]:
    """The examples, `size` at a time; by default as many as leave room for one linear function of each logit."""
    if size is None:
        size = ELEMENTS // _largest(where.part(slice(1)), len(where.graph.nodes) - 1) // where.graph.nodes[-1].shape[0]
    size = max(1, size)
    cuts = [slice(i, i + size) for i in range(0, max(1, len(y)), size)]  # one empty piece for no examples
    return [(where.part(at), y[at]) for at in cuts]


def _kept(where: Region) -> tuple[int, int]:
    """Numbers kept for the gradient of one example's bounds: those of the logits, and those of all hidden nodes."""
    sizes = [torch.Size(node.shape).numel() for node in where.graph.nodes]
    for i, node in enumerate(where.graph.nodes):
        if isinstance(node, Product) and not node.dense and node.weight is not None and where.moves(node.weight):
            sizes[i] += where.graph.value(node.weight).numel()
    hidden = {i for node in where.graph.nodes if isinstance(node, Activation | Maximum) for i in node.inputs}
    return sizes[-1] * sum(sizes), sum(2 * torch.Size(where.graph.nodes[i].shape).numel() * sum(sizes[:i]) for i in hidden)


class _Alphas:
    """Lower slopes as variables: each bounded element has its own where these fit into memory, or one for all of a node."""

    def __init__(self, where: Region) -> None:
        self.where = where
        self.of: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, bounded: int, end: int, elements: Tensor) -> Choose:
        def choose(at: int, default: Tensor) -> Tensor:
            key = (bounded, end, at)
            if key not in self.of:
                count = torch.Size(self.where.graph.nodes[bounded].shape).numel()
                own = count if count * default.numel() <= ELEMENTS // 8 else 1
                self.of[key] = default.detach().repeat(own, *[1] * (default.dim() - 1)).requires_grad_()
            alpha = self.of[key]
            return alpha if len(alpha) == 1 else alpha[elements]

        return choose

    def clamp_(self) -> None:
        with torch.no_grad():
            for (_, _, at), alpha in self.of.items():
                alpha.clamp_(cast(Activation, self.where.graph.nodes[at]).slope, 1.0)


def _ascend(where: Region, y: Tensor, steps: int, rate: float, deep: bool = True) -> Tensor:
    """Adam on the sum of the margins' bounds, with a rate that falls by 5 % a step; hidden bounds take part if `deep`."""
    alphas = _Alphas(where)
    with torch.no_grad():
        fixed = None if deep else hidden_bounds(where)

    def bounds() -> Tensor:
        return margin_bounds(where, fixed or hidden_bounds(where, alphas), y, alphas)

    low = bounds()
    best = low.detach()
    if not alphas.of or not low.requires_grad or not steps:
        return best
    optimiser = torch.optim.Adam(alphas.of.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.95)
    for _ in range(steps):
        optimiser.zero_grad()
        low.sum().neg().backward()
        optimiser.step()
        schedule.step()
        alphas.clamp_()
        low = bounds()
        best = torch.fmax(best, low.detach())
    return best


def margin_bounds(where: Region, boxes: Sequence[Interval], y: Tensor, slopes: Slopes | None = None) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j, given the boxes of the hidden nodes."""
    K = where.graph.nodes[-1].shape[0]
    one = torch.eye(K, dtype=where.x.lo.dtype, device=where.x.lo.device)
    A = one[y] - one[:, None]  # (K, B, K): row j of example b is e_y - e_j
    last = len(where.graph.nodes) - 1
    return lowest(where, boxes, last, A, slopes(last, 1, torch.arange(K, device=A.device)) if slopes else _default).T


def hidden_bounds(where: Region, slopes: Slopes | None = None) -> list[Interval]:
    """The box of every node's output: intervals, met with linear bounds where a nonlinearity follows and more is to gain."""
    nodes = where.graph.nodes
    nonlinear = {i for node in nodes if isinstance(node, Activation | Maximum) for i in node.inputs}
    boxes, exact = [where.x], [True]
    for i, node in enumerate(nodes[1:], 1):
        box = propagate(node, where, boxes)
        exact.append(_elementwise(node) and exact[node.inputs[0]])
        first = isinstance(node, Product) and exact[node.inputs[0]] and _is_exact(node, where, boxes)
        if i in nonlinear and not first and not exact[i]:
            hinges = all(isinstance(n, Activation) and n.form == "hinge" for n in nodes if i in n.inputs)
            box = _refined(where, [*boxes, box], i, hinges, slopes)
        boxes.append(box)
    return boxes


def _elementwise(node: Node) -> bool:
    """Whether the box of the node's output is the exact range if that of its input is, elements independent."""
    return (isinstance(node, Map) and node.moves_only) or (isinstance(node, Sum) and len(node.inputs) == 1)


def _is_exact(node: Product, where: Region, boxes: Sequence[Interval]) -> bool:
    """Whether the interval rule gives each output's exact range over independent inputs."""
    return node.dense or not where.moves(node.weight) or bool((boxes[node.inputs[0]].lo >= 0).all())


def _refined(where: Region, boxes: list[Interval], number: int, hinges: bool, slopes: Slopes | None) -> Interval:
    """The box of node `number`, met with linear bounds of those of its elements that are open for some example."""
    box = boxes[number]
    lo, hi = box.lo.flatten(1), box.hi.flatten(1)
    open_ = (lo < 0) & (hi > 0) if hinges else lo < hi
    chosen = open_.any(0).nonzero().flatten()
    if not len(chosen):
        return box
    size = max(1, ELEMENTS // _largest(where, number))
    low: list[Tensor] = []
    high: list[Tensor] = []
    for part in chosen.split(size):
        A = lo.new_zeros(len(part), lo.shape[1]).scatter_(1, part[:, None], 1.0).view(len(part), 1, *box.lo.shape[1:])
        low.append(lowest(where, boxes, number, A, slopes(number, 1, part) if slopes else _default))
        high.append(-lowest(where, boxes, number, -A, slopes(number, -1, part) if slopes else _default))
    met = open_[:, chosen]  # not where it is open for another example alone: a bound must not depend on who shares its batch
    new_lo = lo.index_copy(1, chosen, torch.where(met, torch.fmax(lo[:, chosen], torch.cat(low).T), lo[:, chosen]))
    new_hi = hi.index_copy(1, chosen, torch.where(met, torch.fmin(hi[:, chosen], torch.cat(high).T), hi[:, chosen]))
    # Both are sound, so the ends can only cross by rounding: then take them the other way round.
    return Interval(torch.minimum(new_lo, new_hi).view_as(box.lo), torch.maximum(new_lo, new_hi).view_as(box.hi))


def _largest(where: Region, number: int) -> int:
    """Numbers that one linear function of node `number` needs at once."""
    B = len(where.x.lo)
    sizes = [B * where.x.lo[0].numel() if B else 1]
    for node in where.graph.nodes[: number + 1]:
        sizes.append(B * torch.Size(node.shape).numel())
        if isinstance(node, Product) and not node.dense and isinstance(node.weight, str) and where.moves(node.weight):
            sizes.append(4 * B * where.graph.value(node.weight).numel())
    return max(1, *sizes)


def lowest(where: Region, boxes: Sequence[Interval], number: int, A: Tensor, choose: Choose = _default) -> Tensor:
    """(S, B) lower bounds of the linear functions A (S, B or 1, *shape) of the output of node `number`."""
    nodes = where.graph.nodes
    found: dict[int, Tensor] = {number: A}
    total = A.new_zeros(len(A), len(where.x.lo))
    for i in range(number, 0, -1):
        if i not in found:
            continue
        node, A = nodes[i], found.pop(i)
        z = [boxes[k] for k in node.inputs]
        match node:
            case Product():
                parts, offset = _through_product(node, where, z[0], A)
            case Activation():
                parts, offset = _through_activation(node, z[0], A, partial(choose, i))
            case Maximum():  # y >= z_k for the k with the largest l_k, and y <= max u
                up, down = A.clamp(min=0), A.clamp(max=0)
                route = z[0].lo.expand(len(A), *z[0].lo.shape)
                parts = (_pull(node.apply, route, up.expand(len(A), len(z[0].lo), *node.shape)),)
                offset = _dot(down, boxes[i].hi)
            case Sum() | Map():
                points = [A.new_zeros(1, 1, *nodes[k].shape) for k in node.inputs]
                parts = _pull_all(cast(Any, node).apply, points, A)
                offset = _dot(A, _expanded(node.offset, node.shape, A)) if isinstance(node, Sum) else 0.0
            case _:
                raise AssertionError(f"no linear rule for {type(node).__name__}")
        total = total + offset
        for k, part in zip(node.inputs, parts, strict=True):
            found[k] = found[k] + part if k in found else part
    if 0 in found:
        A = found[0]
        total = total + _dot(A.clamp(min=0), where.x.lo) + _dot(A.clamp(max=0), where.x.hi)
    return total


def _expanded(t: Tensor | float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return (t if isinstance(t, Tensor) else like.new_tensor(t)).expand(1, *shape)


def _dot(A: Tensor, z: Tensor) -> Tensor:
    """(S, B) sums of A (S, B or 1, *shape) times z (B or 1, *shape)."""
    A, z, B = A.flatten(2), z.flatten(1), max(A.shape[1], len(z))
    return torch.einsum("sbn,bn->sb", A.expand(-1, B, -1), z.expand(B, -1))


# --- products: the chord rule and the row lemma -----------------------------------------------------------------------------


def chord(box: Interval) -> tuple[Tensor, Tensor]:
    """(slope, offset): |t| <= slope t + offset for t in [lo, hi]; equal at the ends, and everywhere if these agree in sign."""
    lo, hi = box.lo, box.hi
    mixed = (lo < 0) & (hi > 0)
    width = torch.where(mixed, hi - lo, 1.0)
    slope = torch.where(mixed, (hi + lo) / width, torch.where(lo >= 0, torch.ones_like(lo), -torch.ones_like(lo)))
    return slope, torch.where(mixed, -2 * hi * lo / width, 0.0)


def _through_product(node: Product, where: Region, z: Interval, A: Tensor) -> tuple[tuple[Tensor, ...], Tensor | float]:
    offset: Tensor | float = 0.0
    if node.bias is not None:
        b = where.box(node.bias)
        centre = _centre(b)
        offset = _dot(A, node.spread(centre).expand(1, *node.shape))
        if where.moves(node.bias):  # S_b does not depend on z: -E |S_b| is exact
            offset = offset - (_radius(b) * _sensitivity(node, centre, A).abs()).flatten(2).sum(2)
    if node.weight is None:
        return (A,), offset
    w = where.box(node.weight)
    if not where.moves(node.weight):

        def apply(z: Tensor) -> Tensor:
            return node.apply(z, w.lo)

        return _pull_all(apply, [z.lo.new_zeros(1, 1, *z.lo.shape[1:])], A), offset
    E, centre = _radius(w), _centre(w)
    if node.dense:
        reach = A.abs() @ E if (e := _uniform(E)) is None else A.abs().sum(-1, keepdim=True) * e
        A = A @ centre
        if bool((z.lo >= 0).all()):
            return (A - reach,), offset
        slope, rest = chord(z)
        if e is not None:
            reach = reach.expand(*reach.shape[:2], A.shape[2])
        return (A - reach * slope,), offset - _dot(reach, rest)
    # S(z) = S(A, z), linear in z with coefficients of both signs: centre S(A, z_c), radius S(|A|, z_r)
    A = A.expand(len(A), len(z.lo), *node.shape)
    middle, spread = _weight_gradient(node, w.lo, A, (z.lo + z.hi) / 2), _weight_gradient(node, w.lo, A.abs(), (z.hi - z.lo) / 2)
    slope, rest = chord(Interval(middle - spread, middle + spread))
    moved = centre - E * slope  # A (w_c z) - sum_t E_t slope_t S_t(z) = A (moved z)
    zero = torch.zeros_like(z.lo[0])

    def pull(A: Tensor, w: Tensor) -> Tensor:
        def at(z: Tensor) -> Tensor:
            return node.apply(z[None], w)[0]

        return vjp(at, zero)[1](A)[0]

    parts = vmap(pull)(A.flatten(0, 1), moved.flatten(0, 1)).view(*A.shape[:2], *zero.shape)
    return (parts,), offset - (E * rest).flatten(2).sum(2)


def _weight_gradient(node: Product, w: Tensor, A: Tensor, z: Tensor) -> Tensor:
    """(S, B, *w): the derivative of A y with respect to the weight, for each function and example."""

    def pull(A: Tensor, z: Tensor) -> Tensor:
        def at(w: Tensor) -> Tensor:
            return node.apply(z[None], w)[0]

        return vjp(at, w)[1](A)[0]

    found = vmap(pull)(A.flatten(0, 1), z.expand(len(A), *z.shape).flatten(0, 1))
    return found.view(*A.shape[:2], *w.shape)


def _sensitivity(node: Product, b: Tensor, A: Tensor) -> Tensor:
    """(S, B or 1, *b): the derivative of A y with respect to the bias."""

    def pull(A: Tensor) -> Tensor:
        def at(b: Tensor) -> Tensor:
            return node.spread(b).expand(node.shape)

        return vjp(at, b)[1](A)[0]

    return vmap(pull)(A.flatten(0, 1)).view(*A.shape[:2], *b.shape)


def _centre(box: Interval) -> Tensor:
    return (box.lo + box.hi) / 2


def _radius(box: Interval) -> Tensor:
    return (box.hi - box.lo) / 2


def _uniform(E: Tensor) -> Tensor | None:
    """One radius for all elements, if they differ by rounding alone (then the largest)."""
    lo, hi = E.aminmax()
    return hi if bool(hi - lo <= 1e-6 * hi) else None


def _pull(apply: Callable[..., Tensor], point: Tensor, A: Tensor) -> Tensor:
    """The derivative of A apply(z) at `point`, both (S, B, ...)."""
    return vjp(apply, point.flatten(0, 1))[1](A.flatten(0, 1))[0].view_as(point)


def _pull_all(apply: Callable[..., Tensor], shapes: Sequence[Tensor], A: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of A apply(*z) for a linear `apply`: (S, B or 1, *shape) for each input."""
    N = A.shape[0] * A.shape[1]
    points = [t.flatten(0, 1).expand(N, *t.shape[2:]) for t in shapes]
    parts = vjp(apply, *points)[1](A.flatten(0, 1))
    return tuple(p.view(*A.shape[:2], *p.shape[1:]) for p in parts)


# --- activations ------------------------------------------------------------------------------------------------------------


def _through_activation(
    node: Activation, z: Interval, A: Tensor, choose: Callable[[Tensor], Tensor]
) -> tuple[tuple[Tensor], Tensor]:
    """a z + c <= rho(z) <= a' z + c' on [l, u]: positive coefficients take the lower line, negative ones the upper."""
    lower, below, upper, above = _hinge(node, z, choose) if node.form == "hinge" else _s_shaped(node, z)
    up, down = A.clamp(min=0), A.clamp(max=0)
    return (up * lower + down * upper,), _dot(up, below) + _dot(down, above)


def _hinge(node: Activation, z: Interval, choose: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rho(z) = max(z, s z): exact where the sign of z is known; otherwise a z <= rho(z) <= chord, a in [s, 1]."""
    lo, hi, s = z.lo, z.hi, node.slope
    mixed = (lo < 0) & (hi > 0)
    one, flat = torch.ones_like(lo), torch.full_like(lo, s)  # a Python number in torch.where would be rounded to float32
    steeper = torch.where(mixed, (hi - s * lo) / torch.where(mixed, hi - lo, one), torch.where(lo >= 0, one, flat))
    start = torch.where(hi > -lo, one, flat)[None]  # the smaller area
    lower = torch.where(mixed, choose(start), steeper)
    above = torch.where(mixed, (s - steeper) * lo, 0.0)
    return lower, torch.zeros_like(lo), steeper, above


def _s_shaped(node: Activation, z: Interval) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rho convex below 0 and concave above: chord and tangent on one side.  Across, rho' >= k, the smaller slope at the ends:
    rho(l) + k (z - l)  <=  rho(z)  <=  rho(u) + k (z - u).
    """
    lo, hi, rho = z.lo, z.hi, node.apply
    k = torch.minimum(node.slope_at(lo), node.slope_at(hi))
    wide = hi - lo > 1e-6
    line = torch.where(wide, (rho(hi) - rho(lo)) / torch.where(wide, hi - lo, 1.0), k)  # the chord; narrow boxes use k
    middle = (lo + hi) / 2
    tangent = node.slope_at(middle)
    touch = rho(middle) - tangent * middle
    concave, convex = (lo >= 0) & wide, (hi <= 0) & wide
    lower = torch.where(convex, tangent, torch.where(concave, line, k))
    below = torch.where(convex, touch, rho(lo) - lower * lo)
    upper = torch.where(concave, tangent, torch.where(convex, line, k))
    above = torch.where(concave, touch, rho(hi) - upper * hi)
    return lower, below, upper, above
