"""arithmetic.py - sums, products with constants, the larger of two, choices by a mask."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nonsingular.network.calls import (
    Call,
    Name,
    Rules,
    Signal,
    as_constant,
    as_signal,
    broadcast,
)
from nonsingular.network.nodes import Activation, Map, Node, Product, Sum
from nonsingular.network.rules.affine import scaling
from nonsingular.network.rules.maxima import along
from nonsingular.network.rules.products import divided, multiplied


def _two(call: Call) -> tuple[Any, Any]:
    values = [*call.args, *(call.kwargs[k] for k in ("input", "other") if k in call.kwargs)]
    if len(values) != 2 or set(call.kwargs) - {"input", "other", "alpha"}:
        raise call.refuse("only two plain operands are known")
    return values[0], values[1]


def _aligned(call: Call, *values: Any) -> None:
    """The last dimensions are aligned, so with fewer of them than the output a signal's batch would meet another dimension."""
    if any(isinstance(v, Signal) and len(v.shape) != len(call.out) for v in values):
        raise call.refuse("signals of different numbers of dimensions: it would work across the batch")


def _add(call: Call, sign: float, turned: bool = False) -> list[Node]:
    """a + sign alpha b; turned: the operands the other way round."""
    a, b = _two(call)
    factor = sign * call.kwargs.get("alpha", 1)
    if turned:
        a, b = b, a
    return plus(call, a, b, factor)


def plus(call: Call, a: Any, b: Any, factor: float = 1.0) -> list[Node]:
    """a + factor b, of signals, parameters and constants, of which one is a signal."""
    _aligned(call, a, b)
    if isinstance(a, Signal) and isinstance(b, Signal):
        return [Sum(call.name, (a.number, b.number), call.out, (1.0, factor))]
    if isinstance(a, Name) or isinstance(b, Name):  # a bias: z + c b = c (z / c + b), and b + c z
        z, name = (b, a) if isinstance(a, Name) else (a, b)
        z = as_signal(call, z)
        if factor == 0:
            raise call.refuse("its factor is 0")
        inner, outer = (factor, 1.0) if isinstance(a, Name) else (1 / factor, factor)
        nodes: list[Node] = []
        if z.shape != call.out:
            nodes.append(Map(call.name, (z.number,), call.out, partial(_expanded, shape=call.out), terms=1))
        if inner != 1.0:
            nodes.append(Sum(call.name, (-1 if nodes else z.number,), call.out, (inner,)))
        spread = broadcast(call, name)
        nodes.append(Product(call.name, (-1 if nodes else z.number,), call.out, lambda z, w: z, None, name.of, spread))
        return nodes if outer == 1.0 else [*nodes, Sum(call.name, (-1,), call.out, (outer,))]
    if isinstance(a, Signal):
        return [Sum(call.name, (a.number,), call.out, (1.0,), factor * as_constant(call, b))]
    return [Sum(call.name, (as_signal(call, b).number,), call.out, (factor,), as_constant(call, a))]


def _expanded(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    return z.expand(len(z), *shape)


def _mul(call: Call) -> list[Node]:
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(a, Signal) and isinstance(b, Signal):
        return multiplied(call, a, b)
    z, factor = (a, b) if isinstance(a, Signal) else (b, a)
    z = as_signal(call, z)
    if isinstance(factor, Name):  # a parameter that scales
        return [scaling(call, z, broadcast(call, factor), factor.of, None)]
    return [Sum(call.name, (z.number,), call.out, (as_constant(call, factor),))]


def _div(call: Call) -> list[Node]:
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(b, Name):
        raise call.refuse("its divisor is a parameter")
    if isinstance(b, Signal):
        return divided(call, a if isinstance(a, Signal) else as_constant(call, a), b)
    return [Sum(call.name, (as_signal(call, a).number,), call.out, (1.0 / as_constant(call, b),))]


def _neg(call: Call) -> list[Node]:
    return [Sum(call.name, (as_signal(call, call.args[0]).number,), call.out, (-1.0,))]


def _extreme(call: Call, sign: float) -> list[Node]:
    """max (sign 1) or min (sign -1), of two values or along a dimension."""
    second = call.args[1] if len(call.args) > 1 else call.kwargs.get("other", call.kwargs.get("dim"))
    if isinstance(second, int | tuple | list):
        return _along(call, sign)
    if second is None:
        raise call.refuse("only named dimensions other than the batch are known")
    return _larger(call, sign)


def _larger(call: Call, sign: float) -> list[Node]:
    """max(a, b) = a + relu(b - a) for sign 1, min(a, b) = a - relu(a - b) for sign -1."""
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(a, Tensor):
        a, b = b, a
    a = as_signal(call, a)
    if not isinstance(b, Signal):  # max(a, c) = c + relu(a - c)
        c = as_constant(call, b)
        return [
            Sum(call.name, (a.number,), call.out, (sign,), -sign * c),
            Activation(call.name, (-1,), call.out, torch.relu, "hinge"),
            Sum(call.name, (-1,), call.out, (sign,), c),
        ]
    return [
        Sum(call.name, (b.number, a.number), call.out, (sign, -sign)),
        Activation(call.name, (-1,), call.out, torch.relu, "hinge"),
        Sum(call.name, (a.number, -1), call.out, (1.0, sign)),
    ]


def _along(call: Call, sign: float) -> list[Node]:
    """The largest (smallest) along named dimensions."""
    z, dims, keep = call.bound("input", "dim", "keepdim", keepdim=False)
    z, dims = as_signal(call, z), (dims,) if isinstance(dims, int) else tuple(dims or ())
    if not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    if sign > 0:
        return along(call, z, dims, keep)
    minus = Sum(call.name, (z.number,), z.shape, (-1.0,))
    first, *others = along(call, z, dims, keep)
    return [minus, replace(first, inputs=(-1,)), *others, Sum(call.name, (-1,), call.out, (-1.0,))]


def _where(call: Call) -> list[Node]:
    """mask a + (1 - mask) b, with a mask that does not depend on the signal."""
    mask, a, b = call.bound("condition", "input", "other")
    return _chosen(call, mask, a, b)


def _masked_fill(call: Call) -> list[Node]:
    z, mask, value = call.bound("input", "mask", "value")
    return _chosen(call, mask, value, z)


def _chosen(call: Call, mask: Any, a: Any, b: Any) -> list[Node]:
    if not isinstance(mask, Tensor):
        raise call.refuse("its mask depends on values of the signal or of a parameter")
    _aligned(call, a, b)
    chosen = cast(Tensor, as_constant(call, mask))
    offset: Tensor | float = 0.0
    numbers, factors = list[int](), list[Tensor]()
    for value, here in ((a, chosen), (b, 1 - chosen)):
        if isinstance(value, Signal):
            numbers.append(value.number)
            factors.append(here)
            continue
        constant = as_constant(call, value)
        if not bool(torch.isfinite(torch.as_tensor(constant)).all()):
            raise call.refuse("it fills with infinite values")
        offset = here * constant + offset
    return [Sum(call.name, tuple(numbers), call.out, tuple(factors), offset)]


RULES: Rules = {
    "add": lambda call: _add(call, 1.0),
    **dict.fromkeys(("sub", "subtract"), lambda call: _add(call, -1.0)),
    "rsub": lambda call: _add(call, -1.0, turned=True),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    "rdiv": lambda call: divided(call, as_constant(call, call.args[1]), as_signal(call, call.args[0])),
    **dict.fromkeys(("neg", "negative"), _neg),
    "maximum": lambda call: _larger(call, 1.0),
    "minimum": lambda call: _larger(call, -1.0),
    "max": lambda call: _extreme(call, 1.0),
    "min": lambda call: _extreme(call, -1.0),
    "amax": lambda call: _along(call, 1.0),
    "amin": lambda call: _along(call, -1.0),
    "where": _where,
    "masked_fill": _masked_fill,
}
