"""tracing.py - what a module does to a batch of inputs, operation by operation, as nodes (network/nodes.py).

The module's own Python runs once, on real tensors of a known shape, and every torch function that it calls passes through a
`TorchFunctionMode`: shapes, asserts and branches on shapes work as usual, hooks and parametrisations run, and parameters keep
the names of the module.  The record holds each call and its tensors; a value is known by its tensor, not by its name.

For tensors that share memory and for writes in place: ledger.py, writes.py.

*Refused, by name*: operations without a rule; numbers and branches computed from values of the signal or of a parameter; changes
of parameters and buffers; random numbers; parameters of another module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nonsingular.errors import UnsupportedModel
from nonsingular.network.called import Called
from nonsingular.network.calls import COMPUTED, Head, Name, Signal, Turned
from nonsingular.network.ledger import Ledger, flat, memory_of, tensors, version_of, whole
from nonsingular.network.nodes import Node
from nonsingular.network.outcomes import of_parameters, results
from nonsingular.network.rules.maxima import commuted
from nonsingular.network.spelled import is_constant, spelled
from nonsingular.network.vocabulary import CONSTANT, METADATA, SHAPED, name_of
from nonsingular.network.writes import write

PROBES = 5
"""Examples that a module is recorded on.  Not 1: an operation across the batch must show."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """nodes: in the order of computation, from the input to the logits.  head: what the module applies to these at its end."""

    nodes: tuple[Node, ...]
    head: Head | None


def record(module: nn.Module, x: Tensor) -> Recorded:
    """The nodes of a call of `module`, a copy that may be written into, on the inputs `x` (PROBES, *input).

    Raises UnsupportedModel, with node and operation, for what has no rule.  Other errors are the module's own.
    Cost: a forward pass, and about 20 microseconds for each operation.
    """
    mode = _Recorder(module, x)
    chance = torch.random.get_rng_state()
    with spelled(module), mode:
        y = module(x)
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x):
        raise UnsupportedModel("the model does not return one (B, K) tensor of logits")
    if not torch.equal(chance, torch.random.get_rng_state()):
        raise UnsupportedModel("the forward draws random numbers; make it deterministic in eval mode")
    return mode.recorded(y)


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module, self.ledger = module, Ledger(module, x)
        self.state = [(n, t, version_of(t)) for n, t in tensors(module)]
        self.fixed = {memory_of(t): n for n, t in tensors(module)}
        """Where parameters and buffers lie."""
        self.counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in flat((args, kwargs)) if isinstance(t, Tensor)]
        label = name_of(func)
        if func is is_constant:
            return isinstance(self.ledger.value(args[0], label), Tensor)
        if label in METADATA or not given:
            return self._made(func(*args, **kwargs), given)
        name = self._name(label)
        values = {id(t): self.ledger.value(t, name) for t in given}
        moving = [v for v in values.values() if isinstance(v, Signal | Turned | Name) or v is COMPUTED]
        written = self._target(label, args, kwargs)
        if isinstance(written, Tensor) and not isinstance(values[id(written)], Signal):
            if (held := self.fixed.get(memory_of(written))) is not None:
                raise UnsupportedModel(f"no rule for {label} at node '{name}': it changes '{held}' in forward")
            if memory_of(written) not in self.ledger.fresh:
                raise UnsupportedModel(f"no rule for {label} at node '{name}': it changes a tensor that outlives the forward")
        shaped = label in SHAPED and isinstance(args[0], Tensor) and isinstance(values[id(args[0])], Tensor)
        if not moving or label in CONSTANT or shaped:
            return self._made(func(*args, **kwargs), given)
        before = None
        if isinstance(written, Tensor) and isinstance(values[id(written)], Tensor):
            before = whole(written).clone()
        versions = [version_of(t) for t in given]
        result = func(*args, **kwargs)
        changed = [t for t, v in zip(given, versions, strict=True) if version_of(t) != v]
        if changed:
            write(self.ledger, Called(func, label, name, args, kwargs, values), changed, written, before)
            return result
        self._put_result(Called(func, label, name, args, kwargs, values), result)
        return result

    def _made(self, result: Any, given: list[Tensor]) -> Any:
        """Keeps the result of an operation on constants, and notes memory that is new."""
        known = {memory_of(t) for t in given}
        for t in flat(result):
            if isinstance(t, Tensor):
                self.ledger.kept.append(t)
                if (key := memory_of(t)) not in known:
                    self.ledger.fresh.add(key)
        return result

    def _name(self, label: str) -> str:
        count = self.counts.get(label, 0)
        self.counts[label] = count + 1
        return f"{label}_{count}" if count else label

    @staticmethod
    def _target(label: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The tensor that the operation is expected to write into."""
        if kwargs.get("out") is not None:
            return kwargs["out"]
        first = args[0] if args else kwargs.get("input")
        return first if label.endswith("_") or label == "setitem" or kwargs.get("inplace") else None

    def _put_result(self, c: Called, result: Any) -> None:
        signals = [v for v in c.values.values() if isinstance(v, Signal | Turned)]
        if not signals:
            of_parameters(self.ledger, c, result)
            return
        outputs = [t for t in flat(result) if isinstance(t, Tensor)]
        if not outputs:
            raise c.refuse("what it returns is not a tensor: the forward depends on values of the signal")
        found = results(self.ledger, c, outputs)
        for t, value in zip(outputs, found, strict=True):
            self.ledger.put(t, value)

    def recorded(self, y: Any) -> Recorded:
        """What was recorded, without nodes that the logits do not depend on."""
        now = dict(tensors(self.module))
        for name, t, version in self.state:
            if now.get(name) is not t or version_of(t) != version:
                raise UnsupportedModel(
                    f"the forward changes '{name}': its outputs would depend on what it was called with before"
                )
        if len(now) != len(self.state):
            raise UnsupportedModel("the forward adds parameters or buffers to the model")
        value = self.ledger.value(y, "output")
        if not isinstance(value, Signal):
            raise UnsupportedModel(
                "the model's output does not come from operations that tracing sees (torch.jit, NumPy, custom kernels?), or does "
                "not depend on its input"
            )
        nodes = commuted(self.ledger.nodes)
        wanted = {value.number}
        for i in range(value.number, -1, -1):
            if i in wanted:
                wanted.update(nodes[i].inputs)
        kept = sorted(wanted | {0})
        place = {old: new for new, old in enumerate(kept)}
        return Recorded(tuple(replace(nodes[i], inputs=tuple(place[k] for k in nodes[i].inputs)) for i in kept), value.head)
