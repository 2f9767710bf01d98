"""nodes.py - what a network is read into: a graph of these, each with one rule in each bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from nonsingular.network.curves import Curve
from nonsingular.network.derivatives import Derivatives

Parameter = str | Tensor
"""A parameter's name in `named_parameters()`, or a constant tensor in its place."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on the signal.  inputs: numbers of earlier nodes.  shape: of its output, without the batch."""

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


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
class Map(Node):
    """y = apply(*z): linear, no offset, no negative coefficient.  `moves_only`: elements of its one input, each once.

    terms: elements that an output is at most the sum of, times one constant; 1: it is one of them, or 0.  None: not known.
    """

    apply: Callable[..., Tensor]
    moves_only: bool = False
    terms: int | None = None


@dataclass(frozen=True, eq=False)
class Activation(Node):
    """y = apply(z), elementwise.

    `hinge`: max(z, slope z) with 0 <= slope <= 1.  `smooth`: convex and concave in turn, as `curve` says.
    """

    apply: Callable[[Tensor], Tensor]
    form: Literal["hinge", "smooth"]
    slope: float = 0.0
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class Maximum(Node):
    """y = apply(z): each output is the largest of some elements of z."""

    apply: Callable[[Tensor], Tensor]
