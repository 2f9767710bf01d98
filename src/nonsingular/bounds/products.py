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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Boxed, Region
from nonsingular.network.derivatives import Derivatives, by_differentiation
from nonsingular.network.nodes import Product, Sum
from nonsingular.threat.interval import Interval


def dot(A: Tensor, z: Tensor) -> Tensor:
    """(S, B) sums of A (S, B or 1, *shape) times z (B or 1, *shape), of which dimensions of 1 stand for all places."""
    spread = [d for d in range(1, z.dim()) if z.shape[d] == 1 and A.shape[d + 1] > 1]
    A = A.sum([d + 1 for d in spread], keepdim=True) if spread else A
    size = math.prod(z.shape[1:])  # 1 of a scalar; a batch may be empty
    A, z = A.reshape(*A.shape[:2], size), z.reshape(len(z), size)
    if len(A) == 1:  # a product of matrices would be one of many small ones
        return (A * z).sum(2)
    B = max(A.shape[1], len(z)) if A.shape[1] and len(z) else 0
    return torch.einsum("sbn,bn->sb", A.expand(-1, B, -1), z.expand(B, -1))


def of_constant(A: Tensor, c: Tensor | float) -> Tensor:
    """(S, B) sums of A (S, B, *shape) times a constant that broadcasts to *shape, or to (1, *shape)."""
    c = c if isinstance(c, Tensor) else A.new_tensor(c)
    return dot(A, c.reshape(*[1] * (A.dim() - 1 - c.dim()), *c.shape))


def chord(box: Interval) -> tuple[Tensor, Tensor]:
    """(slope, offset): |t| <= slope t + offset for t in [lo, hi]; equal at the ends, and everywhere if these agree in sign."""
    lo, hi = box.lo, box.hi
    mixed = (lo < 0) & (hi > 0)
    width = torch.where(mixed, hi - lo, 1.0)
    slope = torch.where(mixed, (hi + lo) / width, torch.where(lo >= 0, torch.ones_like(lo), -torch.ones_like(lo)))
    return slope, torch.where(mixed, -2 * hi * lo / width, 0.0)


def through_product(
    node: Product, where: Region, z: Interval, A: Tensor, known: Charges | None = None
) -> tuple[tuple[Tensor, ...], Tensor | float]:  # fmt: skip
    """(coefficients of z, constant): a linear lower bound of A y.  known: as `through_convolution` asks for them."""
    offset: Tensor | float = 0.0
    if node.bias is not None:
        b = where.box(node.bias)
        centre = _centre(b)
        offset = of_constant(A, node.spread(centre))
        if where.moves(node.bias):  # S_b does not depend on z: -E |S_b| is exact
            offset = offset - (_radius(b) * _sensitivity(node, centre, A).abs()).view(*A.shape[:2], -1).sum(2)
    if node.weight is None:
        return (A,), offset
    w = where.box(node.weight)
    if not where.moves(node.weight):
        return (_along(_derivatives(node, w.lo, z).z, A, w.lo),), offset
    E, centre = _radius(w), _centre(w)
    if node.dense:
        reach = A.abs() @ E if (e := _uniform(E)) is None else A.abs().sum(-1, keepdim=True) * e
        return _own(A @ centre, reach, z, offset)
    pull = _derivatives(node, w.lo, z)
    if known is not None:
        part, constant = through_convolution(node, where, A, known, pull)
        return (part,), offset + constant
    if _of_one_output(A):  # the row lemma, and no weight for each function
        reach = _along(pull.z, A.abs(), E) if (e := _uniform(E)) is None else _along(pull.z_ones, A.abs()) * e
        return _own(_along(pull.z, A, centre), reach, z, offset)
    # S(z) = S(A, z), linear in z with coefficients of both signs: middle S(A, z_c), radius S(|A|, z_r)
    A = A.expand(len(A), len(z.lo), *node.shape)
    middle, radius = pull.w(A, (z.lo + z.hi) / 2), pull.w(A.abs(), (z.hi - z.lo) / 2)
    # the chord of |S|, as in `chord`: |S| <= slope S + rest, where max |S| is that of the ends
    slope = (middle / torch.where(radius > 0, radius, 1.0)).clamp(-1, 1)
    rest = torch.maximum(middle.abs(), radius) - slope * middle
    moved = torch.addcmul(centre, E, slope, value=-1)  # A (w_c z) - sum_t E_t slope_t S_t(z) = A (moved z)
    return (_along(pull.z_each, A, moved.flatten(0, 1)),), offset - dot(rest, E[None])


HARDLY = 2.0**-10
"""Kernels that move by no more than this part of their mean |w| are charged as in `through_convolution`."""


def hardly_moves(node: Product, where: Region) -> bool:
    """Whether a moving kernel of a convolution keeps within HARDLY of its size."""
    if node.kernel is None or node.weight is None or not where.moves(node.weight):
        return False
    w = where.box(node.weight)
    return bool(_radius(w).amax() <= HARDLY * _centre(w).abs().mean())


@dataclass(frozen=True, eq=False)
class Charges:
    """What a kernel that hardly moves is charged with, as factors of |A|, for each output: (1, channels or 1, H, W).

    charges: E z_r and E |z|, in the middle of the box of z: (1, 2, ...).  rest: E rest, with |z| <= slope z + rest; slope is of
    the input.  Both are None where z >= 0.  patches: (1, patch, H, W), what each output sees of the middle.
    """

    charges: Tensor
    rest: Tensor | None
    slope: Tensor | None
    patches: Tensor

    def of(self, outputs: Callable[[Tensor], Tensor], inputs: Callable[[Tensor], Tensor]) -> Charges:
        """The same in windows of the output, and of the input."""
        rest, slope = None if self.rest is None else outputs(self.rest), None if self.slope is None else inputs(self.slope)
        return Charges(outputs(self.charges), rest, slope, outputs(self.patches))


def charges(inside: Boxed, i: int) -> Charges:
    """What node i asks for.  inside: boxes of all nodes."""
    where, node = inside.where, inside.where.graph.nodes[i]
    assert isinstance(node, Product) and node.kernel is not None and node.weight is not None
    z, w, walk = inside.boxes[node.inputs[0]], where.box(node.weight), node.kernel
    E, middle, radius = _radius(w), (z.lo + z.hi) / 2, (z.hi - z.lo) / 2
    if _uniform(E) is not None and walk.groups == 1:
        E = E[:1]
    apply = partial(torch.conv2d, weight=E, stride=walk.stride, padding=walk.padding, dilation=walk.dilation, groups=walk.groups)
    patches = F.unfold(middle, walk.size, walk.dilation, walk.padding, walk.stride).unflatten(-1, node.shape[-2:])
    if bool((z.lo >= 0).all()):
        return Charges(torch.stack([apply(radius), apply(middle)], 1), None, None, patches)
    slope, rest = chord(z)
    return Charges(torch.stack([apply(radius), apply(slope * middle + rest)], 1), apply(rest), slope, patches)


def through_convolution(node: Product, where: Region, A: Tensor, z: Charges, pull: Derivatives) -> tuple[Tensor, Tensor]:
    """(coefficients of z, constant) of A w z, the kernel in its box.  With reach = E times |A| pulled back, z in z_c +- z_r:

        -E |S(z)|  >=  -E |S(z_c)| - reach z_r
        -E |S(z)|  >=  -reach |z|                   each position as if it had a kernel of its own.

    Each function takes the one that is better in the middle of the box.  The chord of |S| is tighter by at most 2 reach z_r, a
    part of E / |w| of what z_r is worth anyway, but pulls a kernel back for each function: three times the cost.
    """
    assert node.weight is not None
    w = where.box(node.weight)
    E, centre, size = _radius(w), _centre(w), A.abs()
    e, found = _uniform(E), _along(pull.z, A, centre)
    over = size.sum(2, keepdim=True) if z.charges.shape[2] == 1 else size
    constant, taken = A.new_zeros(A.shape[:2]), A.new_ones(())
    if not _of_one_output(A):  # where the second one is exact
        rest, own = (dot(over, t) for t in z.charges.unbind(1))
        S = _in_the_middle(node, A, z.patches)
        shared = (S @ E.flatten() if e is None else S.sum(2) * e) + rest
        take = own <= shared
        if not bool(take.any()):
            return found, -shared
        taken, constant = take.to(A.dtype).view(*take.shape, *[1] * (A.dim() - 2)), -torch.where(take, 0.0, shared)
    reach = taken * (_along(pull.z, size, E) if e is None else _along(pull.z_ones, size) * e)
    if z.rest is not None and z.slope is not None:
        constant, reach = constant - dot(over * taken, z.rest), reach * z.slope
    return found - reach, constant


def _in_the_middle(node: Product, A: Tensor, patches: Tensor) -> Tensor:
    """(S, B, elements of the kernel) |S(z_c)|, from what each output sees of z_c (B, patch, H, W)."""
    groups = 1 if node.kernel is None else node.kernel.groups
    rows, patches = (t.flatten(-2).unflatten(-2, (groups, -1)) for t in (A, patches))
    if groups == 1 and len(A) == 1:
        found = torch.bmm(rows[0, :, 0].expand(len(patches), -1, -1), patches[:, 0].mT)[None]
    elif groups == A.shape[1] == len(patches) == 1:
        found = rows[:, 0, 0] @ patches[0, 0].mT
    else:
        found = torch.einsum("sbgop,bgqp->sbgoq", rows, patches)
    return (found.abs() if found.requires_grad else found.abs_()).reshape(
        *torch.broadcast_shapes(A.shape[:2], (1, len(patches))), -1
    )


def _of_one_output(A: Tensor) -> bool:
    """Whether each function is of one element of y, as that of a hidden neuron is at first: it uses each weight at most once."""

    def one(A: Tensor) -> bool:
        return bool(((A != 0).flatten(2).sum(2) <= 1).all())

    return one(A[:1, :1]) and one(A)


def _own(A: Tensor, reach: Tensor, z: Interval, offset: Tensor | float) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """A z - reach |z| for a reach >= 0 that may be constant along dimensions: exact for z >= 0, by the chord of |z| otherwise."""
    if bool((z.lo >= 0).all()):
        return (A - reach,), offset
    slope, rest = chord(z)
    return (A - reach * slope,), offset - dot(reach.expand(*reach.shape[:2], *A.shape[2:]), rest)


def _derivatives(node: Product, w: Tensor, z: Interval) -> Derivatives:
    return node.derivatives(tuple(w.shape)) or by_differentiation(node.apply, tuple(z.lo.shape[1:]), w)


def _along(f: Callable[..., Tensor], A: Tensor, *rest: Tensor) -> Tensor:
    """f of N functions, for S functions of B examples each."""
    return f(A.flatten(0, 1), *rest).unflatten(0, A.shape[:2])


def _sensitivity(node: Product, b: Tensor, A: Tensor) -> Tensor:
    """(S, B or 1, *b): the derivative of A y with respect to the bias."""
    numbers = torch.arange(b.numel(), device=b.device)
    seen = node.spread(numbers.view(b.shape))
    if torch.equal(seen.flatten(), numbers):  # one for each place of some dimensions: the sum over the others
        kept = (*[1] * (len(node.shape) - seen.dim()), *seen.shape)
        others = [d + 2 for d, n in enumerate(kept) if n == 1]
        return (A.sum(others) if others else A).reshape(*A.shape[:2], *b.shape)

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


def pull_all(apply: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]], A: Tensor) -> tuple[Tensor, ...]:
    """The derivatives of A apply(*z) for a linear `apply` of z (N, *shape): (S, B or 1, *shape) for each input."""
    N = A.shape[0] * A.shape[1]
    points = [A.new_zeros(*[1] * (len(shape) + 1)).expand(N, *shape) for shape in shapes]
    parts = vjp(apply, *points)[1](A.flatten(0, 1))
    return tuple(p.view(*A.shape[:2], *p.shape[1:]) for p in parts)


def sensitivities(node: Product, where: Region, A: Tensor, z: Tensor) -> list[tuple[str, Tensor]]:
    """(name, (N, *parameter) derivative of A y with respect to it) of the moving parameters.  A: (N, *shape).  z: (N, *input)."""
    found: list[tuple[str, Tensor]] = []
    if isinstance(node.weight, str) and where.moves(node.weight):
        w = where.graph.value(node.weight)
        of_w = A[:, :, None] * z[:, None] if node.dense else _derivatives(node, w, Interval(z, z)).w(A[None], z)[0]
        found.append((node.weight, of_w))
    if isinstance(node.bias, str) and where.moves(node.bias):
        found.append((node.bias, _sensitivity(node, where.graph.value(node.bias), A[None])[0]))
    return found


def through_sum(node: Sum, shapes: Sequence[tuple[int, ...]], A: Tensor) -> tuple[Tensor, ...]:
    """As `pull_all`, by the factors alone where nothing is broadcast."""
    if any(shape != node.shape for shape in shapes):
        return pull_all(node.apply, shapes, A)
    return tuple(A * c if isinstance(c, Tensor) or c != 1.0 else A for c in node.factors)
