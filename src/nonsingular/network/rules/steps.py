"""steps.py - several nodes that one call becomes, written as they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonsingular.network import curves
from nonsingular.network.calls import Call, Signal
from nonsingular.network.curves import Curve
from nonsingular.network.nodes import Activation, Bilinear, Map, Node, Sum, Within


class Steps:
    """The nodes of a call, in order.  A signal of a node among them has a number below 0."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.nodes: list[Node] = []

    def put(self, kind: type[Node], inputs: tuple[Signal, ...], shape: tuple[int, ...], *rest: Any, **more: Any) -> Signal:
        numbers = tuple(z.number if z.number >= 0 else ~z.number - len(self.nodes) for z in inputs)
        self.nodes.append(kind(self.call.name, numbers, shape, *rest, **more))
        return Signal(~(len(self.nodes) - 1), shape)

    def last(self, nodes: list[Node]) -> Signal:
        """Nodes that were made for the one before them."""
        self.nodes += nodes
        return Signal(~(len(self.nodes) - 1), nodes[-1].shape)

    @property
    def before(self) -> Signal:
        """The signal before, as nodes that follow it name it."""
        return Signal(-1, self.nodes[-1].shape)

    def affine(self, z: Signal, factor: Tensor | float, offset: Tensor | float = 0.0) -> Signal:
        return self.put(Sum, (z,), z.shape, (factor,), offset)

    def map(
        self, z: Signal, shape: tuple[int, ...], apply: Callable[[Tensor], Tensor], once: bool = False, terms: int = 1
    ) -> Signal:
        """once: it moves elements, each once.  terms: elements that an output is the sum of, at most, times one constant."""
        return self.put(Map, (z,), shape, apply, once, terms=terms)

    def reshape(self, z: Signal, shape: tuple[int, ...]) -> Signal:
        return z if z.shape == shape else self.map(z, shape, lambda t: t.reshape(len(t), *shape), True)

    def curve(self, z: Signal, apply: Callable[[Tensor], Tensor], curve: Curve) -> Signal:
        return self.put(Activation, (z,), z.shape, apply, "smooth", curve=curve)

    def square(self, z: Signal) -> Signal:
        return self.curve(z, torch.square, curves.power(2))

    def times(self, a: Signal, b: Signal) -> Signal:
        """a b, elementwise with broadcasting, of signals of as many dimensions; the square of one signal."""
        if a.number == b.number and a.shape == b.shape:
            return self.square(a)
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        return self.put(Bilinear, (a, b), shape, torch.mul, _alone)

    def matmul(self, a: Signal, b: Signal) -> Signal:
        """torch.matmul of signals of as many dimensions, two at least."""
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.put(Bilinear, (a, b), shape, torch.matmul, _paired)

    def within(self, z: Signal, lo: float = -math.inf, hi: float = math.inf) -> Signal:
        return self.put(Within, (z,), z.shape, (1.0,), lo=lo, hi=hi)


def _alone(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a[..., None], b[..., None]


def _paired(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a_ik and b_kj at (i, j, k)."""
    return a[..., :, None, :], b.mT[..., None, :, :]
