"""activations.py - the two lines that enclose an activation over a box.  CROWN, arXiv:1811.00866.

* For a hinge rho(z) = max(z, s z) with l < 0 < u:   a z <= rho(z) <= chord,  for any a in [s, 1].
* Convex on [l, u]:   a tangent <= rho <= the chord;  concave: the other way round.
* Convex and concave in turn: **any** slope s gives the line s z + min over [l, u] of (rho - s z).  On a concave piece that
  minimum is at one of its ends; on a convex piece rho' is monotone, so bisection encloses it.  The best of several is taken.
* Rounding to whole numbers:   z - 1/2 <= rho(z) <= z + 1/2,  and level lines where the box holds few of them, and at the input.
* Too steep for the arithmetic, or no numbers: min rho <= rho <= max rho, also where these are infinite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nonsingular.bounds.interval import Boxed, curve_range
from nonsingular.bounds.products import dot
from nonsingular.network.curves import Curve
from nonsingular.network.nodes import Activation, Node, Rounded, Sum
from nonsingular.threat.interval import Interval

LEVEL = 2
"""Steps that the lines of rounding are level over, at most."""


@dataclass(frozen=True, eq=False)
class Lines:
    """lower z + below <= rho(z) <= upper z + above on [l, u], elementwise; `lower` may have more leading dimensions."""

    lower: Tensor
    below: Tensor
    upper: Tensor
    above: Tensor

    @property
    def ends(self) -> Sequence[Tensor]:
        """As `through_lines` takes them."""
        return self.lower, self.upper, self.above, self.below


def lines(node: Activation, z: Interval, choose: Callable[[Tensor], Tensor], level: bool = False) -> Lines:
    """Two lines that enclose the activation on its box.

    z: ends (B, *shape).  choose: default lower slopes of hinges (1, B, *shape) -> those to use, (S or 1, B, *shape).
    level: those of steps are level.
    """
    if isinstance(node, Rounded):
        return _steps(node, z, level)
    if node.curve is None:
        return _hinge(node, z, choose)
    return _smooth(node.apply, node.curve, z) if node.curve.defined is None else _partial(node.apply, node.curve, z)


def stacked(inside: Boxed, i: int) -> Tensor:
    """(B, 3 or 4, *shape): lower, upper, above, and below but for hinges, with default slopes.  inside: boxes of all nodes."""
    node = inside.where.graph.nodes[i]
    assert isinstance(node, Activation)
    ends = lines(node, inside.boxes[node.inputs[0]], lambda default: default, of_input(inside.where.graph.nodes, i))
    found = (ends.lower, ends.upper, ends.above, *([] if node.form == "hinge" else [ends.below]))
    return torch.stack([t.view_as(ends.upper) for t in found], 1)


def through_lines(node: Activation, ends: Sequence[Tensor], A: Tensor) -> tuple[Tensor, Tensor]:
    """(coefficients, constant) of A (S, B, *shape) over an activation: positive ones take the lower line, others the upper.

    ends: lower, upper, above, below; the lower line of a hinge has no offset.
    """
    lower, upper, above, *below = ends
    up = A.relu()
    down = A - up
    over = dot if node.curve is None or node.curve.defined is None else _dot_with_infinities
    offset = over(down, above)
    if node.form != "hinge":
        offset = offset + over(up, *below)
    return torch.addcmul(up * lower, down, upper), offset


def _dot_with_infinities(A: Tensor, z: Tensor) -> Tensor:
    """As `dot`; no bound on what does not count is none needed: 0 inf = 0."""
    if bool(torch.isfinite(z).all()):
        return dot(A, z)
    terms = torch.where(A == 0, 0.0, A * z)
    return terms.reshape(*terms.shape[:2], math.prod(terms.shape[2:])).sum(2)


def _hinge(node: Activation, z: Interval, choose: Callable[[Tensor], Tensor]) -> Lines:
    """rho(z) = max(z, s z): exact where the sign of z is known; otherwise a z <= rho(z) <= chord, a in [s, 1]."""
    lo, hi, s = z.lo, z.hi, node.slope
    mixed = (lo < 0) & (hi > 0)
    one, flat = torch.ones_like(lo), torch.full_like(lo, s)  # a Python number in torch.where would be rounded to float32
    steeper = torch.where(mixed, (hi - s * lo) / torch.where(mixed, hi - lo, one), torch.where(lo >= 0, one, flat))
    start = torch.where(hi > -lo, one, flat)[None]  # the smaller area
    lower = torch.where(mixed, choose(start), steeper)
    above = torch.where(mixed, (s - steeper) * lo, 0.0)
    return Lines(lower, torch.zeros_like(lo), steeper, above)


def of_input(nodes: Sequence[Node], i: int) -> bool:
    """Whether each element of node i is computed from one element of the input alone.

    Level lines then lose nothing: what a linear function of them has at its least is the sum of what each element has.
    """
    while i:
        node = nodes[i]
        before = node.inputs[0] if node.inputs else 0
        if len(node.inputs) != 1 or not isinstance(node, Sum | Activation) or nodes[before].shape != node.shape:
            return False
        i = before
    return True


def _steps(node: Rounded, z: Interval, level: bool) -> Lines:
    """|rho(z) - z| <= 1/2, and as much more as ties may be off; over few whole numbers level lines are closer, or nearly."""
    by = 0.5 + node.tie
    lo, hi = torch.ceil(z.lo - by), torch.floor(z.hi + by)
    flat = torch.full_like(lo, level, dtype=torch.bool) | (hi - lo <= LEVEL)
    slope = torch.where(flat, 0.0, torch.ones_like(lo))
    return Lines(slope, torch.where(flat, lo, -by), slope, torch.where(flat, hi, by))


def _partial(rho: Callable[[Tensor], Tensor], curve: Curve, z: Interval) -> Lines:
    """Two lines around a function that is not defined everywhere, or has no largest slope."""
    assert curve.defined is not None
    inside, box = curve.defined(z.lo, z.hi) & torch.isfinite(z.hi - z.lo), curve_range(rho, curve, z)
    found = _smooth(rho, curve, Interval(torch.where(inside, z.lo, 1.0), torch.where(inside, z.hi, 1.0)))

    def level(slope: Tensor, offset: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        steep = ~(slope.abs() < curve.steep) | ~torch.isfinite(offset) | ~inside
        return torch.where(steep, 0.0, slope), torch.where(steep, end, offset)

    return Lines(*level(found.lower, found.below, box.lo), *level(found.upper, found.above, box.hi))


def _smooth(rho: Callable[[Tensor], Tensor], curve: Curve, z: Interval) -> Lines:
    lo, hi = z.lo, z.hi
    middle = (lo + hi) / 2
    bends, inside = torch.full_like(lo, curve.convex, dtype=torch.bool), torch.ones_like(lo, dtype=torch.bool)
    for turn in curve.turns:
        bends = bends ^ (middle >= turn)  # whether the piece around the middle is convex
        inside = inside & ~((lo < turn) & (turn < hi))
    wide = hi - lo > 1e-6 * (1.0 if curve.defined is None else middle.abs())  # or near 0 nothing would be wide
    chord = (rho(hi) - rho(lo)) / torch.where(wide, hi - lo, 1.0)
    tangent = curve.slope_at(middle)
    touch = rho(middle) - tangent * middle
    lower, below = torch.where(bends, tangent, chord), torch.where(bends, touch, rho(lo) - chord * lo)
    upper, above = torch.where(bends, chord, tangent), torch.where(bends, rho(hi) - chord * hi, touch)
    # narrow: rho' >= k  =>  rho(l) + k (z - l) <= rho(z) <= rho(u) + k (z - u)
    k, _ = curve.slopes(lo, hi)
    lower, upper = torch.where(wide, lower, k), torch.where(wide, upper, k)
    below, above = torch.where(wide, below, rho(lo) - k * lo), torch.where(wide, above, rho(hi) - k * hi)
    across = wide & ~inside
    if bool(across.any()):
        at = across.nonzero(as_tuple=True)
        part = Interval(lo[at], hi[at])
        (s, b), (t, c) = _best_line(rho, curve, part, 1.0), _best_line(rho, curve, part, -1.0)
        lower, below, upper, above = (old.index_put(at, new) for old, new in ((lower, s), (below, b), (upper, t), (above, c)))
    return Lines(lower, below - curve.error(hi), upper, above + curve.error(hi))


def _best_line(rho: Callable[[Tensor], Tensor], curve: Curve, z: Interval, sign: float, slopes: int = 8) -> tuple[Tensor, Tensor]:
    """(slope, offset) of a line below rho (sign 1) or above it (sign -1) on the box z (n,): of several the best in the middle."""
    lo, hi = z.lo, z.hi
    middle = (lo + hi) / 2
    with torch.no_grad():
        least, most = curve.slopes(lo, hi)
        grid = torch.linspace(0, 1, slopes, dtype=lo.dtype, device=lo.device)[:, None]
        extra = torch.stack([(rho(hi) - rho(lo)) / (hi - lo), curve.slope_at(middle)])
        s = torch.cat([torch.lerp(least, most, grid), extra])
        best = (sign * s * middle + _offset(rho, curve, z, s, sign, halvings=8)).argmax(0)
        s = s.gather(0, best[None])[0]
    return s, sign * _offset(rho, curve, z, s, sign)


def _offset(rho: Callable[[Tensor], Tensor], curve: Curve, z: Interval, s: Tensor, sign: float, halvings: int = 20) -> Tensor:
    """A lower bound of min over the box z of h(z) = sign (rho(z) - s z), close to it after enough halvings.

    Where h is concave, its minimum is at an end of the piece: one of the box, or a turn, which ends a convex piece too.
    Where h is convex on [a, b], bisection keeps h' <= 0 at a (or a in place) and h' >= 0 at b (or b in place), so the minimum
    lies between, and there h(z) >= h(a) + h'(a) (z - a) >= h(a) + min(h'(a), 0) (b - a).
    """

    def h(z: Tensor) -> Tensor:
        return sign * (rho(z) - s * z)

    found = torch.minimum(h(z.lo), h(z.hi))
    for i, (start, end) in enumerate(itertools.pairwise((-math.inf, *curve.turns, math.inf))):
        if (curve.convex ^ (i % 2 == 1)) != (sign > 0):
            continue
        with torch.no_grad():
            a, b = (torch.clamp(t, start, end).expand_as(s) for t in (z.lo, z.hi))
            meets = a < b
            for _ in range(halvings):
                middle = (a + b) / 2
                rises = sign * (curve.slope_at(middle) - s) > 0
                a, b = torch.where(rises, a, middle), torch.where(rises, middle, b)
            fall = (sign * (curve.slope_at(a) - s)).clamp(max=0)
        least = h(a) + fall * (b - a)
        found = torch.minimum(found, torch.where(meets, least, torch.inf))
    return found
