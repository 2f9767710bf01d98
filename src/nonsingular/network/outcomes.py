"""outcomes.py - what a call returns: the nodes of its rule, elements in another order, or a part of a parameter."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from nonsingular.errors import UnsupportedModel
from nonsingular.network.called import Called, again, part_of, rows_of
from nonsingular.network.calls import COMPUTED, HEADS, Call, Head, Name, Signal, gathered, rows_alike
from nonsingular.network.casts import at_least
from nonsingular.network.ledger import Ledger, flat
from nonsingular.network.nodes import Map
from nonsingular.network.vocabulary import CASTS, NATIVE, SAME, SELECTIONS, SHAPED


def of_parameters(ledger: Ledger, c: Called, result: Any) -> None:
    """Of operations on parameters alone: a part or another order of one parameter, or computed."""
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
    """What each of the tensors holds that an operation on signals returns."""
    first = c.values.get(id(c.args[0])) if c.args and isinstance(c.args[0], Tensor) else None
    if isinstance(first, Signal) and first.head and not _keeps_order(c, first, outputs):
        raise UnsupportedModel(
            f"no rule for {first.head} at node '{c.name}': {c.label} follows, and it is only known at the end of a network"
        )
    signals = [v for v in c.values.values() if isinstance(v, Signal)]
    if any(s.head for s in signals if s is not first):
        raise c.refuse("its argument is a softmax, which is only known at the end of a network")
    if c.label in CASTS or c.label in SAME:
        return [_same(c, first, outputs[0])]
    if c.label in HEADS:
        return [_head(c, first)]
    if c.rule() is None and c.label in SELECTIONS and isinstance(first, Signal) and (len(signals) == 1 or c.label in SHAPED):
        return [_selected(ledger, c, first, t, k) for k, t in enumerate(outputs)]
    made = apply(ledger, c, outputs[0])
    if isinstance(first, Signal) and first.head:
        made = replace(made, head=first.head)
    return [made, *[COMPUTED] * (len(outputs) - 1)]


def apply(ledger: Ledger, c: Called, value: Tensor) -> Signal:
    """The nodes of an operation with a rule."""
    rule = c.rule()
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


def _same(c: Called, z: Any, out: Tensor) -> Signal:
    source = cast(Tensor, c.args[0])
    if not isinstance(z, Signal):
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


def _head(c: Called, z: Any) -> Signal:
    """A softmax or log_softmax over the classes, if it turns out to be the last operation: the logits under it."""
    if c.label == "log":
        if not isinstance(z, Signal) or z.head != "softmax":
            raise c.refuse("nonsingular does not know it")
        return replace(z, head="log_softmax")
    if not isinstance(z, Signal):
        raise c.refuse("its first argument is not the signal")
    dim = c.args[1] if len(c.args) > 1 else c.kwargs.get("dim")
    if not isinstance(dim, int):  # torch's old default
        dim = 1 if len(z.shape) in (1, 3) else 0
    dim %= len(z.shape) + 1
    wide = [d for d, n in enumerate(z.shape, 1) if n > 1]
    if dim == 0 or wide not in ([], [dim]):
        raise c.refuse("it is only known over the classes, at the end of a network")
    return replace(z, head=cast(Head, "softmin" if "softmin" in c.label else c.label.lstrip("_")))


def _selected(ledger: Ledger, c: Called, z: Signal, out: Tensor, k: int) -> Signal:
    """An operation that moves elements, by running it on their numbers."""
    if c.label not in SHAPED and any(v is COMPUTED or isinstance(v, Name) for v in c.values.values()):
        raise c.refuse("an argument besides the first is a parameter or computed")
    source = cast(Tensor, c.args[0])
    numbers = torch.arange(source.numel(), device=source.device).view(source.shape)
    found = c.func(numbers, *c.args[1:], **c.kwargs)
    found = cast(Tensor, found if isinstance(found, Tensor) else found[k])
    n = torch.Size(z.shape).numel()
    if found.dim() == 0 or len(found) != ledger.batch:
        raise c.refuse("it does not keep the batch as first dimension")
    own = found.flatten(1) if found.dim() > 1 else found[:, None]
    own = own - n * torch.arange(ledger.batch, device=own.device)[:, None]
    if bool(((own < 0) | (own >= n)).any()) or not rows_alike(own):
        raise c.refuse("it takes a part of the batch, or mixes it")
    shape, index = tuple(out.shape[1:]), own[0]
    once = len(index.unique()) == len(index)
    apply = partial(again, c.func, c.args[1:], c.kwargs) if c.label in NATIVE else gathered(index, shape)
    return Signal(ledger.append(Map(c.name, (z.number,), shape, apply, once, terms=1)), shape)
