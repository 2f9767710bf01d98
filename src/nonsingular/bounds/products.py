"""products.py - a linear function of a product pulled back over a box of weights: the row lemma and the chord rule.

* A parameter that enters linearly moves A y by sum_t D_t S_t(z), where S(z) (the derivative of A y with respect to the parameter)
  is linear in z.  With w = w_c + D and |D| <= E the worst case is -E |S(z)|, attained; |S| lies below its chord on [S_lo, S_hi],
  which is linear in z:                A y  >=  A (w_c z)  -  sum_t E_t (slope_t S_t(z) + offset_t).
  A shared kernel stays shared: S is summed over positions before the absolute value.
* For a dense layer S = A_i z_j, so it is |A| E chord(|z|): exact for z >= 0 (the row lemma: {W' z} is the box
  [(W-E) z, (W+E) z]), and exact at the input, where a chord meets the concave -|z_j| at both ends of its box, and a linear
  minimum is at an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Region
from nonsingular.operators import Product
from nonsingular.threat import Interval


def expanded(t: Tensor | float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return (t if isinstance(t, Tensor) else like.new_tensor(t)).expand(1, *shape)


def dot(A: Tensor, z: Tensor) -> Tensor:
    """(S, B) sums of A (S, B or 1, *shape) times z (B or 1, *shape)."""
    A, z = A.flatten(2), z.flatten(1)
    B = torch.broadcast_shapes(A.shape[1:2], z.shape[:1])[0]
    return torch.einsum("sbn,bn->sb", A.expand(-1, B, -1), z.expand(B, -1))


def chord(box: Interval) -> tuple[Tensor, Tensor]:
    """(slope, offset): |t| <= slope t + offset for t in [lo, hi]; equal at the ends, and everywhere if these agree in sign."""
    lo, hi = box.lo, box.hi
    mixed = (lo < 0) & (hi > 0)
    width = torch.where(mixed, hi - lo, 1.0)
    slope = torch.where(mixed, (hi + lo) / width, torch.where(lo >= 0, torch.ones_like(lo), -torch.ones_like(lo)))
    return slope, torch.where(mixed, -2 * hi * lo / width, 0.0)


def through_product(node: Product, where: Region, z: Interval, A: Tensor) -> tuple[tuple[Tensor, ...], Tensor | float]:
    offset: Tensor | float = 0.0
    if node.bias is not None:
        b = where.box(node.bias)
        centre = _centre(b)
        offset = dot(A, node.spread(centre).expand(1, *node.shape))
        if where.moves(node.bias):  # S_b does not depend on z: -E |S_b| is exact
            offset = offset - (_radius(b) * _sensitivity(node, centre, A).abs()).flatten(2).sum(2)
    if node.weight is None:
        return (A,), offset
    w = where.box(node.weight)
    if not where.moves(node.weight):

        def apply(z: Tensor) -> Tensor:
            return node.apply(z, w.lo)

        return pull_all(apply, [z.lo.new_zeros(1, 1, *z.lo.shape[1:])], A), offset
    E, centre = _radius(w), _centre(w)
    if node.dense:
        reach = A.abs() @ E if (e := _uniform(E)) is None else A.abs().sum(-1, keepdim=True) * e
        A = A @ centre
        if bool((z.lo >= 0).all()):
            return (A - reach,), offset
        slope, rest = chord(z)
        if e is not None:
            reach = reach.expand(*reach.shape[:2], A.shape[2])
        return (A - reach * slope,), offset - dot(reach, rest)
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


def pull(apply: Callable[..., Tensor], point: Tensor, A: Tensor) -> Tensor:
    """The derivative of A apply(z) at `point`, both (S, B, ...)."""
    return vjp(apply, point.flatten(0, 1))[1](A.flatten(0, 1))[0].view_as(point)


def pull_all(apply: Callable[..., Tensor], shapes: Sequence[Tensor], A: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of A apply(*z) for a linear `apply`: (S, B or 1, *shape) for each input."""
    N = A.shape[0] * A.shape[1]
    points = [t.flatten(0, 1).expand(N, *t.shape[2:]) for t in shapes]
    parts = vjp(apply, *points)[1](A.flatten(0, 1))
    return tuple(p.view(*A.shape[:2], *p.shape[1:]) for p in parts)


def sensitivities(node: Product, where: Region, A: Tensor, z: Tensor) -> list[tuple[str, Tensor]]:
    """(name, (N, *parameter) derivative of A y with respect to it) of the moving parameters.  A: (N, *shape).  z: (N, *input)."""
    found: list[tuple[str, Tensor]] = []
    if isinstance(node.weight, str) and where.moves(node.weight):
        found.append((node.weight, _weight_gradient(node, where.graph.value(node.weight), A[None], z)[0]))
    if isinstance(node.bias, str) and where.moves(node.bias):
        found.append((node.bias, _sensitivity(node, where.graph.value(node.bias), A[None])[0]))
    return found
