"""calls.py - a call of torch while a forward is recorded: its arguments as signals, parameters and constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nonsingular.errors import UnsupportedModel
from nonsingular.network.nodes import Node, Parameter

Head = Literal["softmax", "log_softmax"]
HEADS = ("softmax", "log_softmax", "log")
"""Operations that may come last: the logits are their input."""


@dataclass(frozen=True)
class Signal:
    """What an operation passes on: the number of the node that computes it and its shape without the batch.

    head: it is the softmax of that node, over the classes.
    """

    number: int
    shape: tuple[int, ...]
    head: Head | None = None


@dataclass(frozen=True)
class Turned:
    """A signal whose batch is not the first dimension but another one, `dim`: only operations that move elements are known."""

    signal: Signal
    dim: int


@dataclass(frozen=True, eq=False)
class Call:
    """A recorded operation: its arguments hold Signals, constants, and parameters by name; `out` is its output's shape.

    batch: how many examples it was recorded on; constants may have such a first dimension.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[int, ...]
    batch: int
    dtype: torch.dtype
    device: torch.device

    def bound(self, *names: str, **defaults: Any) -> list[Any]:
        """Values of the arguments `names`, given by position or by keyword."""
        given = {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}
        return [given.get(n) for n in names]

    def refuse(self, why: str) -> UnsupportedModel:
        called = str(getattr(self.target, "__name__", self.target))
        return UnsupportedModel(
            f"no rule for {called.strip('_') if called.startswith('__') else called} at node '{self.name}': {why}"
        )


Rules = dict[Any, Callable[[Call], list[Node]]]
"""Operation, by function or name -> the nodes of a call: its arguments are values already, except signals and parameters."""


def entire(w: Tensor) -> Tensor:
    return w


@dataclass(frozen=True)
class Name:
    """A parameter of the model, by name; or elements of it in another order and shape, as `view` gives them."""

    of: str
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    """Shape of the parameter."""
    view: Callable[[Tensor], Tensor] = entire

    def numbers(self) -> Tensor:
        """Which element of the parameter each element is."""
        return self.view(torch.arange(torch.Size(self.whole).numel()).view(self.whole))

    @property
    def rows_alike(self) -> bool:
        """Whether all rows are the same elements."""
        rows = self.numbers().flatten(1) if len(self.shape) > 1 else self.numbers()
        return rows_alike(rows)


COMPUTED = object()
"""Stands for a computed value: neither a constant, nor a signal, nor a part of one parameter."""


def rows_alike(t: Tensor) -> bool:
    """Whether all rows are the same."""
    return bool((t[1:] == t[:1]).all())


def rows(z: Tensor) -> Tensor:
    """(N, elements), also of no examples and of scalars."""
    return z.reshape(len(z), math.prod(z.shape[1:]))


def gathered(index: Tensor, shape: tuple[int, ...]) -> Callable[..., Tensor]:
    """(N, *any) signals, one after the other -> (N, *shape): the elements `index` of each example."""

    if len(index) == torch.Size(shape).numel() and bool((index == torch.arange(len(index), device=index.device)).all()):

        def reshaped(z: Tensor, *others: Tensor) -> Tensor:
            flat = rows(z)
            return (flat if flat.shape[1] == len(index) else flat[:, : len(index)]).reshape(len(flat), *shape)

        return reshaped

    def gather(z: Tensor, *others: Tensor) -> Tensor:
        flat = torch.cat([rows(t) for t in (z, *others)], 1) if others else rows(z)
        return flat.index_select(1, index).reshape(len(flat), *shape)

    return gather


def as_signal(call: Call, value: Any) -> Signal:
    if not isinstance(value, Signal):
        raise call.refuse("its first argument is not the signal")
    return value


def as_constant(call: Call, value: Any) -> Tensor | float:
    """A number, or a tensor that broadcasts to (N, *out) for any N."""
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise call.refuse("only numbers, buffers and signals are known here")
    if not isinstance(value, Tensor):
        return value
    value = value.to(call.dtype)  # 1 / 3 in the precision of the signal
    if value.dim() <= len(call.out):
        return value
    if value.dim() > len(call.out) + 1 or not rows_alike(value):
        raise call.refuse("a constant is different for each example of the batch")
    return value[:1]


View = Callable[[Tensor], Tensor]


def parameter(call: Call, value: Any, at: str) -> tuple[Parameter | None, View]:
    """A parameter, a constant in its place, or None; and how the operation sees it."""
    if isinstance(value, Name):
        return value.of, value.view
    if value is None or isinstance(value, Tensor):
        return value, entire
    raise call.refuse(f"its {at} is computed, not a parameter; merge it into a plain layer first")


def broadcast(call: Call, name: Name) -> View:
    """How a parameter that broadcasts to (N, *out) is seen, for any N: expanded along the batch it is seen once."""
    if len(name.shape) <= len(call.out):
        return name.view
    if len(name.shape) > len(call.out) + 1 or not name.rows_alike:
        raise call.refuse(f"'{name.of}' is different for each example of the batch")
    return lambda w: name.view(w)[0]
