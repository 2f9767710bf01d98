"""outcomes.py - what a call returns: the nodes of its rule, elements in another order, or a part of a parameter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nonsingular.network.called import Called, again, part_of, rows_of
from nonsingular.network.calls import COMPUTED, HEADS, Call, Head, Name, Signal, Turned, gathered, rows_alike
from nonsingular.network.casts import at_least
from nonsingular.network.ledger import Ledger, flat
from nonsingular.network.nodes import Map
from nonsingular.network.rules.normal import softmax_of_all
from nonsingular.network.vocabulary import CASTS, NATIVE, SAME, SELECTIONS, SHAPED


def of_parameters(ledger: Ledger, c: Called, result: Any) -> None:
    """Records the result of an operation on parameters alone: one parameter in part or in another order, or a computed value."""
    tensors = [t for t in flat(result) if isinstance(t, Tensor)]
    if not tensors and result is not None:
        raise c.refuse("it reads values of a parameter as numbers, which would not move with it")
    names = [v for v in c.values.values() if isinstance(v, Name)]
    alone = len(names) == 1 and COMPUTED not in c.values.values() and c.args and isinstance(c.value(c.args[0]), Name)
    for k, t in enumerate(tensors):
        same = c.label in SAME or (c.label in CASTS and t.dtype == c.args[0].dtype)
        if c.label == "embedding" and len(names) == 1 and len(c.values) == 2 and c.value(c.args[1]) is names[0]:
            ledger.put(t, rows_of(names[0], cast(Tensor, c.value(c.args[0])), t))
        elif alone and same:
            ledger.put(t, replace(names[0], shape=tuple(t.shape)))
        elif alone and c.label in SELECTIONS:
            ledger.put(t, part_of(names[0], c, k if isinstance(result, tuple | list) else None, t))
        else:
            ledger.put(t, COMPUTED)


def results(ledger: Ledger, c: Called, outputs: list[Tensor]) -> list[Any]:
    """What each tensor returned by an operation on signals holds."""
    first = c.values.get(id(c.args[0])) if c.args and isinstance(c.args[0], Tensor) else None
    ends = isinstance(first, Signal) and first.head and _keeps_order(c, first, outputs)
    enter(ledger, c, but=first if ends else None)
    first = c.values.get(id(c.args[0])) if first is not None else None
    signals = [v for v in c.values.values() if isinstance(v, Signal | Turned)]
    if c.label in CASTS or c.label in SAME:
        return [_same(c, first, outputs[0])]
    if c.label == "log" and ends:
        return [replace(cast(Signal, first), head="log_softmax")]
    if c.label in HEADS and isinstance(first, Signal) and (head := _head(c, first)):
        return [head]
    moves = c.label in SELECTIONS and (c.rule() is None or isinstance(first, Turned))
    if moves and isinstance(first, Signal | Turned) and (len(signals) == 1 or c.label in SHAPED):
        return [_selected(ledger, c, first, t, k) for k, t in enumerate(outputs)]
    made = apply(ledger, c, outputs[0])
    if isinstance(first, Signal) and first.head:
        made = replace(made, head=first.head)
    return [made, *[COMPUTED] * (len(outputs) - 1)]


def enter(ledger: Ledger, c: Called, but: Any = None) -> None:
    """Every softmax among the arguments, which was not the end of the network after all, as nodes; `but`: not this one."""
    for t in flat((c.args, c.kwargs)):
        z = c.values.get(id(t)) if isinstance(t, Tensor) else None
        if isinstance(z, Signal) and z.head and z is not but:
            call = Call(z.head, c.func, (), {}, z.shape, ledger.batch, ledger.dtype, ledger.device)
            number = z.number
            for node in softmax_of_all(call, replace(z, head=None), log=z.head == "log_softmax"):
                number = ledger.append(node)
            c.values[id(t)] = Signal(number, z.shape)
            ledger.put(t, c.values[id(t)])


def apply(ledger: Ledger, c: Called, value: Tensor) -> Signal:
    """The nodes of an operation with a rule."""
    rule = c.rule()
    if any(isinstance(v, Turned) for v in c.values.values()):
        raise c.refuse("an operation before it does not keep the batch as first dimension")
    args, kwargs = tuple(c.known(a) for a in c.args), {k: c.known(v) for k, v in c.kwargs.items()}
    call = Call(c.name, c.func, args, kwargs, tuple(value.shape[1:]), ledger.batch, ledger.dtype, ledger.device)
    if rule is None:
        raise call.refuse("nonsingular does not know it")
    nodes = rule(call)
    if value.dim() == 0 or len(value) != ledger.batch:
        raise call.refuse("it does not keep the batch as first dimension")
    for node in nodes:
        ledger.append(node)
    number = len(ledger.nodes) - 1 if nodes else next(v for v in c.values.values() if isinstance(v, Signal)).number
    return Signal(number, tuple(value.shape[1:]))


def _same(c: Called, z: Any, out: Tensor) -> Signal | Turned:
    source = cast(Tensor, c.args[0])
    if not isinstance(z, Signal | Turned):
        raise c.refuse("its first argument is not the signal")
    if out.dtype != source.dtype and not at_least(out.dtype, source.dtype):
        raise c.refuse(f"it rounds {source.dtype} to {out.dtype}")
    return z


def _keeps_order(c: Called, z: Signal, outputs: list[Tensor]) -> bool:
    """Whether an operation after a softmax leaves the order of the classes, and its values, alone."""
    if c.label in SAME or c.label in CASTS:
        return True
    if c.label == "log" and z.head == "softmax":
        return True
    reshapes = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "dropout")
    return c.label in reshapes and len(outputs) == 1 and outputs[0].numel() == c.args[0].numel()


def _head(c: Called, z: Signal) -> Signal | None:
    """A softmax or log_softmax over the classes, in case that it turns out to be the last operation: the logits under it."""
    if c.label == "log":
        return None
    dim = c.args[1] if len(c.args) > 1 else c.kwargs.get("dim")
    if not isinstance(dim, int):  # torch's old default
        dim = 1 if len(z.shape) in (1, 3) else 0
    dim %= len(z.shape) + 1
    wide = [d for d, n in enumerate(z.shape, 1) if n > 1]
    if dim == 0 or wide not in ([], [dim]):
        return None
    return replace(z, head=cast(Head, c.label.lstrip("_")))


def _selected(ledger: Ledger, c: Called, z: Signal | Turned, out: Tensor, k: int) -> Signal | Turned:
    """An operation that moves elements, by running it on their numbers."""
    if c.label not in SHAPED and any(v is COMPUTED or isinstance(v, Name) for v in c.values.values()):
        raise c.refuse("an argument besides the first is a parameter or computed")
    before, turned = (z.signal, z.dim) if isinstance(z, Turned) else (z, 0)
    source = cast(Tensor, c.args[0])
    numbers = torch.arange(source.numel(), device=source.device).view(ledger.batch, *before.shape).movedim(0, turned)
    found = c.func(numbers, *c.args[1:], **c.kwargs)
    found = cast(Tensor, found if isinstance(found, Tensor) else found[k])
    n = torch.Size(before.shape).numel()

    def along(dim: int) -> Tensor | None:
        """Which elements of its example each element is, if the examples lie along that dimension, all alike."""
        moved = found.movedim(dim, 0)
        own = moved.flatten(1) if moved.dim() > 1 else moved[:, None]
        own = own - n * torch.arange(ledger.batch, device=own.device)[:, None]
        return None if bool(((own < 0) | (own >= n)).any()) or not rows_alike(own) else own[0]

    places = [d for d in range(found.dim()) if found.shape[d] == ledger.batch]
    dim, index = next(((d, own) for d in places if (own := along(d)) is not None), (0, None))
    if index is None:
        first = found.dim() > 0 and len(found) == ledger.batch
        raise c.refuse("it takes a part of the batch, or mixes it" if first else "it does not keep the batch as first dimension")
    shape = (*out.shape[:dim], *out.shape[dim + 1 :])
    once = len(index.unique()) == len(index)
    plain = c.label in NATIVE and dim == turned == 0
    apply = partial(again, c.func, c.args[1:], c.kwargs) if plain else gathered(index, shape)
    made = Signal(ledger.append(Map(c.name, (before.number,), shape, apply, once, terms=1)), shape)
    return Turned(made, dim) if dim else made
