"""floats.py - what rounding can do at one node: in the deployed network, and in the arithmetic of the bound itself.

* A network deployed in a type of unit roundoff u computes y^ = node(z^) + d with |d| <= `_deployed`, for the z^ that
  the nodes before it computed.  So a bound for every such d, free at each element of each node, is one for the
  network as computed: widen an interval by it; take |A| times it off a linear bound A y.
* A bound for that, itself computed with unit roundoff v,
  replaces A y by a linear function of z whose coefficients are off by at most v times a
  count times |A| |w|, which on the box of z is worth |A| times `_own`.  So its own rounding has the same form, and the same rule.

docs/certificates/README.md derives both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nonsingular.network.curves import Curve
from nonsingular.network.nodes import (
    Activation,
    Bilinear,
    Input,
    Larger,
    Lead,
    Map,
    Moment,
    NegativePart,
    Node,
    Product,
    Rounded,
    Sum,
)
from nonsingular.network.precision import CLOSE, Precision
from nonsingular.threat.interval import Interval

if TYPE_CHECKING:
    from nonsingular.bounds.interval import Region

CONSTANTS = 24
"""Roundings that a constant tensor may carry, and those of the operation with it (BatchNorm: the root of its variance too)."""
LINES = 64
"""Roundings beside those of sums: centres and radii of boxes, chords, lines, their differences; 11 is the most at one element."""
SAFE = 1 + 2.0**-7
"""What computing sizes, in float32 or float64, may take off them."""
CURVES = 512
"""The same of the lines around a smooth activation, in units of its values: a slope is within 64 units, taken over a box."""


def widened(node: Node, where: Region, z: Sequence[Interval], y: Interval) -> Interval:
    """The interval y of a node's output, so that rounding cannot leave it.  NaN after an overflow, which no node may hide."""
    with torch.no_grad():
        first = isinstance(node, Input)
        if _exact(node) or (first and (where.floats is None or where.floats.deployed is None)):
            return y
        by = _reach(node, where, z, y, own=not first)
        by = by + (by - by)  # NaN where it is infinite
        stays = _keeps_sign(node, z)
    lo, hi = y.lo - by, y.hi + by
    if stays is True:
        lo = torch.where(y.lo >= 0, lo.clamp(min=0), lo)
    elif stays is not False:
        lo = torch.where((y.lo >= 0) & stays, lo.clamp(min=0), lo)
    return Interval(lo, hi)


def _exact(node: Node) -> bool:
    """Whether its interval is exact in floating point, and so is what is computed, of numbers that are there already."""
    if isinstance(node, Activation):
        return node.curve is None and node.slope == 0
    return isinstance(node, NegativePart) or (isinstance(node, Map) and node.terms == 1 and not isinstance(node, Moment))


def lost(node: Node, where: Region, z: Sequence[Interval], y: Interval, A: Tensor) -> Tensor:
    """(S, B) how far rounding at this node may move a linear function A y of it, and the pull back of it.  NaN after overflow."""
    with torch.no_grad():
        by = _flat(_reach(node, where, z, y).expand_as(y.lo))
        unknown = (by - by).sum(1)  # not by a product, where a coefficient of 0 could hide it
    A = A.abs().reshape(*A.shape[:2], by.shape[1])
    return torch.einsum("sbn,bn->sb", A.expand(-1, len(by), -1), by) + unknown


def _flat(t: Tensor) -> Tensor:
    return t.reshape(len(t), math.prod(t.shape[1:]))


def _reach(node: Node, where: Region, z: Sequence[Interval], y: Interval, *, own: bool = True) -> Tensor:
    """(B or 1, *shape) how far the node's output may be from its function; infinite where the deployed network may overflow."""
    if isinstance(node, Product) and own:  # its boxes alone decide, and they are asked about on the way there and back
        known = where.reached.get(node)
        if known is None or known[0] is not z[0]:
            known = where.reached[node] = z[0], _found(node, where, z, y, own=True)
        return known[1]
    return _found(node, where, z, y, own=own)


def _found(node: Node, where: Region, z: Sequence[Interval], y: Interval, *, own: bool) -> Tensor:
    size = _size(node, where, z, y)
    by = _own(node, where, z, y, size) if own else torch.zeros_like(size)
    if where.floats is None or (kind := where.floats.deployed) is None:
        return by
    kind = kind.inside if node.inner else kind
    error, most = _deployed(node, where, kind, z, y, size)
    error = error * SAFE  # it is computed in floating point, too
    return torch.where(most * SAFE + error <= kind.largest, by + error, torch.inf)


def _largest(z: Interval) -> Tensor:
    return torch.maximum(-z.lo, z.hi)  # as lo <= hi


def _keeps_sign(node: Node, z: Sequence[Interval]) -> Tensor | bool:
    """Where what is computed is not below 0 if no exact value is: of numbers that are not, as rounding never passes 0."""
    match node:
        case Activation():
            return True if node.curve is not None and node.curve.positive else z[0].lo >= 0
        case Moment():  # a variance is not negative by any formula, or is cut off there
            return node.power == 2 and bool((z[0].lo >= 0).all())
        case Map():
            return all(bool((t.lo >= 0).all()) for t in z)
        case Lead() | Larger():
            return False
        case Sum():
            plain = all(bool((torch.as_tensor(c) >= 0).all()) for c in (*node.factors, node.offset))
            return plain and all(bool((t.lo >= 0).all()) for t in z)
        case _:
            return False


# --- sizes -------------------------------------------------------------------------------------------------------------------


def _floor(z: Tensor) -> Tensor:
    """At least what a product that underflows in a chord is worth, in units of rounding."""
    info = torch.finfo(z.dtype)
    return z.clamp(min=8 * math.sqrt(info.tiny) / info.eps)


def _size(node: Node, where: Region, z: Sequence[Interval], y: Interval) -> Tensor:
    """The sum of the absolute values of all terms of the node's output, elementwise, with the largest of each in its box."""
    sizes = [_largest(t) for t in z]
    match node:
        case Input():
            return _largest(y)
        case Product():
            w, b, *_ = _weights(node, where)
            total = sizes[0] if w is None else node.apply(_floor(sizes[0]), w)
            return total if b is None else total + b
        case Lead():
            n = node.shape[0]
            return sizes[0][:, :n] + sizes[0][:, n : 2 * n]
        case Larger() | Bilinear():
            return node.apply(*sizes)
        case Sum():
            terms = [_absolute(c) * t for c, t in zip(node.factors, sizes, strict=True)]
            return sum(terms[1:], terms[0]) + _absolute(node.offset)
        case Map(terms=None):  # coefficients that are computed: of a box that all elements share
            top = [_each(_most(t), t).expand_as(t) for t in sizes]
            return node.apply(*top)
        case Map():
            return torch.maximum(node.apply(*sizes), _largest(y))
        case Rounded():
            return sizes[0] + 1
        case Activation(curve=None):
            return sizes[0]
        case Activation(curve=Curve() as curve):
            return sizes[0] * _steepest(curve, z[0]) + _largest(y)
        case _:
            raise AssertionError(f"no rule of rounding for {type(node).__name__}")


def _absolute(value: Tensor | float) -> Tensor | float:
    return abs(value)


def _steepest(curve: Curve, z: Interval) -> Tensor:
    """Its largest slope on the box, of either sign, at least 1; infinite where it is not defined."""
    inside = torch.ones_like(z.lo, dtype=torch.bool) if curve.defined is None else curve.defined(z.lo, z.hi)
    least, most = curve.slopes(torch.where(inside, z.lo, 1.0), torch.where(inside, z.hi, 1.0))
    return torch.where(inside, torch.maximum(-least, most).clamp(min=1.0), torch.inf)


def _weights(node: Product, where: Region) -> Weights:
    """Once for a region."""
    if node not in where.sizes:
        w = b = None
        terms = 0
        if node.weight is not None:
            w = _largest(where.box(node.weight))
            terms = _terms(node, w.new_ones(1, *where.graph.nodes[node.inputs[0]].shape), w)
        if node.bias is not None:
            b = node.spread(_largest(where.box(node.bias)))
        where.sizes[node] = Weights(w, b, terms, None if w is None or not w.numel() else w.amax())
    return where.sizes[node]


class Weights(NamedTuple):
    """The largest |w| and |spread(b)| of a product, products that an output of it is the sum of, and the largest |w| of all."""

    w: Tensor | None
    b: Tensor | None
    terms: int
    top: Tensor | None


_TERMS: WeakKeyDictionary[Node, int] = WeakKeyDictionary()


def _terms(node: Product, z: Tensor, w: Tensor) -> int:
    """Products that an output is the sum of, at most: all coefficients are 0 or 1.  It depends on shapes alone."""
    if node not in _TERMS:
        _TERMS[node] = int(node.apply(z, torch.ones_like(w)).amax().item()) if z.numel() and w.numel() else 0
    return _TERMS[node]


# --- the arithmetic of the bound ---------------------------------------------------------------------------------------------


def _own(node: Node, where: Region, z: Sequence[Interval], y: Interval, size: Tensor) -> Tensor:
    info = torch.finfo(y.lo.dtype)
    count = float(LINES + 4 * len(where.graph.nodes))
    numbers = math.prod(node.shape) + sum(math.prod(where.graph.nodes[i].shape) for i in node.inputs)
    if isinstance(node, Product) and not node.dense and node.weight is not None:
        count += 8 * (numbers + math.prod(where.graph.value(node.weight).shape))
    else:
        count += (8 if isinstance(node, Bilinear) else 3) * numbers
    units = count * size
    if isinstance(node, Activation) and node.curve is not None:
        known = node.curve.rounds(_largest(z[0]), _largest(y)) if node.curve.rounds else size
        units = units + CURVES * (size + 1 + known)
    return info.eps / 2 * units + info.tiny * max(1, numbers) ** 2 * (1 + size)


# --- the deployed network ----------------------------------------------------------------------------------------------------


def _deployed(
    node: Node, where: Region, kind: Precision, z: Sequence[Interval], y: Interval, size: Tensor
) -> tuple[Tensor | float, Tensor]:
    """(how far what is computed in the type, in any order, may be from the node's function of what it was given, the largest
    number on the way)."""
    assert where.floats is not None
    narrowed = 1 if where.floats.narrowed else 0
    match node:
        case Input():
            return (kind.gamma(1) * size + 2 * kind.least if narrowed else 0.0), size
        case Product():
            _, _, terms, top = _weights(node, where)
            fixed = sum(CLOSE for p in (node.weight, node.bias) if isinstance(p, Tensor))
            most = 4.0 if top is None else 4 + top + _each(_most(_largest(z[0])), size)
            terms += node.among
            by = kind.of_sum(terms, 1 + narrowed + fixed) * size + 4 * (terms + 1) * kind.least * most
            return by, size if top is None else torch.maximum(size, top)
        case Bilinear():  # a factor before or after, and two constants in it
            terms = node.terms(*(t.lo for t in z))
            most = 4 + sum(_each(_most(_largest(t)), size) for t in z)
            return kind.of_sum(terms, 4) * size + 4 * (terms + 1) * kind.least * most, size
        case Moment():
            return _of_moment(node, kind, _largest(z[1]), size)
        case NegativePart() | Lead() | Larger() | Map(terms=1) | Activation(curve=None, slope=0.0):  # a maximum is exact
            return 0.0, size
        case Sum():
            roundings = _roundings(node) + node.among
            by = kind.gamma(roundings) * size + 4 * roundings * kind.least * (4 + size + _factor(node))
            return by, _before_scaling(node, z, size).clamp(min=_factor(node))
        case Map():
            assert node.terms is not None, "refused before"
            by = kind.of_sum(node.terms, 3) * size + 4 * (node.terms + 4) * kind.least * (4 + size)
            return by, size * node.terms
        case Activation(curve=None):
            below = (-z[0].lo).clamp(min=0)
            return (kind.gamma(4) * node.slope * below + 8 * kind.least * (1 + below)) * (below > 0), size
        case Activation():
            curve = node.curve
            assert curve is not None and curve.rounds is not None, "refused before"
            by = kind.gamma(1) * curve.rounds(_largest(z[0]), _largest(y))
            if curve.terms:
                more = kind.of_sum(curve.terms, 0)
                by = by * (1 + more) + more * (_largest(y) if curve.positive else 1 + _largest(y))
            by = by + 8 * kind.least
            if curve.slack:  # where the argument may round to the other side of the threshold
                by = by + torch.where(z[0].hi > curve.exact_to * (1 - 2.0**-4), curve.slack, 0.0).to(size)
            return by, torch.maximum(_largest(z[0]), _largest(y))
        case _:
            raise AssertionError(f"no rule of rounding for {type(node).__name__}")


def _of_moment(node: Moment, kind: Precision, z: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """z - mean(z) and its variance v, of n numbers up to M, by whatever formula:  γ_(4n+32) (size + 2 M^power).

    Means in any order, or as they run: (n + 5) u M.  Squares of z - mean:  γ_(n+4) v and twice the error of the mean, squared.
    Running sums of (z_k - mean before) (z_k - mean after):  γ_(n+2) v + 2 (n + 16) u M^2.  mean(z^2) - mean(z)^2:
    2 γ_(2n+8) M^2.  Merged parts: those of their means.  z a - mean a, with any a: up to 5 roundings of |z| and |mean|.
    """
    n = z.shape[-1]
    most = z.amax(-1, keepdim=True) ** node.power
    by = kind.gamma(4 * n + 32) * (size + 2 * most) + 8 * n * kind.least * (1 + z.amax(-1, keepdim=True))
    return by, torch.maximum(size, 2 * n * most)


def _most(t: Tensor) -> Tensor:
    """(B,) the largest element of each example; 0 where there is none."""
    return _flat(t).amax(1) if t[:1].numel() else t.new_zeros(len(t))


def _each(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1, *[1] * (like.dim() - 1))


def _roundings(node: Sum) -> int:
    """Roundings of one term, at most, with that of its constant factor; 0 for z and -z."""
    offset = isinstance(node.offset, Tensor) or node.offset != 0.0
    adds = len(node.factors) - 1 + (1 if offset else 0)
    if any(isinstance(c, Tensor) for c in node.factors):
        return adds + CONSTANTS
    if isinstance(node.offset, Tensor):
        adds += CLOSE
    scales = any(abs(c) != 1.0 for c in node.factors if not isinstance(c, Tensor))
    return adds + (1 if offset else 0) + (2 if scales else 0)


def _before_scaling(node: Sum, z: Sequence[Interval], size: Tensor) -> Tensor:
    """The largest number on the way where c z + b is computed as c (z + b / c), too."""
    c = node.factors[0]
    if len(node.factors) > 1 or not isinstance(c, Tensor):
        return size
    shift = torch.where(c == 0, 0.0, node.offset / torch.where(c == 0, 1.0, c))
    return torch.maximum(size, _largest(z[0]) + shift.abs())


def _factor(node: Sum) -> float:
    return max((float(torch.as_tensor(c).abs().max()) for c in node.factors if torch.as_tensor(c).numel()), default=0.0)
