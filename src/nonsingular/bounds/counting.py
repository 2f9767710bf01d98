"""counting.py - how many examples one move of the weights can break at once, from the planes of their margins.

Plane p of example i falls by t_p = (H d)_p at d in [-1, 1]^n, and i is broken only if t_p >= b_p = L_p(0) for one of its p.  For
b_p > 0, any theta in [0, 1] and any c_p > -b_p

    1[i is broken]  <=  1 - theta_i + theta_i sum_p ((t_p + c_p) / (b_p + c_p))^2.

Summed over i, with s_p = sqrt(theta_i) / (b_p + c_p), and for any diagonal D > 0, as d' D d <= sum D on the box: with eigenvalues
l_k and eigenvectors u_k of s H D^-1 H' s, and any sigma above all l_k,

    broken  <=  sum_i (1 - theta_i) + |s (H d + c)|^2
            <=  sum_i (1 - theta_i) + sigma sum D + sum_k (u_k' s c)^2 / (1 - l_k / sigma).

Any theta, c, D and sigma are sound.  They come from the worst second moments of d that a matrix of low rank finds (float32).
Tail of t_p at given moments: Cantelli's inequality.

Of some pairs of examples no d breaks both.  If planes p and q both reach b_p, b_q > 0, then for any mu in [0, 1]

    1  <=  mu t_p / b_p + (1 - mu) t_q / b_q  <=  |mu H_p / b_p + (1 - mu) H_q / b_q|_1,

so a norm below 1 rules that out.  Where it is for all planes of two examples, at most one of these breaks; and at most one of a
set of examples of which any two are such a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nonsingular.bounds.planes import Planes

RANK, STEPS = 6, 150
"""Rank of the matrix of second moments, its first column the mean; and steps of its ascent."""
SOFT = 0.05
"""How far the smallest of 1 and a tail is rounded off, so that theta may lie between 0 and 1."""
TOGETHER = 2000
"""Planes counted together: beyond, groups of examples have a worst d each, which can only count more."""
SLACK = 1e-6
"""What is added to a count, relatively too: far above what rounding in float64 moves it by."""

HARD = 0.55
"""Examples are compared if all their planes keep at least this share of |H_p|_1: others move too easily to exclude any."""
MIXES = (0.5, 0.35)
"""The mu that are tried, and 1 - mu."""
MOST = 2**26
"""Numbers of H that are laid out at once, 4 bytes each.  Examples beyond are not compared; the hardest to break come first."""


@dataclass(frozen=True, eq=False)
class Multipliers:
    """theta: (N,) of each example.  c: (P,) of each plane.  D: (n, m) for each block."""

    theta: Tensor
    c: Tensor
    D: tuple[Tensor, ...]


def most_broken(planes: Planes) -> float:
    """An upper bound of the number of examples of which a plane is <= 0 at one d in [-1, 1], the same for all.

    Examples of which a plane is <= 0 at d = 0 count as broken.  At most the number of examples.
    Cost: seconds and about 0.5 GB for each TOGETHER planes and 100,000 moving weights.
    """
    _, owner = planes.example.unique(return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    lost = torch.zeros(count, dtype=torch.bool, device=owner.device)
    lost[owner[~(planes.at_zero > 0)]] = True
    total = float(lost.sum())
    open_ = (~lost[owner]).nonzero().flatten()
    planes = planes[open_]
    owner, count = joined(planes, owner[open_].unique(return_inverse=True)[1], count - int(lost.sum()))
    for group in _groups(torch.bincount(owner, minlength=count)):
        at = torch.isin(owner, group).nonzero().flatten()
        total += _counted(planes[at], torch.searchsorted(group, owner[at]), len(group))
    return total


def _groups(sizes: Tensor) -> list[Tensor]:
    """Numbers of examples, in groups of about TOGETHER planes; those without planes in none."""
    number = (sizes.cumsum(0) - 1).clamp(min=0) // TOGETHER
    kept = sizes > 0
    return [((number == k) & kept).nonzero().flatten() for k in number[kept].unique().tolist()]


def _counted(planes: Planes, owner: Tensor, count: int) -> float:
    """At most `count`: theta = 0."""
    found = proven(planes.to(torch.float64), owner, multipliers(planes.to(torch.float32), owner, count))
    return min(float(count), found) if math.isfinite(found) else float(count)


def multipliers(planes: Planes, owner: Tensor, count: int, *, steps: int = STEPS, rank: int = RANK) -> Multipliers:
    """Ascent on sum_i min(1, sum_p tail of t_p) over the second moments of d, whose slopes at the end are the multipliers.

    planes: with at_zero > 0.  owner: (P,) to which of `count` examples each belongs.
    The moments are V V', the rows of V of length 1, its first column the mean: t has mean (H V)_0 and variance |(H V)_1..|^2.
    """
    b = planes.at_zero
    generator = torch.Generator(b.device).manual_seed(0)
    shapes = [(o.left.shape[1], o.right.shape[1], rank) for o in planes.blocks]
    V = [_unit(torch.randn(shape, generator=generator, dtype=b.dtype, device=b.device)) for shape in shapes]
    for step in range(steps):
        slope = _slopes(planes.falls(V), b, owner, count)[0]
        rate = 0.5 * (1 - step / steps) + 0.02
        G = [o.back(slope) for o in planes.blocks]
        V = [_unit(v + rate * g / g.norm(dim=2).mean().clamp(min=1e-20)) for v, g in zip(V, G, strict=True)]
    t = planes.falls(V)
    slope, tails = _slopes(t, b, owner, count)
    gap, variance = b - t[:, 0], (t[:, 1:] ** 2).sum(1)
    # the least square of a plane is at c = variance / gap - mean, which goes to infinity where its mean reaches b
    size = variance.sqrt() + t[:, 0].abs() + b
    c = torch.where(gap > 1e-3 * size, variance / gap.clamp(min=1e-20) - t[:, 0], 1e3 * size)
    return Multipliers(((1 - tails) / SOFT).sigmoid(), c, tuple(o.back(slope).norm(dim=2) / 2 for o in planes.blocks))


def _slopes(t: Tensor, b: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(derivative (P, R) of the rounded sum of min(1, .) of the tails, sum of the tails of each example (count,))."""
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        gap, variance = b - t[:, 0], (t[:, 1:] ** 2).sum(1)
        tail = torch.where(gap > 0, variance / (variance + gap.clamp(min=0) ** 2 + 1e-12), 1.0)  # Cantelli
        tails = torch.zeros(count, dtype=b.dtype, device=b.device).index_add(0, owner, tail)
        goal = -SOFT * torch.logaddexp(torch.full_like(tails, -1 / SOFT), -tails / SOFT).sum()
        return torch.autograd.grad(goal, [t])[0], tails.detach()


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=2, keepdim=True).clamp(min=1e-20)


def proven(planes: Planes, owner: Tensor, by: Multipliers) -> float:
    """The bound at the top of this page, for these multipliers, moved to where they are allowed.  planes: in float64."""
    b = planes.at_zero
    theta, c = by.theta.to(b).clamp(0, 1), torch.maximum(by.c.to(b), -0.999 * b)
    D = [torch.maximum(part.to(b), 1e-3 * part.to(b).mean() + 1e-30) for part in by.D]
    s = theta[owner].sqrt() / (b + c)
    gram = [o.gram(part) for o, part in zip(planes.blocks, D, strict=True)]
    values, vectors = torch.linalg.eigh(s[:, None] * sum(gram[1:], gram[0]) * s)
    values = values.clamp(min=0) * (1 + 1e-9)
    r, total = (vectors.T @ (s * c)) ** 2, float(sum(float(part.sum()) for part in D))

    def bound(sigma: float) -> float:
        return sigma * total + float((r / (1 - values / sigma)).sum())

    largest = float(values[-1])
    if not largest > 0:
        return math.inf
    found = float((1 - theta).sum()) + bound(_lowest(bound, largest * 1.0001, largest * 1e4))
    return found + SLACK * (1 + found)


def _lowest(f: Callable[[float], float], lo: float, hi: float) -> float:
    """Where a function with one valley is lowest, nearly: golden sections of the logarithm."""
    a, b, ratio = math.log(lo), math.log(hi), (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        if f(math.exp(left)) < f(math.exp(right)):
            b = right
        else:
            a = left
    return math.exp((a + b) / 2)


# --- examples that exclude each other ---------------------------------------------------------------------------------------


def joined(planes: Planes, owner: Tensor, count: int) -> tuple[Tensor, int]:
    """(owner (P,), count) with examples of which at most one can break as one.

    planes: with at_zero > 0.  owner: (P,) to which of `count` examples each belongs.
    Cost: P^2 / 2 norms of all moving weights, P the planes of the examples that are compared: seconds for 300.
    """
    size = sum(o.left.shape[1] * o.right.shape[1] for o in planes.blocks)
    share = planes.at_zero / planes.steepest().clamp(min=1e-300)
    least = torch.full((count,), torch.inf, dtype=share.dtype, device=share.device).scatter_reduce(0, owner, share, "amin")
    order = least.argsort(descending=True)
    planes_up_to = torch.bincount(owner, minlength=count)[order].cumsum(0)
    compared = order[(least[order] >= HARD) & (planes_up_to * size <= MOST)]
    if len(compared) < 2:
        return owner, count
    at = torch.isin(owner, compared).nonzero().flatten()
    apart = _apart(planes[at], size)
    _, local = owner[at].unique(return_inverse=True)
    group = torch.arange(count, device=owner.device)
    names = owner[at].unique()
    for clique in _cliques(_all_of(apart, local, len(names)), least[names]):
        group[names[clique]] = names[clique[0]]
    _, owner = group[owner].unique(return_inverse=True)
    return owner, int(owner.max()) + 1


def _apart(planes: Planes, size: int) -> Tensor:
    """(P, P) whether no d takes both planes to 0."""
    planes = planes.to(torch.float32)
    H = torch.cat([o.laid_out() for o in planes.blocks], 1).div_(planes.at_zero[:, None])
    below = 1 - (size + 8) * torch.finfo(H.dtype).eps  # a sum of that many numbers that are not negative, in any order
    found = torch.zeros(len(H), len(H), dtype=torch.bool, device=H.device)
    for mu in MIXES:
        found |= torch.cdist(mu * H, (mu - 1) * H, p=1.0) < below
    return found | found.T


def _all_of(apart: Tensor, owner: Tensor, count: int) -> Tensor:
    """(count, count) whether all planes of two examples are apart."""
    of = torch.zeros(count, len(owner), device=owner.device)
    of[owner, torch.arange(len(owner), device=owner.device)] = 1
    return ((of @ (~apart).float() @ of.T) == 0).fill_diagonal_(False)


def _cliques(apart: Tensor, hardness: Tensor) -> list[Tensor]:
    """Sets of two or more examples of which any two are apart, none in two of them: greedy, the easiest to break first."""
    found: list[Tensor] = []
    left = torch.ones(len(apart), dtype=torch.bool, device=apart.device)
    for first in hardness.argsort().tolist():
        if not left[first]:
            continue
        members, fits = [first], apart[first] & left
        while fits.any():
            degree = apart[:, fits].sum(1).masked_fill(~fits, -1)
            members.append(int(degree.argmax()))
            fits = fits & apart[members[-1]]
        if len(members) > 1:
            found.append(torch.tensor(members, device=apart.device))
            left[members] = False
    return found
