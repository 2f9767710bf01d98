"""interval.py - boxes of tensors, element by element, exact in the dtype of the tensor that they are around."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

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
    """[p - below, p + above] in the dtype of `p`, each end rounded away from `p` or, by default, towards it.

    The last boxes are kept, with a copy of their centres: an attack, and all that checks it, ask for the same ones.
    """
    if isinstance(below, Tensor) or isinstance(above, Tensor) or p.numel() > KEPT or torch.is_inference_mode_enabled():
        return _rounded(p, below, above, outward)
    key = below, above, outward, p.shape, p.dtype, p.device
    for known, centre, box in reversed([*_kept]):  # a copy: other threads add to it
        if known == key and torch.equal(centre, p):
            return box
    box = _rounded(p, below, above, outward)
    _kept.append((key, p.detach().clone(), box))
    while len(_kept) > 1 and sum(centre.numel() for _, centre, _ in [*_kept]) > KEPT:
        _kept.popleft()
    return box


KEPT = 2**22
"""Numbers in the centres whose boxes are kept: 48 MB in float32 with both ends."""
_kept = deque[tuple[tuple[Any, ...], Tensor, Interval]]()


def _rounded(p: Tensor, below: Side, above: Side, outward: bool) -> Interval:
    down, up = (torch.as_tensor(side, dtype=torch.float64, device=p.device) for side in (below, above))
    ends = _cut_ends if p.dtype in _CUT and p.numel() and _usual(down) and _usual(up) else _ends
    size = max(1, PIECE * len(p) // p.numel()) if p.dim() and p.numel() else 0
    if not 0 < size < len(p):
        return Interval(*ends(p, down, up, outward))
    found = [torch.empty_like(p, memory_format=torch.contiguous_format) for _ in range(2)]
    for at in (slice(i, i + size) for i in range(0, len(p), size)):
        below_here, above_here = (r[at] if r.dim() == p.dim() and len(r) > 1 else r for r in (down, up))
        for end, piece in zip(found, ends(p[at], below_here, above_here, outward), strict=True):
            end[at] = piece
    return Interval(*found)


PIECE = 2**15
"""About how many numbers are rounded at a time: the many passes over them then stay in the cache of the processor."""
_CUT = {torch.float32: 29, torch.bfloat16: 45}
"""Types with the exponents of float32 -> how many bits shorter than those of float64 their numbers are."""


def _usual(r: Tensor) -> bool:
    """Whether the sum of r, or -r, and any number p of a type in _CUT is 0 or no smaller than normal ones, and does not overflow.

    From 2^-70 on, r is a multiple of 2^-122; so is p, or |p| < 2^-99 < r / 2.  So the sum is 0 or at least 2^-122.  Up to 2^100
    the largest sum is below 2^128, as p is at most 2^128 - 2^104.
    """
    least, most = r.aminmax()
    return least.item() >= 2.0**-70 and most.item() <= 2.0**100


def _cut_ends(p: Tensor, below: Tensor, above: Tensor, outward: bool) -> list[Tensor]:
    """As `_ends`, for usual radii, in fewer passes, each over memory that is allocated already."""
    s, spare = torch.empty(2, *p.shape, dtype=torch.float64, device=p.device)
    return [_cut(p, r, s, spare.view(torch.int64), up=up) for r, up in ((-below, not outward), (above, outward))]


def _cut(p: Tensor, r: Tensor, s: Tensor, spare: Tensor, *, up: bool) -> Tensor:
    """p + r in the dtype of `p`: the smallest number that is not below it or, down, the largest that is not above it.

    The sum in float64, without the bits that do not fit, is the next number towards 0; with all of them set, it is nearest to the
    next one away from 0.  s, spare: of the shape of p, written to.
    """
    bits, rest = s.copy_(p).add_(r).view(torch.int64), (1 << _CUT[p.dtype]) - 1
    beyond = torch.bitwise_and(bits, rest, out=spare)
    fits = None
    if beyond.view(torch.float64).amin().item() == 0:  # as numbers of this type, for which it is quicker
        fits = beyond == 0
    negative = torch.bitwise_right_shift(bits, 63, out=spare).bitwise_and_(rest)
    if up:
        bits.bitwise_or_(rest).bitwise_xor_(negative)
    else:
        bits.bitwise_and_(~rest).bitwise_or_(negative)
    t = s.to(p.dtype)
    if fits is not None:  # few: the sum is such a number to nearest, and may lie on either side of it
        a, r = p[fits].double(), r.expand_as(p)[fits]
        near = a + r
        t[fits] = _moved(near.to(p.dtype), _passed(a, r, near, up), up=up)
    return t


def _ends(p: Tensor, below: Tensor, above: Tensor, outward: bool) -> list[Tensor]:
    return [-_end(-p, below, outward), _end(p, above, outward)]


def _end(p: Tensor, r: Tensor, outward: bool) -> Tensor:
    """p + r in the dtype of `p`: the smallest number that is not below it, or the largest that is not above it."""
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
