"""planes.py - a margin bounded below by a linear function of the move D of the weights, one D for all examples.

Where CROWN (linear.py) charges the worst D at once, this keeps D.  At a node with coefficients A, sum_t D_t S_t(z) enters, S
linear in z (products.py) and in [p, q] on the box.  With g_t the number nearest to 0 in [p_t, q_t], |S_t - g_t| = |S_t| - |g_t|:

    D_t S_t(z)  >=  g_t D_t - E_t |S_t(z) - g_t|  =  g_t D_t + E_t |g_t| - E_t |S_t(z)|,

and the last term is what CROWN charges, or less.  Therefore, for every D of the box and every input of its own,

    margin  >=  L(D)  =  CROWN's bound + sum_t (E_t |g_t| + g_t D_t),         min over D of L  =  CROWN's bound: nothing is lost.

For a dense layer g = A (x) c is of rank one, c the point of the layer's input box nearest to 0 (its lower ends after a ReLU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nonsingular.bounds.interval import Boxed, Region
from nonsingular.bounds.linear import default_slopes, differences, lowest_over, pull_back
from nonsingular.bounds.patches import Choose
from nonsingular.bounds.products import sensitivities
from nonsingular.network.nodes import Product
from nonsingular.threat.interval import Interval


@dataclass(frozen=True, eq=False)
class Outer:
    """One moving tensor of some planes: L falls by sum_rk left_r right_k d_rk for d in [-1, 1].  left: (P, n).  right: (P, m)."""

    left: Tensor
    right: Tensor

    def __getitem__(self, at: Tensor) -> Outer:
        return Outer(self.left[at], self.right[at])

    def times(self, d: Tensor) -> Tensor:
        """(P, R) falls at d (n, m, R)."""
        return torch.einsum("pmr,pm->pr", torch.einsum("pn,nmr->pmr", self.left, d), self.right)

    def back(self, weight: Tensor) -> Tensor:
        """(n, m, R): the derivative of sum_p weight_pr times(d)_pr, weight (P, R)."""
        return torch.stack([self.left.T @ (self.right * w[:, None]) for w in weight.T], 2)

    def laid_out(self) -> Tensor:
        """(P, n m) the falls for each element of d."""
        return (self.left[:, :, None] * self.right[:, None]).flatten(1)

    def gram(self, D: Tensor) -> Tensor:
        """(P, P) inner products, each element divided by D (n, m)."""
        size = max(1, 2**24 // max(1, len(self.left) * self.right.shape[1]))
        total = self.left.new_zeros(len(self.left), len(self.left))
        for rows, part in zip(self.left.split(size, 1), D.split(size), strict=True):
            H = (rows[:, :, None] * self.right[:, None] / part.sqrt()).flatten(1)
            total.addmm_(H, H.T)
        return total

    def to(self, dtype: torch.dtype) -> Outer:
        return Outer(self.left.to(dtype), self.right.to(dtype))


@dataclass(frozen=True, eq=False)
class Planes:
    """P linear functions L_p(d) = at_zero_p - sum of `blocks` at d, each below one margin of one example, for d in [-1, 1].

    example, other: (P,) whose margin, over which class.  at_zero: (P,) L at the middle of the boxes.  blocks: one for each moving
    tensor at a node.
    """

    example: Tensor
    other: Tensor
    at_zero: Tensor
    blocks: tuple[Outer, ...]

    def __len__(self) -> int:
        return len(self.at_zero)

    def __getitem__(self, at: Tensor) -> Planes:
        return Planes(self.example[at], self.other[at], self.at_zero[at], tuple(block[at] for block in self.blocks))

    def falls(self, d: Sequence[Tensor]) -> Tensor:
        """(P, R) how much L falls at d, (n, m, R) for each block."""
        found = [block.times(part) for block, part in zip(self.blocks, d, strict=True)]
        return sum(found[1:], found[0]) if found else self.at_zero.new_zeros(len(self), 1)

    def spread(self) -> Tensor:
        """(P,) |fall|_2: its standard deviation at d of independent random signs."""
        return sum(((o.left**2).sum(1) * (o.right**2).sum(1) for o in self.blocks), torch.zeros_like(self.at_zero)).sqrt()

    def steepest(self) -> Tensor:
        """(P,) |fall|_1: how far L can fall."""
        return sum((o.left.abs().sum(1) * o.right.abs().sum(1) for o in self.blocks), torch.zeros_like(self.at_zero))

    def where(self, keep: Tensor, others: Planes) -> Planes:
        """These planes where `keep` (P,) is true, elsewhere the others of the same margins."""
        blocks = zip(self.blocks, others.blocks, strict=True)
        return Planes(
            self.example, self.other, torch.where(keep, self.at_zero, others.at_zero),
            tuple(Outer(*(torch.where(keep[:, None], *t) for t in ((a.left, b.left), (a.right, b.right)))) for a, b in blocks),
        )  # fmt: skip

    def to(self, dtype: torch.dtype) -> Planes:
        return Planes(self.example, self.other, self.at_zero.to(dtype), tuple(block.to(dtype) for block in self.blocks))

    @staticmethod
    def join(parts: Sequence[Planes]) -> Planes:
        blocks = zip(*(p.blocks for p in parts), strict=True)
        return Planes(
            torch.cat([p.example for p in parts]), torch.cat([p.other for p in parts]), torch.cat([p.at_zero for p in parts]),
            tuple(Outer(torch.cat([o.left for o in same]), torch.cat([o.right for o in same])) for same in blocks),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Heard:
    """What one pass back from all margins leaves.  low: (K, B) CROWN's bounds.  at: node -> coefficients (K, B or 1, *shape)."""

    where: Region
    boxes: Sequence[Interval]
    low: Tensor
    at: dict[int, Tensor]


def margins_heard(where: Region, boxes: Sequence[Interval], y: Tensor, choose: Choose = default_slopes) -> Heard:
    """As `margin_bounds`, with the coefficients that reach the nodes."""
    last = len(where.graph.nodes) - 1
    zeros = where.x.lo.new_zeros(where.graph.nodes[last].shape)
    A = differences(y, torch.arange(len(zeros), device=y.device)[:, None], zeros)
    heard: dict[int, Tensor] = {}
    low = lowest_over(where.x, *pull_back(Boxed(where, boxes), last, A, choose, heard=heard))
    return Heard(where, boxes, low, {i: A for i, A in heard.items() if moving(where, i)})


def moving(where: Region, number: int) -> bool:
    """Whether a parameter of this node moves."""
    node = where.graph.nodes[number]
    return isinstance(node, Product) and (where.moves(node.weight) or where.moves(node.bias))


def planes(heard: Heard, example: Tensor, other: Tensor) -> Planes:
    """The planes of some margins: of `example` (P,) over class `other` (P,)."""
    at_zero, blocks = heard.low[other, example], list[Outer]()
    for i, coefficients in sorted(heard.at.items()):
        node = heard.where.graph.nodes[i]
        assert isinstance(node, Product)
        A = coefficients[other, example if coefficients.shape[1] > 1 else torch.zeros_like(example)]
        for gain, block in _blocks(node, heard.where, heard.boxes[node.inputs[0]], A, example):
            at_zero = at_zero + gain
            blocks.append(block)
    return Planes(example, other, at_zero, tuple(blocks))


def _blocks(node: Product, where: Region, z: Interval, A: Tensor, example: Tensor) -> list[tuple[Tensor, Outer]]:
    """For each moving tensor of the node: (sum_t E_t |g_t| (P,), how g moves L).  A: (P, *shape)."""
    found: list[tuple[Tensor, Outer]] = []
    lo, hi = z.lo[example], z.hi[example]
    rest = node
    if node.dense and where.moves(node.weight):
        assert node.weight is not None
        E, c = _radius(where.box(node.weight)), _nearest_to_0(lo, hi)
        row, column = _majorant(E)
        found.append((((A.abs() @ E) * c.abs()).sum(1), Outer(-A * row, c * column)))
        rest = replace(node, weight=None)
    middles = sensitivities(rest, where, A, (lo + hi) / 2)
    halves = sensitivities(rest, where, A.abs(), (hi - lo) / 2)
    for (name, S), (_, half) in zip(middles, halves, strict=True):
        g = S if name == node.bias else _nearest_to_0(S - half, S + half)
        g = (g * _radius(where.boxes[name])).flatten(1)
        found.append((g.abs().sum(1), Outer(-g, torch.ones_like(g[:, :1]))))
    return found


def _nearest_to_0(lo: Tensor, hi: Tensor) -> Tensor:
    return lo.clamp(min=0) + hi.clamp(max=0)


def _majorant(E: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns): E <= rows (x) columns, equal where E is constant along its rows or its columns.

    L holds for |D| <= E; that it is then counted over a larger box of D can only count more.
    """
    rows, columns = E.amax(1), E.amax(0)
    if float(rows.sum()) * E.shape[1] <= float(columns.sum()) * E.shape[0]:
        return rows, torch.ones_like(columns)
    return torch.ones_like(rows), columns


def _radius(box: Interval) -> Tensor:
    return (box.hi - box.lo) / 2
