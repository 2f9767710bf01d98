"""nodes.py - the nodes of the graph of a network; each bound has one rule for each kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nonsingular.network.curves import Curve
from nonsingular.network.derivatives import Derivatives, Kernel

Parameter = str | Tensor
"""A parameter's name in `named_parameters()`, or a constant tensor in its place."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on the signal.  inputs: numbers of earlier nodes.  shape: of its output, without the batch.

    How it is computed in floating point, where that differs from an operation of its own: `among`: how many more roundings its
    terms may meet, as it is computed together with others.  `inner`: its result stays in the type in which sums are added up.
    """

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    among: int = field(default=0, kw_only=True)
    inner: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Product(Node):
    """y = apply(z, w) + spread(b), with `apply` linear in z and in w with coefficients 0 and 1: Linear, Conv, a scale."""

    apply: Callable[[Tensor, Tensor], Tensor]
    weight: Parameter | None
    bias: Parameter | None
    spread: Callable[[Tensor], Tensor]
    dense: bool = False
    """A Linear layer on a flat signal: every element of w is used once."""
    scales: bool = False
    """z * spread(w): every element of z is used once."""
    derivatives: Callable[[tuple[int, ...]], Derivatives | None] = lambda w_shape: None
    """From the weight's shape: the derivatives of `apply` written out, where they are known."""
    kernel: Kernel | None = None
    """How a convolution in two dimensions walks, if its weight is the parameter itself."""
    see: Callable[[Tensor], Tensor] = lambda w: w
    """Where it scales: what it multiplies z with."""


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """y = sum_i factors_i * z_i + offset, elementwise with broadcasting, with constant factors and offset."""

    factors: tuple[Tensor | float, ...]
    offset: Tensor | float = 0.0

    def apply(self, *z: Tensor) -> Tensor:
        terms = [c * t for c, t in zip(self.factors, z, strict=True)]
        return sum(terms[1:], terms[0]) + self.offset


@dataclass(frozen=True, eq=False)
class NegativePart(Sum):
    """max(-z, 0) as max(z, 0) - z: its inputs are max(z, 0) and z, its factors 1 and -1; its box is that of max(-z, 0)."""


@dataclass(frozen=True, eq=False)
class Lead(Sum):
    """b - a of pairs: its input holds 2 n or 2 n + 1 rows, the first n are a, the next b.  A last one waits for its turn."""

    def apply(self, *z: Tensor) -> Tensor:
        n = self.shape[0]
        return z[0][:, n : 2 * n] - z[0][:, :n]


@dataclass(frozen=True, eq=False)
class Larger(Sum):
    """max(a, b) of pairs as relu(b - a) + a: its inputs are relu(b - a) and the rows of a `Lead`, of which the last may wait.

    Its box is that of max(a, b).
    """

    def apply(self, *z: Tensor) -> Tensor:
        lead, rows = z
        n = lead.shape[1]
        return torch.cat([lead + rows[:, :n], rows[:, 2 * n :]], 1)


@dataclass(frozen=True, eq=False)
class Within(Sum):
    """Its one input times 1, whose elements are known to lie in [lo, hi], wherever the network's input and weights are."""

    lo: float = -math.inf
    hi: float = math.inf


@dataclass(frozen=True, eq=False)
class Bilinear(Node):
    """y = apply(a, b), linear in each of its two inputs with coefficients 0 and 1: products of two signals, or sums of these.

    factors: (a, b) -> the two factors of every product, which broadcast to (N, *shape, products that are added up).
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    factors: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

    def terms(self, a: Tensor, b: Tensor) -> int:
        """Products that an output is the sum of, for inputs of these shapes."""
        return self.factors(a[:1], b[:1])[0].shape[-1]


@dataclass(frozen=True, eq=False)
class Map(Node):
    """y = apply(*z): linear, no offset, no negative coefficient.  `moves_only`: elements of its one input, each once.

    places: it does the same at every place of the last two dimensions.  back: its adjoint, where that is quicker than asking for
    the derivative: (S, B, *shape) -> (S, B, *input).
    kernel: how it walks over the last two dimensions of its input, if it does the same everywhere but for zeros beyond.  Then
        `back` takes windows of any size, and gives all that they read.
    terms: elements that an output is at most the sum of, times one constant; 1: it is one of them, or 0.  None: not known.
    """

    apply: Callable[..., Tensor]
    moves_only: bool = False
    places: bool = False
    back: Callable[[Tensor], Tensor] | None = None
    kernel: Kernel | None = None
    terms: int | None = None


@dataclass(frozen=True, eq=False)
class Moment(Map):
    """Its first input, which is what is left of the second, z, without its mean over the last dimension (`power` 1), or the
    variance of that (2): computed by any of the usual formulas, which lose more than their operations in order would."""

    power: int = 1


@dataclass(frozen=True, eq=False)
class Activation(Node):
    """y = apply(z), elementwise.

    `hinge`: max(z, slope z) with 0 <= slope <= 1.  `smooth`: convex and concave in turn, as `curve` says.  `steps`: `Rounded`.
    """

    apply: Callable[[Tensor], Tensor]
    form: Literal["hinge", "smooth", "steps"]
    slope: float = 0.0
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class Rounded(Activation):
    """The nearest whole number.  Bounds take what is within `tie` of the middle between two for either of them.

    A network in floating point rounds such a number up or down by the order of its sums.
    """

    tie: float = 2.0**-12


@dataclass(frozen=True, eq=False)
class Windows(Map):
    """(count, *shape): the elements that a maximum compares, those of one window along the first dimension."""


@dataclass(frozen=True, eq=False)
class Settled(Map):
    """The maximum itself, where its windows end; what is applied to all of their elements may be applied here instead."""
