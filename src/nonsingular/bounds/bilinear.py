"""bilinear.py - products of two signals: their interval, and planes below and above them.  McCormick, Math. Program. 10 (1976).

With a in [l, u] and b in [l', u'], of middles m, m' and half-widths r, r' >= 0:

    a b  is least and largest at corners of the box;
    a b  >=  l b + l' a - l l'     and     a b  >=  u b + u' a - u u'          ((a - l)(b - l') >= 0 and (u - a)(u' - b) >= 0)
    a b  <=  u b + l' a - u l'     and     a b  <=  l b + u' a - l u'

Any mixture of the two planes on a side may be taken, t of the first.  They are as far from a b on average, so by default half of
each is; that is the tangent plane in the middle:

    m b + m' a - m m' - r r'   <=   a b   <=   m b + m' a - m m' + r r'        (|(a - m)(b - m')| <= r r')

whose slopes do not depend on the side: a sum of products is pulled back at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.func import vjp  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.network.memory import room
from nonsingular.network.nodes import Bilinear
from nonsingular.threat.interval import Interval


def bilinear_range(node: Bilinear, a: Interval, b: Interval) -> Interval:
    """The box of sums of products, each product at its own worst corner.

    Where there are too many to write them out: |a b - m m'| <= |m| r' + r |m'| + r r'.
    """
    one = torch.broadcast_shapes(*(t.shape for t in node.factors(a.lo[:1], b.lo[:1])))
    if 8 * one.numel() > room(a.lo):
        (m, n), (r, s) = ([(t.lo + t.hi) / 2 for t in (a, b)], [(t.hi - t.lo) / 2 for t in (a, b)])
        middle, reach = node.apply(m, n), node.apply(m.abs(), s) + node.apply(r, n.abs()) + node.apply(r, s)
        return Interval(middle - reach, middle + reach)
    size = max(1, room(a.lo) // max(1, 8 * one.numel()))
    parts = [_corners(node, *ends) for ends in zip(*(t.split(size) for t in (a.lo, a.hi, b.lo, b.hi)), strict=True)]
    return Interval(torch.cat([p.lo for p in parts]), torch.cat([p.hi for p in parts]))


def _corners(node: Bilinear, a_lo: Tensor, a_hi: Tensor, b_lo: Tensor, b_hi: Tensor) -> Interval:
    (p, q), (p_hi, q_hi) = node.factors(a_lo, b_lo), node.factors(a_hi, b_hi)
    lo = hi = p * q
    for corner in (p * q_hi, p_hi * q, p_hi * q_hi):
        lo, hi = torch.minimum(lo, corner), torch.maximum(hi, corner)
    return Interval(lo.sum(-1), hi.sum(-1))


def through_bilinear(
    node: Bilinear, a: Interval, b: Interval, A: Tensor, share: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
    """(coefficients (S, B, *shape) of a and of b, constant (S, B)): a linear lower bound of A y for A (S, B or 1, *shape).

    share: (S or 1, B, 2, *shape) in [0, 1], of the plane whose slope for b is l: of those below, and of those above.  None: half.
    """
    if share is not None:
        return _mixed(node, a, b, A, share)
    S, B = len(A), len(a.lo)
    middles = [(t.lo + t.hi) / 2 for t in (a, b)]
    radii = [(t.hi - t.lo) / 2 for t in (a, b)]
    A = A.expand(S, B, *node.shape)
    points = [m.expand(S, *m.shape).flatten(0, 1) for m in middles]
    parts = vjp(node.apply, *points)[1](A.flatten(0, 1))
    offset = A * node.apply(*middles) + A.abs() * node.apply(*radii)
    return tuple(p.view(S, B, *p.shape[1:]) for p in parts), -offset.reshape(S, B, math.prod(node.shape)).sum(2)


def _mixed(node: Bilinear, a: Interval, b: Interval, A: Tensor, share: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """As above.  What is bounded below meets (l, l') and (u, u'), what is bounded above (l, u') and (u, l')."""
    S, B = len(A), len(a.lo)
    up = A.expand(S, B, *node.shape).clamp(min=0)
    down = A - up
    (ll, lu), (uu, ul) = ((up * s, down * t) for s, t in (share.unbind(2), (1 - share).unbind(2)))
    of_a = [_adjoint(node, a.lo, end, part)[0] for end, part in ((b.lo, ll + ul), (b.hi, uu + lu))]
    of_b = [_adjoint(node, end, b.lo, part)[1] for end, part in ((a.lo, ll + lu), (a.hi, uu + ul))]
    offset = ll * node.apply(a.lo, b.lo) + uu * node.apply(a.hi, b.hi) + lu * node.apply(a.lo, b.hi) + ul * node.apply(a.hi, b.lo)
    return (of_a[0] + of_a[1], of_b[0] + of_b[1]), -offset.reshape(S, B, math.prod(node.shape)).sum(2)


def _adjoint(node: Bilinear, a: Tensor, b: Tensor, A: Tensor) -> list[Tensor]:
    """The derivatives of A apply(a, b) by a and by b, A (S, B, *shape)."""
    points = [t.expand(len(A), *t.shape).flatten(0, 1) for t in (a, b)]
    parts = vjp(node.apply, *points)[1](A.flatten(0, 1))
    return [p.view(*A.shape[:2], *p.shape[1:]) for p in parts]
