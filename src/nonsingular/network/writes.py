"""writes.py - operations in place: what they write, and where in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nonsingular.network.called import Called
from nonsingular.network.calls import COMPUTED, Name, Signal, Turned, gathered, rows_alike
from nonsingular.network.ledger import Ledger, flat, memory_of, places_of, whole
from nonsingular.network.nodes import Map
from nonsingular.network.outcomes import apply, enter
from nonsingular.network.vocabulary import CAREFUL


def write(ledger: Ledger, c: Called, changed: list[Tensor], written: Any, before: Tensor | None) -> None:
    """Follows an operation that changed one of its arguments."""
    if not isinstance(written, Tensor) or {memory_of(t) for t in changed} != {memory_of(written)}:
        raise c.refuse("it works in place on an argument where that is not expected")
    enter(ledger, c)
    old = c.values[id(written)]
    if isinstance(old, Turned):
        raise c.refuse("an operation before it does not keep the batch as first dimension")
    assert isinstance(old, Signal | Tensor), "a parameter, or what is computed from one, is not written to: tracing.py refused"
    store = ledger.memory(written)
    if isinstance(old, Tensor) and store.before is None:
        assert before is not None
        store.before = before
        ledger.kept.append(written)
    if c.label == "setitem":
        _set(ledger, c, written)
        return
    if c.label in ("copy_", "fill_", "zero_"):
        number = _filled(ledger, c, written, c.args[1] if len(c.args) > 1 else c.kwargs.get("src", c.kwargs.get("value", 0.0)))
    else:
        plain = c.label.rstrip("_")
        if plain not in CAREFUL and "out" not in c.kwargs:
            raise c.refuse("nonsingular does not know it in place")
        kwargs = {k: v for k, v in c.kwargs.items() if k not in ("out", "inplace")}
        made = apply(ledger, Called(c.func, plain, c.name, c.args, kwargs, c.values), written)
        number = made.number
    _wrote(ledger, c, written, number, torch.arange(written.numel(), device=written.device).view(written.shape))


def _wrote(ledger: Ledger, c: Called, written: Tensor, number: int, numbers: Tensor, at: Tensor | None = None) -> None:
    """Records that the elements `numbers` (over all examples) of a node lie at the places of `written`, or at `at`."""
    store = ledger.memory(written)
    places = torch.full((whole(written).numel(),), -1, dtype=torch.long, device=written.device)
    places[places_of(written) if at is None else at] = numbers
    store.writes.append((places, number, c.name))


def _filled(ledger: Ledger, c: Called, written: Tensor, value: Any) -> int:
    """A node of the shape of `written` that holds `value`."""
    shape = tuple(written.shape[1:])
    value = c.known(value)
    if written.dim() == 0 or len(written) != ledger.batch:
        raise c.refuse("it writes across the batch, or into a part of it")
    if isinstance(value, Signal):
        if value.shape == shape:
            return value.number
        if len(value.shape) != len(shape):  # torch aligns the last dimensions, so that its batch would meet another one
            raise c.refuse("a signal of fewer dimensions would be spread across the batch")
        numbers = torch.arange(torch.Size(value.shape).numel(), device=written.device).view(value.shape)
        return ledger.append(Map(c.name, (value.number,), shape, gathered(numbers.expand(shape).flatten(), shape), terms=1))
    if isinstance(value, Name | Turned) or value is COMPUTED:
        raise c.refuse("it writes a parameter into the signal, or what has no batch in front")
    full = torch.as_tensor(value, dtype=written.dtype, device=written.device).expand(written.shape)
    if not rows_alike(full):
        raise c.refuse("it writes different constants for each example of the batch")
    return ledger.constant(c.name, shape, full[:1].clone())


def _set(ledger: Ledger, c: Called, written: Tensor) -> None:
    """t[index] = value."""
    index, value = c.args[1], c.args[2]
    if any(not isinstance(c.values[id(t)], Tensor) for t in flat(index) if isinstance(t, Tensor)):
        raise c.refuse("where it writes depends on values of the signal or of a parameter")
    places = places_of(written)
    at = places[index]
    shape, new_value = tuple(at.shape[1:]), c.known(value)
    if (
        not isinstance(new_value, Signal | Turned | Name) and new_value is not COMPUTED
    ):  # a constant: it may reach any elements of an example
        filled = torch.zeros(whole(written).numel(), dtype=torch.bool, device=written.device)
        filled[at.flatten()] = True
        here = filled[places]
        new = torch.where(here, written.detach(), 0.0)
        if written.dim() == 0 or len(written) != ledger.batch or not rows_alike(here) or not rows_alike(new):
            raise c.refuse("it writes across the batch, or into a part of it")
        number = ledger.constant(c.name, tuple(written.shape[1:]), new[:1].clone())
        numbers = torch.arange(written.numel(), device=written.device).view(written.shape)
        _wrote(ledger, c, written, number, numbers[here], places[here])
        return
    if at.dim() == 0 or len(at) != ledger.batch or (isinstance(value, Tensor) and value.dim() != at.dim()):
        raise c.refuse("it writes across the batch, or into a part of it")
    number = _filled(ledger, c, written.new_empty(()).expand(ledger.batch, *shape), value)
    _wrote(ledger, c, written, number, torch.arange(at.numel(), device=at.device).view(at.shape), at)
