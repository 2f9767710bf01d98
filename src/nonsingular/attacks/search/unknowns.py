"""unknowns.py - what the search of apgd.py moves: a box [-1, 1]^n of unknowns for each example, and the margins there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import Tensor

from nonsingular.network.calling import gradient
from nonsingular.network.margins import margins
from nonsingular.network.passes import count
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

LEAK = 0.001
"""What is added to the derivative of every activation: enough to give an inactive neuron a sign, too little to outvote others."""

Loss = Callable[[Tensor], Tensor]
"""(R, B, K) margins over the other classes, infinite at y -> (R, B), to be made small."""


@dataclass(frozen=True, eq=False)
class Space(ABC):
    """The margins of B examples as a function of v in [-1, 1]^n: `free` inputs first, then the unknowns of the weights.

    x: (B, *input), and box around it.  y: (B,).  origin: (B, n) the unperturbed network at x.
    free: the size of an input, or 0 if inputs do not move.
    groups: (n,) numbers 0, 1, ... of unknowns that a jump moves together; -1 for those that never jump.
    """

    x: Tensor
    box: Interval
    y: Tensor
    origin: Tensor
    free: int
    groups: Tensor

    @abstractmethod
    def logits(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, K) logits at inputs (N, *input) and unknowns (N, n - free), the examples in turn N / B times."""

    @abstractmethod
    def weights(self, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        """The weights (B, *shape), inside their boxes, of the unknowns (B, n - free) at (B, *input)."""

    @abstractmethod
    def unknowns_of(self, point: Perturbation) -> Tensor:
        """(B, n - free) the unknowns of a point's weights at its inputs; missing weights are those of the model."""

    def part(self, at: Tensor) -> Self:
        """The same for the examples `at`, in their order and each once."""
        if len(at) == len(self.y):
            return self
        box = Interval(self.box.lo[at], self.box.hi[at])
        return replace(self, x=self.x[at], box=box, y=self.y[at], origin=self.origin[at])

    @property
    def row(self) -> int:
        """Numbers that one row (example, run) takes in a pass; what is done at a time is cut by it."""
        return self.origin.shape[1]

    def coarse(self) -> Space:
        """A space of fewer unknowns, whose points `refined` makes points of this one; itself, if there is none."""
        return self

    def refined(self, v: Tensor) -> Tensor:
        """(R, B, n') in the space that this is the coarse one of, for v (R, B, n): the same inputs and weights."""
        return v

    @property
    def blocks(self) -> list[slice]:
        """Columns that share a step size: inputs, weights."""
        return [slice(a, b) for a, b in pairwise(sorted({0, self.free, self.origin.shape[1]}))]

    def inputs(self, v: Tensor) -> Tensor:
        """(R, B, *input) at v (R, B, free or more); they may leave their box by rounding."""
        if not self.free:
            return self.box.lo.expand(len(v), *self.x.shape)
        return torch.addcmul(*self._middle, v[..., : self.free].unflatten(2, self.x.shape[1:]))

    @cached_property
    def _middle(self) -> tuple[Tensor, Tensor]:
        """The centre and half the width of the box of inputs."""
        return (self.box.lo + self.box.hi) / 2, (self.box.hi - self.box.lo) / 2

    def margins(self, v: Tensor) -> Tensor:
        """(R, B, K) margins at v (R, B, n), infinite at y."""
        y = self.y.repeat(len(v))
        count(forward=len(y))
        u, w = v.split([self.free, v.shape[2] - self.free], 2)
        found = margins(self.logits(self.inputs(u).flatten(0, 1), w.flatten(0, 1)), y)
        return found.scatter(1, y[:, None], torch.inf).view(*v.shape[:2], -1)

    def slope(self, v: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Value (R, B) and gradient of a loss."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            value = loss(self.margins(v))
            count(backward=value.numel())
            (g,) = gradient(value.sum(), [v])
        return value.detach(), g

    def at(self, point: Perturbation) -> Tensor:
        """(B, n) the unknowns of a point of the ball."""
        u = scaled(point.x.flatten(1), self.box.lo.flatten(1), self.box.hi.flatten(1))[:, : self.free]
        return torch.cat([u, self.unknowns_of(point)], 1).clamp_(-1, 1)

    def realise(self, v: Tensor) -> Perturbation:
        """The point of the ball with the unknowns v (B, n); the inputs of the origin are x to the last bit."""
        x = torch.clamp(self.inputs(v[None])[0], self.box.lo, self.box.hi)
        rest = (v[:, : self.free] == self.origin[:, : self.free]).all(1)
        x[rest] = self.x[rest]  # without rounding
        return Perturbation(x, self.weights(x, v[:, self.free :]), "sample")


def scaled(t: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """t in lo..hi as -1..1; 0 where these are equal."""
    return torch.where(hi > lo, (2 * t - lo - hi) / (hi - lo), 0.0)


def of_channels(g: Tensor, columns: Mapping[str, slice], boxes: Mapping[str, Interval]) -> None:
    """In place: what has no derivative in g (R, B, n) gets LEAK times the sum of its output channel's."""
    for name, at in columns.items():
        shape = boxes[name].lo.shape
        if len(shape) > 1:
            each = g[..., at].unflatten(-1, (shape[0], -1))
            each.copy_(torch.where(each == 0, LEAK * each.sum(-1, keepdim=True), each))


def leaky(rho: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same values, with LEAK more in the derivative."""
    return lambda v: cast(Tensor, _Leak.apply(rho(v), v)) if torch.is_grad_enabled() else rho(v)


def leaky_relu(v: Tensor) -> Tensor:
    """The same values as relu, with a derivative of LEAK where it is 0: one pass backward."""
    return cast(Tensor, _LeakyRelu.apply(v)) if torch.is_grad_enabled() else v.relu()


class _LeakyRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = v.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (y,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(g, y, LEAK, False)  # asks for the sign alone


class _Leak(torch.autograd.Function):
    """(y, v) -> y, as if y were y + LEAK (v - v.detach())."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, v: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return g, LEAK * g
