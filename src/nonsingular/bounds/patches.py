"""patches.py - coefficients that are zero outside a window, as those of hidden neurons of a convolution.

Each function has a window of its own, all of one size: that of its neuron, then what that sees of every earlier layer.  A node
restricted to windows is a node of the same kind, with one example for each function, so the rules of linear.py serve both.
Outside its input a convolution sees zeros, which add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.bounds.activations import lines, of_input, stacked, through_lines
from nonsingular.bounds.interval import Boxed, Region
from nonsingular.bounds.maxima import behind, through_larger
from nonsingular.bounds.products import charges, hardly_moves, of_constant, pull_all, through_product
from nonsingular.network.derivatives import Kernel, of_convolution, of_scale
from nonsingular.network.nodes import Activation, Larger, Lead, Map, Node, Product, Sum
from nonsingular.threat.interval import Interval

POINT = Kernel((1, 1), (1, 1), (0, 0), (1, 1), 1)
"""The walk of what does the same at every place."""
Pair = tuple[int, int]
Choose = Callable[[int, Tensor], Tensor]
"""(number of a hinge, its default slopes (1, B, *shape)) -> the lower slopes to use, (S or 1, B, *shape).

Of a product of signals: the shares of its planes, as `through_bilinear` takes them."""


@dataclass(frozen=True, eq=False)
class Places:
    """Rows and columns in the bounded node: P different ones, and which of these each of N functions has."""

    row: Tensor
    column: Tensor
    of: Tensor
    ends: tuple[Pair, Pair]
    """The first and the last row, and column."""

    @staticmethod
    def at(place: Tensor, width: int) -> Places:
        """place: (N,) row * width + column."""
        found, of = place.unique(return_inverse=True)
        row, column = found // width, found % width
        ends = [(int(t.min()), int(t.max())) for t in (row, column)]
        return Places(row, column, of, (ends[0], ends[1]))

    def spread(self, t: Tensor) -> Tensor:
        """(N, ...) from (P, ...)."""
        return t.index_select(0, self.of)


@dataclass(frozen=True, eq=False)
class Patches:
    """values: (1, N, ..., h, w), the coefficients of function n in the window that begins at (step * place + start); the others
    are 0.  It may reach beyond the signal, with zeros there."""

    values: Tensor
    places: Places
    step: Pair = (1, 1)
    start: Pair = (0, 0)

    @property
    def size(self) -> Pair:
        return self.values.shape[-2], self.values.shape[-1]

    def of(self, t: Tensor) -> Tensor:
        """(N, ..., h, w) the elements of t (1, ..., H, W) in the windows; 0 beyond it."""
        rows, columns = (self._firsts(d, t.shape[d - 2]) for d in (0, 1))
        t = F.pad(t[0], [*columns[1], *rows[1]]) if any((*columns[1], *rows[1])) else t[0]
        (h, w), n = self.size, t.dim() - 2
        views = t.unfold(n, h, 1).unfold(n + 1, w, 1).movedim((n, n + 1), (0, 1))
        return self.places.spread(views[rows[0], columns[0]])

    def _firsts(self, d: int, size: int) -> tuple[Tensor, Pair]:
        """(where windows begin along dimension d after padding (P,), that padding)."""
        first, last = (self.step[d] * end + self.start[d] for end in self.places.ends[d])
        pad = max(0, -first), max(0, last + self.size[d] - size)
        place = (self.places.row, self.places.column)[d]
        return self.step[d] * place + (self.start[d] + pad[0]), pad

    def inside(self, shape: Sequence[int]) -> Patches:
        """With zeros beyond a signal of this shape."""
        values = self.values
        for d in (0, 1):
            firsts, pad = self._firsts(d, shape[d - 2])
            if any(pad):
                at = firsts[:, None] - pad[0] + torch.arange(self.size[d], device=values.device)
                known = self.places.spread(((at >= 0) & (at < shape[d - 2])).to(values.dtype))
                ends = (-1, 1) if d == 0 else (1, -1)
                values = values * known.view(-1, *[1] * (values.dim() - 4), *(n if n == 1 else self.size[d] for n in ends))
        return replace(self, values=values)

    def dense(self, shape: Sequence[int]) -> Tensor:
        """(N, 1, *shape) with the zeros written out."""
        values = self.values[0]
        for d in (1, 0):  # along columns, then along rows
            size, dim = shape[d - 2], values.dim() - 2 + d
            firsts, pad = self._firsts(d, size)
            at = torch.arange(size, device=values.device) - (firsts[:, None] - pad[0])  # (P, size) where in the window
            known = (at >= 0) & (at < self.size[d])
            values = F.pad(values, (0, 1) if d == 1 else (0, 0, 0, 1))
            index = self.places.spread(torch.where(known, at, self.size[d]))  # the last one is 0
            index = index.view(-1, *[1] * (dim - 1), size, *[1] * (1 - d))
            sizes = list(values.shape)
            sizes[dim] = size
            values = values.gather(dim, index.expand(sizes))
        return values[:, None]

    def plus(self, other: Patches) -> Patches | None:
        """The sum of both; None where their windows move apart."""
        if self.step != other.step:
            return None
        start = tuple(map(min, self.start, other.start))
        stop = tuple(max(p.start[d] + p.size[d] for p in (self, other)) for d in (0, 1))
        parts = [
            F.pad(p.values, [n for d in (1, 0) for n in (p.start[d] - start[d], stop[d] - p.start[d] - p.size[d])])
            if (p.start, p.size) != (start, (stop[0] - start[0], stop[1] - start[1]))
            else p.values
            for p in (self, other)
        ]
        return replace(self, values=parts[0] + parts[1], start=(start[0], start[1]))

    def kept(self, inside: Boxed, i: int, maps: Callable[[Boxed, int], Tensor]) -> list[Tensor]:
        """`of` each of several maps (1, M, ..., H, W) of node i, which are kept for other functions."""
        return list(self.of(inside.keep(maps, i)).unbind(1))

    def both(self) -> Patches:
        """These functions, and behind them the same with the other sign."""
        values = torch.cat([self.values, -self.values], 1)
        return replace(self, values=values, places=replace(self.places, of=self.places.of.repeat(2)))

    def __getitem__(self, at: slice) -> Patches:
        """Some of the functions."""
        return replace(self, values=self.values[:, at], places=replace(self.places, of=self.places.of[at]))

    def __neg__(self) -> Patches:
        return replace(self, values=-self.values)


def unit(chosen: Tensor, shape: tuple[int, ...], like: Tensor) -> Patches:
    """The functions that are one element each of (..., H, W), by number (N,)."""
    area = math.prod(shape[-2:])
    A = like.new_zeros(len(chosen), math.prod(shape[:-2])).scatter_(1, (chosen // area)[:, None], 1.0)
    return Patches(A.view(1, len(chosen), *shape[:-2], 1, 1), Places.at(chosen % area, shape[-1]))


def walk(node: Node, shapes: Sequence[tuple[int, ...]]) -> Kernel | None:
    """How a node walks over its inputs; None where no rule knows.  shapes: of its inputs."""
    match node:
        case Product(kernel=kernel) if kernel is not None:
            return kernel
        case Activation() | Lead() | Larger():
            return POINT
        case Product(scales=True) | Product(weight=None) if shapes[0] == node.shape:
            return POINT
        case Sum(factors=factors, offset=offset) if all(s == node.shape for s in shapes):
            return POINT if all(_even(c) for c in (*factors, offset)) else None
        case Map(places=True) if all(s[-2:] == node.shape[-2:] for s in shapes):
            return POINT
        case Map(kernel=kernel):
            return kernel
        case _:
            return None


def _even(c: Tensor | float) -> bool:
    """Whether a constant is the same at every place."""
    return not isinstance(c, Tensor) or c.dim() < 2 or c.shape[-2:] == (1, 1)


def numbers_in_windows(where: Region, number: int) -> int:
    """Numbers that one function of node `number` needs at most, if it lives in a window at first; 0 if not.

    Coefficients, and with a kernel that moves all that its windows see.
    """
    nodes = where.graph.nodes
    if len(nodes[number].shape) < 3:
        return 0
    found: dict[int, tuple[Pair, Pair, Pair]] = {number: ((1, 1), (1, 1), (0, 0))}
    weights = [n.weight for n in nodes[: number + 1] if isinstance(n, Product) and not n.dense and where.moves(n.weight)]
    kernels = max((where.graph.value(w).numel() for w in weights if w is not None), default=0)
    most = moved = steps = 0
    for i in range(number, 0, -1):
        if i not in found:
            continue
        node, at = nodes[i], found[i]
        shapes = [nodes[k].shape for k in node.inputs]
        kernel = walk(node, shapes)
        most = max(most, math.prod(node.shape[:-2]) * min(math.prod(at[0]), math.prod(node.shape[-2:])))
        if kernel is None or covering(at[0], node.shape):
            return max(moved, kernels, 3 * max([most, *(math.prod(n.shape) for n in nodes[:i])])) if steps > 1 else 0
        steps += 1
        if isinstance(node, Product) and where.moves(node.weight):
            moved = max(moved, kernels + math.prod(at[0]) * math.prod(kernel.size) * shapes[0][0])
        found.update(dict.fromkeys(node.inputs, before(kernel, *at)))
    return max(moved, 3 * most, 3 * math.prod(nodes[0].shape[:-2]) * math.prod(found[0][0]) if 0 in found else 0)


def covering(size: Pair, shape: Sequence[int]) -> bool:
    """Whether windows of this size hold nearly the whole signal, so that zeros cost less than windows."""
    return 4 * math.prod(size) > 3 * math.prod(shape[-2:])


def before(kernel: Kernel, size: Pair, step: Pair, start: Pair) -> tuple[Pair, Pair, Pair]:
    """(size, step, start) of the windows that a node reads, from those of its output."""
    found = [
        ((n - 1) * s + d * (k - 1) + 1, a * s, b * s - p)
        for n, a, b, s, p, d, k in zip(
            size, step, start, kernel.stride, kernel.padding, kernel.dilation, kernel.size, strict=True
        )
    ]
    (h, a, b), (w, c, d) = found
    return (h, w), (a, c), (b, d)


def through_patches(
    node: Node, i: int, inside: Boxed, A: Patches, choose: Choose | None
) -> tuple[Sequence[Patches], Tensor | float] | None:
    """As `through`, of functions of node i that live in windows; None where no rule knows how.  inside: boxes of all nodes.

    choose: (number of a hinge, default slopes (1, N, *window)) -> those of the N functions; None: the default.
    """
    shapes = [inside.where.graph.nodes[k].shape for k in node.inputs]
    kernel = walk(node, shapes)
    if kernel is None:
        return None
    size, step, start = before(kernel, A.size, A.step, A.start)
    read = replace(A, values=A.values.new_empty(1).expand(1, 1, *size), step=step, start=start)
    found = _values(node, i, inside, A, read, choose)
    if found is None:
        return None
    parts = [replace(read, values=v) for v in found[0]]
    if any(kernel.padding):
        parts = [p.inside(shape) for p, shape in zip(parts, shapes, strict=True)]
    return parts, found[1]


def _values(
    node: Node, i: int, inside: Boxed, A: Patches, read: Patches, choose: Choose | None
) -> tuple[Sequence[Tensor], Tensor | float] | None:
    """(coefficients of what the windows hold of each input, constant).  read: those windows."""
    where, boxes, values = inside.where, inside.boxes, A.values
    match node:
        case Product():
            z = boxes[node.inputs[0]]
            made = _restricted(node, inside, A.size, read.size)
            if made is None:
                return None
            if hardly_moves(node, where):
                return through_product(made, where, z, values, inside.keep(charges, i).of(A.of, read.of))
            if where.moves(node.weight):
                z = Interval(read.of(z.lo), read.of(z.hi))
            return through_product(made, where, z, values)
        case Activation():
            if choose is None:
                ends = A.kept(inside, i, stacked)
            else:
                z = boxes[node.inputs[0]]
                ends = lines(
                    node, Interval(read.of(z.lo), read.of(z.hi)), partial(choose, i), of_input(where.graph.nodes, i)
                ).ends
            part, offset = through_lines(node, ends, values)
            return (part,), offset
        case Lead():
            return (behind(values, boxes[node.inputs[0]].lo.shape[1]),), 0.0
        case Larger():
            z = [Interval(read.of(boxes[k].lo), read.of(boxes[k].hi)) for k in node.inputs]
            return through_larger(z, values)
        case Sum(factors=factors, offset=offset):
            moved = isinstance(offset, Tensor) or offset != 0.0
            constant = of_constant(values, offset) if moved else 0.0
            return [values * c if isinstance(c, Tensor) or c != 1.0 else values for c in factors], constant
        case Map(back=back) if back is not None:
            return (back(values),), 0.0
        case Map():
            return pull_all(node.apply, [(*boxes[k].lo.shape[1:-2], *read.size) for k in node.inputs], values), 0.0
        case _:
            raise AssertionError(f"no rule in windows for {type(node).__name__}")


def _restricted(node: Product, inside: Boxed, size: Pair, read: Pair) -> Product | None:
    """The node on a window of its output of this size; None where it depends on the place.  read: the size of what it reads."""
    graph, shape = inside.where.graph, (*node.shape[:-2], *size)
    if node.bias is not None and not _even(node.spread(graph.value(node.bias))):
        return None
    if node.kernel is not None:
        inner = (graph.nodes[node.inputs[0]].shape[0], *read)
        walks = {"stride": node.kernel.stride, "padding": 0, "dilation": node.kernel.dilation, "groups": node.kernel.groups}
        apply = partial(_convolved, walks)
        return replace(node, shape=shape, apply=apply, derivatives=partial(of_convolution, z_shape=inner, **walks))
    if node.weight is not None and not _even(node.see(graph.value(node.weight))):
        return None
    return replace(node, shape=shape, derivatives=partial(of_scale, spread=node.see, shape=shape))


def _convolved(walks: Mapping[str, Any], z: Tensor, w: Tensor) -> Tensor:
    return torch.conv2d(z, w, None, **walks)
