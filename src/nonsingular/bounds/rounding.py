"""rounding.py - how far rounding can move a bound: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nonsingular.bounds.interval import Region
from nonsingular.network.nodes import Activation, Bilinear, Larger, Lead, Map, Node, Parameter, Product, Rounded, Sum

STEPS = 16
"""Roundings of a value at a node besides those of its sums: relaxations, ends of boxes, differences."""


def rounding(where: Region, dtype: torch.dtype) -> Tensor:
    """(B,) how far a linear or interval bound of a margin, computed in `dtype` with boxes rounded to it, may be from its value.

    A sum of n products is off by at most n u times the sum of their sizes, u the unit roundoff, in whatever order it is taken.
    So sizes go through the network: every weight, input and offset with its largest absolute value, every activation with its
    largest slope.  A bound passes each node forwards and backwards.  It errs on the large side, often by far for deep networks.
    To first order in u.  Infinite in float32 where a network rounds to whole numbers: a bound may then be off by a whole step.
    Cost: one forward pass.
    """
    if dtype == torch.float32 and any(isinstance(node, Rounded) for node in where.graph.nodes):
        return where.x.lo.new_full((len(where.x.lo),), torch.inf)
    sizes, roundings = [torch.maximum(where.x.lo.abs(), where.x.hi.abs())], 0
    for node in where.graph.nodes[1:]:
        sizes.append(_size(node, where, [sizes[i] for i in node.inputs]))
        roundings += 2 * (_terms(node, where) + STEPS)
    unit = torch.finfo(dtype).eps / 2
    return 2 * roundings * unit * sizes[-1].flatten(1).amax(1)


def _size(node: Node, where: Region, sizes: list[Tensor]) -> Tensor:
    """The largest absolute value of the node's output, by the triangle inequality."""
    z = sizes[0]
    match node:
        case Product():
            y = z if node.weight is None else node.apply(z, _largest(where, node.weight))
            return y if node.bias is None else y + node.spread(_largest(where, node.bias))
        case Lead():
            n = node.shape[0]
            return z[:, :n] + z[:, n : 2 * n]
        case Larger():
            return node.apply(*sizes)
        case Sum():
            terms = [_absolute(c) * t for c, t in zip(node.factors, sizes, strict=True)]
            return sum(terms[1:], terms[0]) + _absolute(node.offset)
        case Rounded():
            return z + 1
        case Activation(curve=None):
            return z * max(1.0, abs(node.slope)) + node.apply(torch.zeros_like(z)).abs()
        case Activation():
            assert node.curve is not None
            if node.curve.defined is not None:  # no largest slope: nothing is known
                return torch.full_like(z, torch.inf)
            ends = [node.curve.slope_at(t) for t in (-z, z, *(torch.full_like(z, turn) for turn in node.curve.turns))]
            steepest = torch.stack(ends).abs().amax(0)  # of slopes that are monotone between turns
            return z * steepest + node.apply(torch.zeros_like(z)).abs()
        case Map() | Bilinear():  # a product of two signals: |a b| <= |a| |b|
            return node.apply(*sizes)
        case _:
            raise AssertionError(f"no rule of rounding for {type(node).__name__}")


def _largest(where: Region, parameter: Parameter) -> Tensor:
    box = where.box(parameter)
    return torch.maximum(box.lo.abs(), box.hi.abs())


def _absolute(value: Tensor | float) -> Tensor | float:
    return abs(value)


def _terms(node: Node, where: Region) -> int:
    """About how many numbers the node adds up for one of its outputs, at most."""
    if isinstance(node, Product) and node.weight is not None:
        shape = where.graph.value(node.weight).shape
        return math.prod(shape) // min(shape[:2]) if len(shape) > 1 else 1
    if isinstance(node, Bilinear):
        return node.terms(*(where.x.lo.new_zeros(1, *where.graph.nodes[i].shape) for i in node.inputs))
    inputs = sum(math.prod(where.graph.nodes[i].shape) for i in node.inputs)
    return inputs // max(1, math.prod(node.shape))
