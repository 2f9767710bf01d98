"""activations.py - the two lines that enclose an activation over a box.  CROWN, arXiv:1811.00866.

For a hinge rho(z) = max(z, s z) with l < 0 < u:   a z <= rho(z) <= chord,  for any a in [s, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nonsingular.operators import Activation
from nonsingular.threat import Interval


@dataclass(frozen=True, eq=False)
class Lines:
    """lower z + below <= rho(z) <= upper z + above on [l, u], elementwise; `lower` may have leading dimensions of its own."""

    lower: Tensor
    below: Tensor
    upper: Tensor
    above: Tensor


def lines(node: Activation, z: Interval, choose: Callable[[Tensor], Tensor]) -> Lines:
    """Two lines that enclose the activation on its box.

    z: ends (B, *shape).  choose: default lower slopes of hinges (1, B, *shape) -> those to use, (S or 1, B, *shape).
    """
    return _hinge(node, z, choose) if node.form == "hinge" else _s_shaped(node, z)


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


def _s_shaped(node: Activation, z: Interval) -> Lines:
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
    return Lines(lower, below, upper, above)
