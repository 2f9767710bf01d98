"""contractions.py - products of a signal with one parameter or constant: matmul and its kin, einsum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nonsingular.network.calls import Call, Name, Rules, Signal, View, parameter, rows_alike
from nonsingular.network.derivatives import of_matmul
from nonsingular.network.nodes import Node, Product, Sum
from nonsingular.network.rules.affine import linear
from nonsingular.network.rules.arithmetic import plus
from nonsingular.network.rules.products import contracted, summed


def _matmul(call: Call) -> list[Node]:
    values = [*call.args, *(call.kwargs[k] for k in ("input", "other", "mat2") if k in call.kwargs)]
    if len(values) != 2:
        raise call.refuse("only two plain operands are known")
    return _product(call, values[0], values[1])


def _product(call: Call, a: Any, b: Any) -> list[Node]:
    """torch.matmul(a, b) of which one is a signal.

    The signal keeps its batch only if the batch is not a row or column that is summed, and no dimension of the other precedes it.
    """
    if isinstance(a, Signal) and isinstance(b, Signal):
        return contracted(call, a, b)
    if not isinstance(a, Signal) and not isinstance(b, Signal):
        raise call.refuse("its product is none of the signal")
    first = isinstance(a, Signal)
    z: Signal = a if first else b
    other = b if first else a
    weight, view = parameter(call, other, "weight")
    dims, shape = len(z.shape) + 1, tuple(other.shape)
    if dims < (2 if first else 3) or len(shape) > max(dims, 2) or (dims == 2 and len(shape) > 2):
        raise call.refuse("it works across the batch")
    if first and len(shape) == 2 and isinstance(other, Name):
        numbers, whole = other.numbers(), torch.arange(torch.Size(other.whole).numel())
        if len(other.whole) == 2 and numbers.T.shape == other.whole and bool((numbers.T.flatten() == whole).all()):  # z @ W.T
            return [linear(call, z, other.of)]
    see = _one(call, other, view) if len(shape) == dims and dims > 2 else view

    def apply(z: Tensor, w: Tensor) -> Tensor:
        return torch.matmul(z, see(w)) if first else torch.matmul(see(w), z)

    node = Product(call.name, (z.number,), call.out, apply, weight, None, lambda b: b)
    plain = first and len(shape) == 2 and (not isinstance(other, Name) or (other.view is see and other.whole == shape))
    if plain and (
        not isinstance(other, Name) or bool((other.numbers().flatten() == torch.arange(other.numbers().numel())).all())
    ):
        node = replace(node, derivatives=of_matmul)
    return [node]


def _one(call: Call, other: Any, view: View) -> View:
    """How a weight with its own batch dimension is seen: all its rows are the same."""
    alike = other.shape[0] == 1 or (other.rows_alike if isinstance(other, Name) else rows_alike(other))
    if not alike:
        raise call.refuse("its weight is different for each example of the batch")
    return lambda w: view(w)[:1]


def _added(call: Call) -> list[Node]:
    """beta c + alpha a @ b."""
    c, a, b, beta, alpha = call.bound("input", "mat1", "mat2", "beta", "alpha", beta=1, alpha=1)
    if "batch1" in call.kwargs or "batch2" in call.kwargs:
        a, b = call.kwargs.get("batch1", a), call.kwargs.get("batch2", b)
    if not any(isinstance(v, Signal) for v in (a, b)):
        raise call.refuse("its product does not contain the signal")
    nodes = _product(call, a, b)
    if alpha != 1:
        nodes.append(Sum(call.name, (-1,), call.out, (float(alpha),)))
    if beta == 0:
        return nodes
    if isinstance(c, Signal):
        raise call.refuse("it adds another signal; write it as a sum")
    return [*nodes, *plus(call, Signal(-1, call.out), c, float(beta))]


def _einsum(call: Call) -> list[Node]:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    at = [i for i, v in enumerate(operands) if isinstance(v, Signal)]
    if not isinstance(equation, str) or len(operands) != 2 or not at:
        raise call.refuse("only two operands are known")
    equation = equation.replace(" ", "")
    z: Signal = operands[at[0]]
    left, arrow, out = equation.partition("->")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = ("..." if "." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        equation = f"{left}->{out}"
    if len(at) == 2:
        return summed(call, equation, *operands)
    sides = left.split(",")
    of_z, of_w = sides[at[0]], sides[1 - at[0]]
    lead = "..." if of_z.startswith("...") else of_z[:1]
    if not out.startswith(lead) or "." in of_w or lead in of_w or (lead != "..." and of_z.count(lead) > 1):
        raise call.refuse("it works across the batch")
    if lead == "..." and len(z.shape) + 1 - len(of_z.replace("...", "")) < 1:
        raise call.refuse("it works across the batch")
    weight, view = parameter(call, operands[1 - at[0]], "weight")

    def apply(z: Tensor, w: Tensor) -> Tensor:
        return torch.einsum(equation, *((z, view(w)) if at[0] == 0 else (view(w), z)))

    return [Product(call.name, (z.number,), call.out, apply, weight, None, lambda b: b)]


RULES: Rules = {
    **dict.fromkeys(("matmul", "mm", "bmm"), _matmul),
    "rmatmul": lambda call: _product(call, call.args[1], call.args[0]),
    **dict.fromkeys(("addmm", "baddbmm"), _added),
    "einsum": _einsum,
}
