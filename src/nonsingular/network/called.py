"""called.py - a call of torch as it was made, and what is known of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from nonsingular.errors import UnsupportedModel
from nonsingular.network.calls import Call, Name
from nonsingular.network.nodes import Node
from nonsingular.network.operators import RULES


@dataclass(frozen=True, eq=False)
class Called:
    """A call as it was made; values: id of a tensor argument -> what is known of it."""

    func: Any
    label: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: dict[int, Any]

    def value(self, a: Any) -> Any:
        return self.values.get(id(a)) if isinstance(a, Tensor) else a

    def known(self, a: Any) -> Any:
        """An argument with its tensors replaced by what is known of them."""
        if isinstance(a, list | tuple):
            return [self.known(v) for v in cast("list[Any]", a)] if isinstance(a, list) else tuple(self.known(v) for v in a)
        return self.values[id(a)] if isinstance(a, Tensor) else a

    def rule(self) -> Callable[[Call], list[Node]] | None:
        """The rule of the function itself, else of its name, if it is a method."""
        if self.func in RULES:
            return RULES[self.func]
        return RULES.get(self.label)

    def refuse(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"no rule for {self.label} at node '{self.name}': {why}")


def part_of(name: Name, c: Called, k: int | None, t: Tensor) -> Name:
    """A part, or another order, of a parameter."""
    func, rest, kwargs, inner = c.func, c.args[1:], c.kwargs, name.view

    def view(w: Tensor) -> Tensor:
        w = inner(w)
        found = (
            w.reshape(*rest, **kwargs) if c.label == "view" and not isinstance(rest[0], torch.dtype) else func(w, *rest, **kwargs)
        )
        return found if k is None else found[k]

    return Name(name.of, tuple(t.shape), name.whole, view)


def again(func: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], t: Tensor) -> Tensor:
    return func(t, *rest, **kwargs)


def rows_of(name: Name, rows: Tensor, t: Tensor) -> Name:
    """Rows of a parameter, as an embedding looks them up."""
    inner = name.view
    return Name(name.of, tuple(t.shape), name.whole, lambda w: inner(w)[rows])
