"""ledger.py - what is known of the tensors of a forward pass: which node, parameter or constant each holds, also after writes.

A view shares memory with its base, and an operation in place changes all tensors that overlap with what it writes.  Each write is
kept, with the places in memory that it fills; a tensor that is read later takes those elements from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.calls import Name, Signal, gathered, rows_alike
from nonsingular.network.nodes import Input, Map, Node, Sum


@dataclass
class _Memory:
    """What was written to one storage since it became a signal."""

    writes: list[tuple[Tensor, int, str]] = field(default_factory=list)
    """For each: place in memory -> which of the elements of the node (over all examples) is there, or -1; the node; its name."""
    before: Tensor | None = None
    """The storage as it was before a signal was first written into it, where it held constants."""


@dataclass
class _Entry:
    """What is known of a tensor.  at: writes to its memory that `value` already contains."""

    tensor: Tensor
    value: Any
    at: int


class Ledger:
    """The nodes so far, and what each tensor holds."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.nodes: list[Node] = [Input("x", (), tuple(x.shape[1:]))]
        self.entries: dict[int, _Entry] = {}
        self.memories: dict[int, _Memory] = {}
        self.fresh: set[int] = set()
        """Where the constants lie that the forward makes; it may write into these."""
        self.kept: list[Tensor] = []
        """Tensors that must not be freed: memory is known by its address."""
        self.batch, self.dtype, self.device = len(x), x.dtype, x.device
        self.put(x, Signal(0, tuple(x.shape[1:])))

    def put(self, t: Tensor, value: Any) -> None:
        self.entries[id(t)] = _Entry(t, value, len(self.memory(t).writes))

    def memory(self, t: Tensor) -> _Memory:
        return self.memories.setdefault(memory_of(t), _Memory())

    def value(self, t: Tensor, name: str) -> Any:
        """A Signal, a Name, COMPUTED, or the tensor itself: a constant."""
        entry, memory = self.entries.get(id(t)), self.memory(t)
        if entry is None:
            if id(t) in self.names:
                return Name(self.names[id(t)], tuple(t.shape), tuple(t.shape))
            if isinstance(t, nn.Parameter):
                raise UnsupportedModel(
                    f"'{name}' uses a parameter of shape {tuple(t.shape)} that is not among the model's (held by a closure, a "
                    "hook or a global?): it would not move; register it as a parameter of the model"
                )
            if memory.before is None:
                return t.clone() if memory_of(t) in self.fresh else t  # it may be written into later
            before = memory.before.clone()
            for filled, _, _ in memory.writes:
                before[filled >= 0] = 0
            shape, old = tuple(t.shape[1:]), before[places_of(t)]
            if t.dim() == 0 or len(t) != self.batch or not rows_alike(old):
                raise UnsupportedModel(
                    f"'{name}' reads a part of memory that a signal was written into, but not example by example"
                )
            zero = Sum(name, (0,), shape, (0.0,), old[:1]) if shape == self.nodes[0].shape else None
            number = self.append(zero) if zero else self.constant(name, shape, old[:1])
            entry = _Entry(t, Signal(number, shape), 0)
        if isinstance(entry.value, Signal):
            for places, node, writer in memory.writes[entry.at :]:
                entry.value = self.overwritten(t, entry.value, places, node, writer, name)
        elif len(memory.writes) > entry.at:
            raise UnsupportedModel(f"'{name}' reads a computed value that was written into")
        entry.at = len(memory.writes)
        self.entries[id(t)] = entry
        return entry.value

    def constant(self, name: str, shape: tuple[int, ...], value: Tensor) -> int:
        """The number of a node that is constant: one element of the input, repeated, times 0."""
        n = torch.Size(shape).numel()
        first = torch.zeros(n, dtype=torch.long, device=value.device)
        self.append(Map(name, (0,), shape, gathered(first, shape), terms=1))
        return self.append(Sum(name, (len(self.nodes) - 1,), shape, (0.0,), value))

    def overwritten(self, t: Tensor, old: Signal, places: Tensor, node: int, writer: str, name: str) -> Signal:
        """The signal of `t` after a write: its elements whose place was filled are those of the node there."""
        source = places[places_of(t)].flatten(1) if t.dim() > 1 else places[places_of(t)][:, None]
        if not bool((source >= 0).any()):
            return old
        if old.head:
            raise UnsupportedModel(f"'{writer}' writes into the result of {old.head}")
        n = torch.Size(self.nodes[node].shape).numel()
        example = torch.arange(self.batch, device=source.device)[:, None]
        own = torch.where(source >= 0, source - n * example, -1)
        if bool(((source >= 0) & (source.div(max(n, 1), rounding_mode="floor") != example)).any()) or not rows_alike(own):
            raise UnsupportedModel(f"'{writer}' writes across the batch, or into parts of it, and '{name}' reads that")
        index = own[0]
        if old.shape == self.nodes[node].shape and bool((index == torch.arange(n, device=index.device)).all()):
            return Signal(node, old.shape)
        if bool((index >= 0).all()):
            made = Map(writer, (node,), old.shape, gathered(index, old.shape), terms=1)
        else:
            kept = torch.arange(len(index), device=index.device) + n
            both = gathered(torch.where(index >= 0, index, kept), old.shape)
            made = Map(writer, (node, old.number), old.shape, both, terms=1)
        return Signal(self.append(made), old.shape)

    def append(self, node: Node) -> int:
        inputs = tuple(len(self.nodes) + i if i < 0 else i for i in node.inputs)  # -1: the node before it
        self.nodes.append(replace(node, inputs=inputs))
        return len(self.nodes) - 1


def version_of(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def memory_of(t: Tensor) -> int:
    """The address of a tensor's storage; another number for an empty one."""
    return t.untyped_storage().data_ptr() or -id(t)


def tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for v in cast("list[Any]", value):
            yield from flat(v)
    elif isinstance(value, dict):
        for v in cast("dict[Any, Any]", value).values():
            yield from flat(v)
    elif isinstance(value, slice):
        yield from flat((value.start, value.stop, value.step))
    else:
        yield value


def whole(t: Tensor) -> Tensor:
    """The storage of a tensor, as one flat tensor of its dtype."""
    n = t.untyped_storage().nbytes() // t.element_size()
    return t.detach().as_strided((n,), (1,), 0)


def places_of(t: Tensor) -> Tensor:
    """Where each element of a tensor lies in its storage."""
    n = t.untyped_storage().nbytes() // t.element_size()
    return torch.arange(n, device=t.device).as_strided(t.shape, t.stride(), t.storage_offset())
