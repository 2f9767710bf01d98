"""interval.py - boxes of tensors, element by element, exact in the dtype of the tensor that they are around."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nonsingular.threat.radius import Side


@dataclass(frozen=True)
class Interval:
    """The box of all tensors t with lo <= t <= hi, element by element."""

    lo: Tensor
    hi: Tensor

    def contains(self, t: Tensor) -> bool:
        """True if every element of `t` lies in the box; NaN never does."""
        return bool(((t >= self.lo) & (t <= self.hi)).all())

    def project_(self, t: Tensor) -> Tensor:
        """The nearest point of the box, written into `t`."""
        return torch.clamp(t, self.lo, self.hi, out=t)

    def sample(self, generator: torch.Generator) -> Tensor:
        """One uniform draw from the box."""
        u = torch.rand(self.lo.shape, generator=generator, dtype=self.lo.dtype, device=self.lo.device)
        return torch.clamp(self.lo + u * (self.hi - self.lo), self.lo, self.hi)


def box_around(p: Tensor, below: Side, above: Side, outward: bool) -> Interval:
    """[p - below, p + above] in the dtype of `p`, each end rounded away from `p` or, by default, towards it."""
    return Interval(-_end(-p, below, outward), _end(p, above, outward))


def _end(p: Tensor, radius: Side, outward: bool) -> Tensor:
    """p + radius in the dtype of `p`: the smallest number that is not below it, or the largest that is not above it."""
    r = torch.as_tensor(radius, dtype=torch.float64, device=p.device)
    size = max(1, PIECE * len(p) // p.numel()) if p.dim() and p.numel() else 0
    if not 0 < size < len(p):
        return _end_of(p, r, outward)
    found = torch.empty_like(p, memory_format=torch.contiguous_format)
    own = r.dim() == p.dim() and len(r) > 1
    for at in (slice(i, i + size) for i in range(0, len(p), size)):
        found[at] = _end_of(p[at], r[at] if own else r, outward)
    return found


PIECE = 2**15
"""Numbers rounded at a time, about: the many passes over them then stay in the cache of the processor."""


def _end_of(p: Tensor, r: Tensor, outward: bool) -> Tensor:
    a = p.double()
    s = a + r  # to nearest: a number of `p`'s dtype on one side of s is on that side of a + r, too
    t = s.to(p.dtype)
    if p.dtype == torch.float64:
        return _moved(t, _passed(a, r, s, outward), up=outward)
    over = t.double() - s
    bad = over < 0 if outward else over > 0
    at = (over == 0).nonzero(as_tuple=True)  # few, but for radii of 0
    if at and len(at[0]):
        bad[at] = _passed(a[at], r.expand_as(a)[at], s[at], outward)
    return _moved(t, bad, up=outward)


def _passed(a: Tensor, r: Tensor, s: Tensor, outward: bool) -> Tensor:
    """Where s, the rounded sum of a and r, is below the exact one; above it, inward."""
    b = s - a
    rest = (a - (s - b)) + (r - b)  # a + r = s + rest exactly (Knuth, The Art of Computer Programming, 4.2.2)
    return rest > 0 if outward else rest < 0


def _moved(t: Tensor, at: Tensor, *, up: bool) -> Tensor:
    """`t` with its numbers at `at` replaced by their neighbours, above or below.  Patterns of bits grow away from 0."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    bits = t.contiguous().view(whole)
    away = (bits >> torch.iinfo(whole).bits - 1) | 1  # 1 for numbers above 0, -1 below
    moved = (bits + at * (away if up else -away)).view(t.dtype)
    if bool((zero := at & (t == 0)).any()):
        least = torch.tensor(1 if up else torch.iinfo(whole).min + 1, dtype=whole, device=t.device).view(t.dtype)
        moved = torch.where(zero, least, moved)
    return moved
