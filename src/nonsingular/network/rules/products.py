"""products.py - products and quotients of two signals, powers, exp and its kin: what no layer of parameters computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonsingular.network import curves
from nonsingular.network.calls import Call, Rules, Signal, as_signal
from nonsingular.network.curves import Curve
from nonsingular.network.nodes import Bilinear, Node, Sum
from nonsingular.network.rules.steps import Steps

MOST = 8
"""The largest exponent of a power."""


def multiplied(call: Call, a: Signal, b: Signal) -> list[Node]:
    """a b, of as many dimensions each."""
    steps = Steps(call)
    steps.times(a, b)
    return steps.nodes


def divided(call: Call, a: Any, b: Signal) -> list[Node]:
    """a / b = a (1 / b), of a signal, a number or a tensor a: bounded where the sign of b is known."""
    steps = Steps(call)
    inverse = steps.curve(b, torch.reciprocal, curves.RECIPROCAL)
    if isinstance(a, Signal):
        steps.times(a, inverse)
    else:
        steps.put(Sum, (inverse,), call.out, (a,))
    return steps.nodes


def contracted(call: Call, a: Signal, b: Signal) -> list[Node]:
    """torch.matmul(a, b) for each example."""
    if len(a.shape) != len(b.shape) or len(a.shape) < 2:
        raise call.refuse("signals of different numbers of dimensions: it works across the batch")
    steps = Steps(call)
    steps.matmul(a, b)
    return steps.nodes


def summed(call: Call, equation: str, a: Signal, b: Signal) -> list[Node]:
    """torch.einsum of two signals, whose first letter is the batch."""
    left, _, out = equation.partition("->")
    of_a, of_b = left.split(",")
    if "." in equation or any(len(set(t)) < len(t) for t in (of_a, of_b)):
        raise call.refuse("of two signals, only letters are known that are different in each")
    if not (of_a[:1] == of_b[:1] == out[:1] != ""):
        raise call.refuse("it works across the batch")
    gone = "".join(c for c in dict.fromkeys(of_a + of_b) if c not in out)
    sizes = dict(zip(of_a + of_b, (1, *a.shape, 1, *b.shape), strict=True))
    terms = int(torch.Size([sizes[c] for c in gone]).numel())

    def spread(t: Tensor, letters: str) -> Tensor:
        """Its letters in the order of the output and of those that are summed, 1 for those that it has not."""
        wanted = out + gone
        t = t.permute([letters.index(c) for c in wanted if c in letters])
        full = t.reshape([n for n, _ in _placed(t, wanted, letters)])
        return full.expand(*full.shape[: len(out)], *(sizes[c] for c in gone)).reshape(*full.shape[: len(out)], terms)

    def factors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return spread(a, of_a), spread(b, of_b)

    return [Bilinear(call.name, (a.number, b.number), call.out, lambda a, b: torch.einsum(equation, a, b), factors)]


def _placed(t: Tensor, wanted: str, letters: str) -> list[tuple[int, str]]:
    """The size of each wanted letter in t, whose own letters are in that order; 1 where it has none."""
    sizes = iter(t.shape)
    return [(next(sizes) if c in letters else 1, c) for c in wanted]


def _curved(call: Call, apply: Callable[[Tensor], Tensor], curve: Curve) -> list[Node]:
    steps = Steps(call)
    steps.curve(as_signal(call, call.args[0] if call.args else call.kwargs.get("input")), apply, curve)
    return steps.nodes


def _power(call: Call) -> list[Node]:
    z, n = call.bound("input", "exponent")
    as_signal(call, z)
    if isinstance(n, bool) or not isinstance(n, int | float):
        raise call.refuse("its exponent is not a number")
    known: dict[float, tuple[Callable[[Tensor], Tensor], Curve]] = {
        0.5: (torch.sqrt, curves.SQRT), -0.5: (torch.rsqrt, curves.RSQRT), -1: (torch.reciprocal, curves.RECIPROCAL),
        2: (torch.square, curves.power(2)),
    }  # fmt: skip
    if n in known:
        return _curved(call, *known[n])
    if n != int(n) or not 2 <= n <= MOST:
        raise call.refuse(f"its exponent is {n}; 2 to {MOST}, 1/2, -1/2 and -1 are known")
    return _curved(call, lambda z: z ** int(n), curves.power(int(n)))


def _shifted(call: Call, apply: Callable[[Tensor], Tensor], curve: Curve, before: float, after: float) -> list[Node]:
    """apply(z + before) + after."""
    steps = Steps(call)
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    z = steps.affine(z, 1.0, before) if before else z
    z = steps.curve(z, apply, curve)
    if after:
        steps.affine(z, 1.0, after)
    return steps.nodes


def _glu(call: Call) -> list[Node]:
    """The first half of a dimension times the sigmoid of the second."""
    z, dim = call.bound("input", "dim", dim=-1)
    z, dim = as_signal(call, z), dim % (len(call.out) + 1)
    if not dim:
        raise call.refuse("it works across the batch")
    half, steps = call.out[dim - 1], Steps(call)

    def part(start: int) -> Signal:
        return steps.map(z, call.out, lambda t: t.narrow(dim, start, half), True)

    first, second = part(0), part(half)
    steps.times(first, steps.curve(second, torch.sigmoid, curves.SIGMOID))
    return steps.nodes


RULES: Rules = {
    "exp": lambda call: _curved(call, torch.exp, curves.EXP),
    "expm1": lambda call: _shifted(call, torch.exp, curves.EXPM1, 0.0, -1.0),
    "log": lambda call: _curved(call, torch.log, curves.LOG),
    "log1p": lambda call: _shifted(call, torch.log, curves.LOG, 1.0, 0.0),
    "sqrt": lambda call: _curved(call, torch.sqrt, curves.SQRT),
    "rsqrt": lambda call: _curved(call, torch.rsqrt, curves.RSQRT),
    "reciprocal": lambda call: _curved(call, torch.reciprocal, curves.RECIPROCAL),
    "square": lambda call: _curved(call, torch.square, curves.power(2)),
    "pow": _power,
    "glu": _glu,
}
