"""cuts.py - coefficients that are zero outside a window of the last two dimensions, as those of hidden neurons of a convolution.

The functions of one window reach a window of every earlier layer: their receptive field.  A node restricted to a window is a node
of the same kind, so the rules of linear.py serve both.  Outside its input a convolution sees zeros, which add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network.derivatives import of_convolution, of_scale
from nonsingular.network.nodes import Activation, Larger, Lead, Map, Node, Product, Sum, Window
from nonsingular.threat.interval import Interval


@dataclass(frozen=True, eq=False)
class Cut:
    """values: (..., h, w), the part of coefficients (..., H, W) inside `window`; the others are 0."""

    values: Tensor
    window: Window

    def dense(self, shape: Sequence[int]) -> Tensor:
        """With the zeros written out.  shape: of one coefficient, (..., H, W)."""
        (top, bottom), (left, right) = self.window
        return F.pad(self.values, (left, shape[-1] - right, top, shape[-2] - bottom))

    def joined(self, other: Cut) -> Cut:
        """The sum of both."""
        if self.window == other.window:
            return replace(self, values=self.values + other.values)
        window = tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(self.window, other.window, strict=True))
        ours, theirs = (
            F.pad(c.values, [abs(a - b) for d in (1, 0) for a, b in zip(c.window[d], window[d], strict=True)])
            for c in (self, other)
        )
        return Cut(ours + theirs, (window[0], window[1]))


def cut_of(t: Tensor, window: Window) -> Tensor:
    """(..., h, w) the elements of (..., H, W) in a window, 0 outside of t."""
    for dim, (start, stop) in zip((-2, -1), window, strict=True):
        size = t.shape[dim]
        first, last = min(max(start, 0), size), max(min(stop, size), 0)
        t = t.narrow(dim, first, max(last - first, 0))
        if last <= first:  # in the padding alone
            first, last = start, start
        if (first, last) != (start, stop):
            pad = (first - start, stop - last)
            t = F.pad(t, pad if dim == -1 else (0, 0, *pad))
    return t


def cut_spread(t: Tensor, window: Window) -> Tensor:
    """The same of what is spread over (..., H, W), for a window inside: a dimension of 1 stands for all places."""
    for dim, (start, stop) in zip((-2, -1), window, strict=True):
        if t.dim() >= -dim and t.shape[dim] > 1:
            t = t.narrow(dim, start, stop - start)
    return t


def whole(shape: Sequence[int]) -> Window:
    """The window of everything."""
    return (0, shape[-2]), (0, shape[-1])


@dataclass(frozen=True, eq=False)
class Part:
    """A node restricted to a window of its output.  windows: what it reads of each input, which may reach beyond that."""

    node: Node
    windows: tuple[Window, ...]

    def boxes(self, z: Sequence[Interval]) -> list[Interval]:
        """The boxes of what it reads."""
        return [Interval(cut_of(b.lo, w), cut_of(b.hi, w)) for b, w in zip(z, self.windows, strict=True)]

    def parts(self, values: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Cut]:
        """Coefficients of what it reads, as those of its inputs: what lies beyond them multiplies zeros."""
        found: list[Cut] = []
        for A, window, shape in zip(values, self.windows, shapes, strict=True):
            inside = tuple((max(a, 0), min(b, size)) for (a, b), size in zip(window, shape[-2:], strict=True))
            if any(a >= b for a, b in inside):  # it reads padding alone
                found.append(Cut(A.new_zeros(*A.shape[:-2], 1, 1), ((0, 1), (0, 1))))
                continue
            within = tuple((a - w[0], b - w[0]) for (a, b), w in zip(inside, window, strict=True))
            found.append(Cut(cut_of(A, (within[0], within[1])), (inside[0], inside[1])))
        return found


def part_of(node: Node, shapes: Sequence[tuple[int, ...]], window: Window) -> Part | None:
    """The node restricted to a window of its output; None where no rule knows how.  shapes: of its inputs."""
    shape = (*node.shape[:-2], *(stop - start for start, stop in window))
    here = (window,) * len(node.inputs)
    match node:
        case Product(kernel=kernel) if kernel is not None:
            walk = zip(window, kernel.stride, kernel.padding, kernel.dilation, kernel.size, strict=True)
            reach = tuple((start * s - p, (stop - 1) * s - p + d * (k - 1) + 1) for (start, stop), s, p, d, k in walk)
            inner = (shapes[0][0], *(stop - start for start, stop in reach))
            settings = {"stride": kernel.stride, "padding": 0, "dilation": kernel.dilation, "groups": kernel.groups}
            apply = partial(_convolved, settings)
            made = replace(
                node, shape=shape, apply=apply, derivatives=partial(of_convolution, z_shape=inner, **settings),
                spread=_cut_after(node.spread, window),
            )  # fmt: skip
            return Part(made, ((reach[0], reach[1]),))
        case Product(scales=True) | Product(weight=None) if shapes[0] == node.shape:
            spread = _cut_after(node.spread, window)
            scale = _cut_after(node.see, window)
            derivatives = partial(of_scale, spread=scale, shape=shape)
            return Part(replace(node, shape=shape, spread=spread, apply=partial(_scaled, scale), derivatives=derivatives), here)
        case Activation():
            return Part(replace(node, shape=shape), here)
        case Lead() | Larger():
            return Part(replace(node, shape=shape), here)
        case Sum() if all(s == node.shape for s in shapes):
            factors = tuple(cut_spread(c, window) if isinstance(c, Tensor) else c for c in node.factors)
            offset = cut_spread(node.offset, window) if isinstance(node.offset, Tensor) else node.offset
            return Part(replace(node, shape=shape, factors=factors, offset=offset), here)
        case Map(places=True) if all(s[-2:] == node.shape[-2:] for s in shapes):
            return Part(replace(node, shape=shape), here)
        case Map(cut=cut) if cut is not None:
            apply, reach = cut(window)
            return Part(replace(node, shape=shape, apply=apply), (reach,))
        case _:
            return None


def _convolved(settings: Mapping[str, Any], z: Tensor, w: Tensor) -> Tensor:
    return torch.conv2d(z, w, None, **settings)


def _scaled(scale: Callable[[Tensor], Tensor], z: Tensor, w: Tensor) -> Tensor:
    return z * scale(w)


def _cut_after(spread: Callable[[Tensor], Tensor], window: Window) -> Callable[[Tensor], Tensor]:
    return lambda w: cut_spread(spread(w), window)


def tiles(chosen: Tensor, shape: tuple[int, ...], side: int) -> list[tuple[Tensor, Window]]:
    """These elements of (..., H, W), by number, in squares of `side`; each with the window that holds it."""
    H, W = shape[-2:]
    row, column = chosen // W % H, chosen % W
    square = row // side * -(-W // side) + column // side
    order = square.argsort(stable=True)
    cuts = square[order].unique_consecutive(return_counts=True)[1].tolist()
    found: list[tuple[Tensor, Window]] = []
    for at in order.split(cuts):
        ends = [(int(t[at].min()), int(t[at].max()) + 1) for t in (row, column)]
        found.append((chosen[at], (ends[0], ends[1])))
    return found


def unit(chosen: Tensor, shape: tuple[int, ...], window: Window, like: Tensor) -> Cut:
    """(S, 1, ..., h, w) the functions that are one element each: those of these numbers, which lie in the window."""
    H, W = shape[-2:]
    (top, bottom), (left, right) = window
    h, w = bottom - top, right - left
    lead, row, column = chosen // (H * W), chosen // W % H - top, chosen % W - left
    A = like.new_zeros(len(chosen), torch.Size(shape[:-2]).numel() * h * w)
    A.scatter_(1, (lead * h * w + row * w + column)[:, None], 1.0)
    return Cut(A.view(len(chosen), 1, *shape[:-2], h, w), window)
