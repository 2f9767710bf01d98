"""tracing.py - what a module does to a batch of inputs, operation by operation, as nodes (network/nodes.py).

The module's own Python runs once, on real tensors of a known shape, and every torch function that it calls passes through a
`TorchFunctionMode`: shapes, asserts and branches on shapes are what they are, hooks and parametrisations run, names of parameters
are those of the module.  What is recorded is what was called, on which tensors; a value is known by its tensor, not by its name.

*Memory.*  A view shares memory with its base, and an operation in place changes all tensors that overlap with what it writes.
Each write is kept, with the places in memory that it fills; a tensor that is read later takes those elements from it.

*Refused, by name*: what has no rule; numbers and branches computed from values of the signal or of a parameter; changes of
parameters and buffers; random numbers; parameters of another module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nonsingular.errors import UnsupportedModel
from nonsingular.network.calls import COMPUTED, HEADS, Call, Head, Name, Signal, gathered, rows_alike
from nonsingular.network.nodes import Input, Map, Node, Sum
from nonsingular.network.operators import RULES

PROBES = 5
"""Examples that a module is recorded on.  Not 1: an operation across the batch must show."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METADATA = _words(
    "size dim shape ndim ndimension dtype device layout is_cuda is_cpu is_floating_point is_complex numel nelement element_size "
    "itemsize nbytes stride is_contiguous requires_grad requires_grad_ is_sparse is_quantized is_nested is_meta len get_device "
    "is_tensor names has_names is_leaf grad_fn repr format str dim_order hash set_grad_enabled is_inference is_same_size "
    "is_conj is_neg is_mkldnn is_xla is_mps is_ipu is_xpu is_vulkan is_storage is_signed"
)
"""Operations that read no value.  (What is printed is taken for not coming back.)"""
_CONSTANT = _words(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor rand_like randn_like"
)
"""Operations that take a tensor for its shape and kind alone."""
_SHAPED = _words("to type_as expand_as view_as reshape_as")
"""Operations that take their second tensor for its shape and kind alone."""
_CASTS = _words("to type type_as float double half bfloat16 cpu cuda")
_SAME = _words("contiguous clone detach data alias positive")
"""Operations that give their argument."""
_SELECTIONS = _words(
    "chunk split split_with_sizes hsplit vsplit dsplit unbind getitem narrow select index_select gather take_along_dim "
    "flip fliplr flipud roll expand expand_as repeat tile repeat_interleave broadcast_to t T mT adjoint H mH swapaxes swapdims "
    "moveaxis movedim transpose permute diagonal unfold rot90 view view_as reshape reshape_as flatten unflatten ravel squeeze "
    "unsqueeze pixel_shuffle pixel_unshuffle channel_shuffle as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors "
    "native_channel_shuffle tensor_split movedim"
)
"""Operations whose every output element is one of the elements of their first argument."""
_NATIVE = _words("permute transpose swapaxes swapdims movedim moveaxis pixel_shuffle pixel_unshuffle channel_shuffle flip mT")
"""Of these, those whose arguments do not depend on the size of the batch: they are quicker than an index."""
_CAREFUL = _words(
    "relu relu6 clamp clip clamp_min clamp_max add sub subtract mul multiply div divide true_divide sigmoid tanh abs "
    "neg negative leaky_relu elu celu selu silu hardtanh hardswish hardsigmoid threshold rrelu dropout dropout1d dropout2d "
    "dropout3d alpha_dropout masked_fill"
)
"""Operations whose rule also holds when they write their result into an argument."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """nodes: in the order of computation, from the input to the logits.  head: what the module does to these at last."""

    nodes: tuple[Node, ...]
    head: Head | None


class Casts(TorchFunctionMode):
    """While it lasts, casts to a floating-point type at least as precise as `own` are casts to `dtype`."""

    def __init__(self, own: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.own, self.dtype = own, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        z, kwargs = args[0] if args else None, kwargs or {}
        if _label(func) not in _CASTS or not isinstance(z, Tensor) or z.dtype != self.dtype:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  # a cast of nothing shows to what
            cast_to = func(torch.empty(0, dtype=z.dtype, device=z.device), *args[1:], **kwargs)
        if not isinstance(cast_to, Tensor) or not _at_least(cast_to.dtype, self.own):
            return func(*args, **kwargs)
        return z.to(cast_to.device)


def record(module: nn.Module, x: Tensor) -> Recorded:
    """The nodes of a call of `module`, a copy that may be written into, on the inputs `x` (PROBES, *input).

    Raises UnsupportedModel, with node and operation, for what has no rule.  Other errors are the module's own.
    Cost: a forward pass, and about 20 microseconds for each operation.
    """
    mode = _Recorder(module, x)
    chance = torch.random.get_rng_state()
    with mode:
        y = module(x)
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x):
        raise UnsupportedModel("the model does not return one (B, K) tensor of logits")
    if not torch.equal(chance, torch.random.get_rng_state()):
        raise UnsupportedModel("the forward draws random numbers; make it deterministic in eval mode")
    return mode.recorded(y)


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


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in module.named_parameters()}
        self.module = module
        self.state = [(n, t, _version(t)) for n, t in _tensors(module)]
        self.fixed = {_memory_of(t): n for n, t in _tensors(module)}
        """Where parameters and buffers lie."""
        self.nodes: list[Node] = [Input("x", (), tuple(x.shape[1:]))]
        self.entries: dict[int, _Entry] = {}
        self.memories: dict[int, _Memory] = {}
        self.counts: dict[str, int] = {}
        self.fresh: set[int] = set()
        """Where constants lie that the forward makes; it may write into these."""
        self.kept: list[Tensor] = []
        """What must not be freed: memory is known by its address."""
        self.batch, self.dtype, self.device = len(x), x.dtype, x.device
        self._put(x, Signal(0, tuple(x.shape[1:])))

    # --- what is known of tensors

    def _put(self, t: Tensor, value: Any) -> None:
        self.entries[id(t)] = _Entry(t, value, len(self._memory(t).writes))

    def _memory(self, t: Tensor) -> _Memory:
        return self.memories.setdefault(_memory_of(t), _Memory())

    def _value(self, t: Tensor, name: str) -> Any:
        """A Signal, a Name, COMPUTED, or the tensor itself: a constant."""
        entry, memory = self.entries.get(id(t)), self._memory(t)
        if entry is None:
            if id(t) in self.names:
                return Name(self.names[id(t)], tuple(t.shape), tuple(t.shape))
            if isinstance(t, nn.Parameter):
                raise UnsupportedModel(
                    f"'{name}' uses a parameter of shape {tuple(t.shape)} that is not among the model's (held by a closure, a "
                    "hook or a global?): it would not move; register it as a parameter of the model"
                )
            if memory.before is None:
                return t.clone() if _memory_of(t) in self.fresh else t  # it may be written into later
            before = memory.before.clone()
            for filled, _, _ in memory.writes:
                before[filled >= 0] = 0
            shape, old = tuple(t.shape[1:]), before[_places(t)]
            if t.dim() == 0 or len(t) != self.batch or not rows_alike(old):
                raise UnsupportedModel(
                    f"'{name}' reads a part of memory that a signal was written into, but not example by example"
                )
            zero = Sum(name, (0,), shape, (0.0,), old[:1]) if shape == self.nodes[0].shape else None
            number = self._append(zero) if zero else self._constant(name, shape, old[:1])
            entry = _Entry(t, Signal(number, shape), 0)
        if isinstance(entry.value, Signal):
            for places, node, writer in memory.writes[entry.at :]:
                entry.value = self._overwritten(t, entry.value, places, node, writer, name)
        elif len(memory.writes) > entry.at:
            raise UnsupportedModel(f"'{name}' reads a computed value that was written into")
        entry.at = len(memory.writes)
        self.entries[id(t)] = entry
        return entry.value

    def _constant(self, name: str, shape: tuple[int, ...], value: Tensor) -> int:
        """The number of a node that is constant: one element of the input, repeated, times 0."""
        n = torch.Size(shape).numel()
        first = torch.zeros(n, dtype=torch.long, device=value.device)
        self._append(Map(name, (0,), shape, gathered(first, shape)))
        return self._append(Sum(name, (len(self.nodes) - 1,), shape, (0.0,), value))

    def _overwritten(self, t: Tensor, old: Signal, places: Tensor, node: int, writer: str, name: str) -> Signal:
        """The signal of `t` after a write: its elements whose place was filled are those of the node there."""
        source = places[_places(t)].flatten(1) if t.dim() > 1 else places[_places(t)][:, None]
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
            made = Map(writer, (node,), old.shape, gathered(index, old.shape))
        else:
            kept = torch.arange(len(index), device=index.device) + n
            made = Map(writer, (node, old.number), old.shape, gathered(torch.where(index >= 0, index, kept), old.shape))
        return Signal(self._append(made), old.shape)

    def _append(self, node: Node) -> int:
        inputs = tuple(len(self.nodes) + i if i < 0 else i for i in node.inputs)  # -1: the node before it
        self.nodes.append(replace(node, inputs=inputs))
        return len(self.nodes) - 1

    # --- operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in _flat((args, kwargs)) if isinstance(t, Tensor)]
        label = _label(func)
        if label in _METADATA or not given:
            return self._made(func(*args, **kwargs), given)
        name = self._name(label)
        values = {id(t): self._value(t, name) for t in given}
        moving = [v for v in values.values() if isinstance(v, Signal | Name) or v is COMPUTED]
        written = self._target(label, args, kwargs)
        if isinstance(written, Tensor) and not isinstance(values[id(written)], Signal):
            if (held := self.fixed.get(_memory_of(written))) is not None:
                raise UnsupportedModel(f"no rule for {label} at node '{name}': it changes '{held}' in forward")
            if _memory_of(written) not in self.fresh:
                raise UnsupportedModel(f"no rule for {label} at node '{name}': it changes a tensor that outlives the forward")
        shaped = label in _SHAPED and isinstance(args[0], Tensor) and isinstance(values[id(args[0])], Tensor)
        if not moving or label in _CONSTANT or shaped:
            return self._made(func(*args, **kwargs), given)
        before = None
        if isinstance(written, Tensor) and isinstance(values[id(written)], Tensor):
            before = _whole(written).clone()
        versions = [_version(t) for t in given]
        result = func(*args, **kwargs)
        changed = [t for t, v in zip(given, versions, strict=True) if _version(t) != v]
        if changed:
            self._write(_Called(func, label, name, args, kwargs, values), changed, written, before)
            return result
        self._put_result(_Called(func, label, name, args, kwargs, values), result)
        return result

    def _made(self, result: Any, given: list[Tensor]) -> Any:
        """Of an operation on constants."""
        known = {_memory_of(t) for t in given}
        for t in _flat(result):
            if isinstance(t, Tensor):
                self.kept.append(t)
                if (key := _memory_of(t)) not in known:
                    self.fresh.add(key)
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

    def _put_result(self, c: _Called, result: Any) -> None:
        signals = [v for v in c.values.values() if isinstance(v, Signal)]
        if not signals:
            self._of_parameters(c, result)
            return
        outputs = [t for t in _flat(result) if isinstance(t, Tensor)]
        if not outputs:
            raise c.refuse("what it returns is no tensor: the forward depends on values of the signal")
        found = self._results(c, outputs)
        for t, value in zip(outputs, found, strict=True):
            self._put(t, value)

    def _of_parameters(self, c: _Called, result: Any) -> None:
        """Of operations on parameters alone: a part or another order of one parameter, or computed."""
        tensors = [t for t in _flat(result) if isinstance(t, Tensor)]
        if not tensors and result is not None:
            raise c.refuse("it reads values of a parameter as numbers, which would not move with it")
        names = [v for v in c.values.values() if isinstance(v, Name)]
        alone = len(names) == 1 and COMPUTED not in c.values.values() and c.args and isinstance(c.value(c.args[0]), Name)
        for k, t in enumerate(tensors):
            same = c.label in _SAME or (c.label in _CASTS and t.dtype == c.args[0].dtype)
            if c.label == "embedding" and len(names) == 1 and len(c.values) == 2 and c.value(c.args[1]) is names[0]:
                self._put(t, _rows_of(names[0], cast(Tensor, c.value(c.args[0])), t))
            elif alone and same:
                self._put(t, replace(names[0], shape=tuple(t.shape)))
            elif alone and c.label in _SELECTIONS:
                self._put(t, _part_of(names[0], c, k if isinstance(result, tuple | list) else None, t))
            else:
                self._put(t, COMPUTED)

    def _results(self, c: _Called, outputs: list[Tensor]) -> list[Any]:
        first = c.values.get(id(c.args[0])) if c.args and isinstance(c.args[0], Tensor) else None
        if isinstance(first, Signal) and first.head and not self._keeps_order(c, first, outputs):
            raise UnsupportedModel(
                f"no rule for {first.head} at node '{c.name}': {c.label} follows, and it is only known at the end of a network"
            )
        signals = [v for v in c.values.values() if isinstance(v, Signal)]
        if any(s.head for s in signals if s is not first):
            raise c.refuse("its argument is a softmax, which is only known at the end of a network")
        if c.label in _CASTS or c.label in _SAME:
            return [self._same(c, first, outputs[0])]
        if c.label in HEADS:
            return [self._head(c, first, outputs[0])]
        if (
            c.rule() is None
            and c.label in _SELECTIONS
            and isinstance(first, Signal)
            and (len(signals) == 1 or c.label in _SHAPED)
        ):
            return [self._selected(c, first, t, k) for k, t in enumerate(outputs)]
        made = self._apply(c, outputs[0])
        if isinstance(first, Signal) and first.head:
            made = replace(made, head=first.head)
        return [made, *[COMPUTED] * (len(outputs) - 1)]

    def _apply(self, c: _Called, value: Tensor) -> Signal:
        """The nodes of an operation with a rule."""
        rule = c.rule()
        args, kwargs = tuple(c.known(a) for a in c.args), {k: c.known(v) for k, v in c.kwargs.items()}
        call = Call(c.name, c.func, args, kwargs, tuple(value.shape[1:]), self.batch, self.dtype, self.device)
        if rule is None:
            raise call.refuse("nonsingular does not know it")
        nodes = rule(call)
        if value.dim() == 0 or len(value) != self.batch:
            raise call.refuse("it does not keep the batch as first dimension")
        for node in nodes:
            self._append(node)
        number = len(self.nodes) - 1 if nodes else next(v for v in c.values.values() if isinstance(v, Signal)).number
        return Signal(number, tuple(value.shape[1:]))

    def _same(self, c: _Called, z: Any, out: Tensor) -> Signal:
        source = cast(Tensor, c.args[0])
        if not isinstance(z, Signal):
            raise c.refuse("its first argument is not the signal")
        if out.dtype != source.dtype and not _at_least(out.dtype, source.dtype):
            raise c.refuse(f"it rounds {source.dtype} to {out.dtype}")
        return z

    def _keeps_order(self, c: _Called, z: Signal, outputs: list[Tensor]) -> bool:
        """Whether an operation after a softmax leaves the order of the classes, and its values, alone."""
        if c.label in _SAME or c.label in _CASTS:
            return True
        if c.label == "log" and z.head == "softmax":
            return True
        reshapes = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "dropout")
        return c.label in reshapes and len(outputs) == 1 and outputs[0].numel() == c.args[0].numel()

    def _head(self, c: _Called, z: Any, out: Tensor) -> Signal:
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

    def _selected(self, c: _Called, z: Signal, out: Tensor, k: int) -> Signal:
        """An operation that moves elements, by running it on their numbers."""
        if c.label not in _SHAPED and any(v is COMPUTED or isinstance(v, Name) for v in c.values.values()):
            raise c.refuse("an argument besides the first is a parameter or computed")
        source = cast(Tensor, c.args[0])
        numbers = torch.arange(source.numel(), device=source.device).view(source.shape)
        found = c.func(numbers, *c.args[1:], **c.kwargs)
        found = cast(Tensor, found if isinstance(found, Tensor) else found[k])
        n = torch.Size(z.shape).numel()
        if found.dim() == 0 or len(found) != self.batch:
            raise c.refuse("it does not keep the batch as first dimension")
        own = found.flatten(1) if found.dim() > 1 else found[:, None]
        own = own - n * torch.arange(self.batch, device=own.device)[:, None]
        if bool(((own < 0) | (own >= n)).any()) or not rows_alike(own):
            raise c.refuse("it takes a part of the batch, or mixes it")
        shape, index = tuple(out.shape[1:]), own[0]
        once = len(index.unique()) == len(index)
        apply = partial(_again, c.func, c.args[1:], c.kwargs) if c.label in _NATIVE else gathered(index, shape)
        return Signal(self._append(Map(c.name, (z.number,), shape, apply, once)), shape)

    # --- in place

    def _write(self, c: _Called, changed: list[Tensor], written: Any, before: Tensor | None) -> None:
        """Follows an operation that changed one of its arguments."""
        if not isinstance(written, Tensor) or {_memory_of(t) for t in changed} != {_memory_of(written)}:
            raise c.refuse("it works in place on an argument where that is not expected")
        old = c.values[id(written)]
        if isinstance(old, Name) or old is COMPUTED:
            raise c.refuse("it changes a parameter, or a value computed from one, in place")
        store = self._memory(written)
        if isinstance(old, Tensor) and store.before is None:
            assert before is not None
            store.before = before
            self.kept.append(written)
        if c.label == "setitem":
            self._set(c, written)
            return
        if c.label in ("copy_", "fill_", "zero_"):
            number = self._filled(c, written, c.args[1] if len(c.args) > 1 else c.kwargs.get("src", c.kwargs.get("value", 0.0)))
        else:
            plain = c.label.rstrip("_")
            if plain not in _CAREFUL and "out" not in c.kwargs:
                raise c.refuse("nonsingular does not know it in place")
            kwargs = {k: v for k, v in c.kwargs.items() if k not in ("out", "inplace")}
            made = self._apply(_Called(c.func, plain, c.name, c.args, kwargs, c.values), written)
            number = made.number
        self._wrote(c, written, number, torch.arange(written.numel(), device=written.device).view(written.shape))

    def _wrote(self, c: _Called, written: Tensor, number: int, numbers: Tensor, at: Tensor | None = None) -> None:
        """Keeps that the elements `numbers` (over all examples) of a node lie at the places of `written`, or at `at`."""
        store = self._memory(written)
        places = torch.full((_whole(written).numel(),), -1, dtype=torch.long, device=written.device)
        places[_places(written) if at is None else at] = numbers
        store.writes.append((places, number, c.name))

    def _filled(self, c: _Called, written: Tensor, value: Any) -> int:
        """A node of the shape of `written` that holds `value`."""
        shape = tuple(written.shape[1:])
        value = c.known(value)
        if written.dim() == 0 or len(written) != self.batch:
            raise c.refuse("it writes across the batch, or into a part of it")
        if isinstance(value, Signal):
            if value.shape == shape:
                return value.number
            if len(value.shape) > len(shape):
                raise c.refuse("it changes the number of dimensions")
            lead = (1,) * (len(shape) - len(value.shape))
            numbers = torch.arange(torch.Size(value.shape).numel(), device=written.device).view(*lead, *value.shape)
            # torch aligns the last dimensions: a signal with fewer of them would meet the batch with its own
            if lead:
                raise c.refuse("a signal of fewer dimensions would be spread across the batch")
            return self._append(Map(c.name, (value.number,), shape, gathered(numbers.expand(shape).flatten(), shape)))
        if isinstance(value, Name) or value is COMPUTED:
            raise c.refuse("it writes a parameter into the signal")
        full = torch.as_tensor(value, dtype=written.dtype, device=written.device).expand(written.shape)
        if not rows_alike(full):
            raise c.refuse("it writes different constants for each example of the batch")
        return self._constant(c.name, shape, full[:1].clone())

    def _set(self, c: _Called, written: Tensor) -> None:
        """t[index] = value."""
        index, value = c.args[1], c.args[2]
        if any(not isinstance(c.values[id(t)], Tensor) for t in _flat(index) if isinstance(t, Tensor)):
            raise c.refuse("where it writes depends on values of the signal or of a parameter")
        places = _places(written)
        at = places[index]
        shape, known = tuple(at.shape[1:]), c.known(value)
        if not isinstance(known, Signal | Name) and known is not COMPUTED:  # a constant: it may reach any elements of an example
            filled = torch.zeros(_whole(written).numel(), dtype=torch.bool, device=written.device)
            filled[at.flatten()] = True
            here = filled[places]
            new = torch.where(here, written.detach(), 0.0)
            if written.dim() == 0 or len(written) != self.batch or not rows_alike(here) or not rows_alike(new):
                raise c.refuse("it writes across the batch, or into a part of it")
            number = self._constant(c.name, tuple(written.shape[1:]), new[:1].clone())
            numbers = torch.arange(written.numel(), device=written.device).view(written.shape)
            self._wrote(c, written, number, numbers[here], places[here])
            return
        if at.dim() == 0 or len(at) != self.batch or (isinstance(value, Tensor) and value.dim() != at.dim()):
            raise c.refuse("it writes across the batch, or into a part of it")
        number = self._filled(c, written.new_empty(()).expand(self.batch, *shape), value)
        self._wrote(c, written, number, torch.arange(at.numel(), device=at.device).view(at.shape), at)

    # --- the end

    def recorded(self, y: Any) -> Recorded:
        """What was recorded, without nodes that the logits do not depend on."""
        now = dict(_tensors(self.module))
        for name, t, version in self.state:
            if now.get(name) is not t or _version(t) != version:
                raise UnsupportedModel(
                    f"the forward changes '{name}': its outputs would depend on what it was called with before"
                )
        if len(now) != len(self.state):
            raise UnsupportedModel("the forward adds parameters or buffers to the model")
        value = self._value(y, "output")
        if not isinstance(value, Signal):
            raise UnsupportedModel(
                "the model's output does not come from operations that tracing sees (torch.jit, NumPy, custom kernels?), or does "
                "not depend on its input"
            )
        wanted = {value.number}
        for i in range(value.number, -1, -1):
            if i in wanted:
                wanted.update(self.nodes[i].inputs)
        kept = sorted(wanted | {0})
        place = {old: new for new, old in enumerate(kept)}
        nodes = [replace(self.nodes[i], inputs=tuple(place[k] for k in self.nodes[i].inputs)) for i in kept]
        return Recorded(tuple(nodes), value.head)


@dataclass(frozen=True, eq=False)
class _Called:
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
        """By the function itself, else by its name, if it is a method."""
        if self.func in RULES:
            return RULES[self.func]
        return RULES.get(self.label)

    def refuse(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"no rule for {self.label} at node '{self.name}': {why}")


def _part_of(name: Name, c: _Called, k: int | None, t: Tensor) -> Name:
    """A part, or another order, of a parameter."""
    func, rest, kwargs, inner = c.func, c.args[1:], c.kwargs, name.view

    def view(w: Tensor) -> Tensor:
        w = inner(w)
        found = (
            w.reshape(*rest, **kwargs) if c.label == "view" and not isinstance(rest[0], torch.dtype) else func(w, *rest, **kwargs)
        )
        return found if k is None else found[k]

    return Name(name.of, tuple(t.shape), name.whole, view)


def _again(func: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], t: Tensor) -> Tensor:
    return func(t, *rest, **kwargs)


def _rows_of(name: Name, rows: Tensor, t: Tensor) -> Name:
    inner = name.view
    return Name(name.of, tuple(t.shape), name.whole, lambda w: inner(w)[rows])


def _label(func: Any) -> str:
    """The name of a function, of a method, or of the attribute that it reads: `add`, `setitem`, `relu_`, `shape`."""
    return _labels.get(func) or _labels.setdefault(func, _labelled(func))


_labels: dict[Any, str] = {}


def _labelled(func: Any) -> str:
    name: str = getattr(func, "__name__", str(func))
    if not _of_torch(func, name):
        return f"{getattr(func, '__module__', None) or type(func).__name__}.{name}"
    if name in ("__get__", "__set__", "__delete__"):
        attribute: str = getattr(func.__self__, "__name__", "attribute")
        return attribute if name == "__get__" else f"{attribute} ="
    return name.strip("_") if name.startswith("__") else name


def _of_torch(func: Any, name: str) -> bool:
    """Whether a function is what torch means by its name: not a custom operator of the same one."""
    places = (torch.Tensor, torch, nn.functional)
    if name in ("__get__", "__set__", "__delete__") or getattr(func, "__module__", None) == "torch._C._nn":
        return True
    return any(getattr(place, name, None) is func or getattr(place, name, None) == func for place in places)


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _memory_of(t: Tensor) -> int:
    """The address of a tensor's storage; of an empty one another number."""
    return t.untyped_storage().data_ptr() or -id(t)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for v in cast("list[Any]", value):
            yield from _flat(v)
    elif isinstance(value, dict):
        for v in cast("dict[Any, Any]", value).values():
            yield from _flat(v)
    elif isinstance(value, slice):
        yield from _flat((value.start, value.stop, value.step))
    else:
        yield value


def _whole(t: Tensor) -> Tensor:
    """The storage of a tensor, as one flat tensor of its dtype."""
    n = t.untyped_storage().nbytes() // t.element_size()
    return t.detach().as_strided((n,), (1,), 0)


def _places(t: Tensor) -> Tensor:
    """Where each element of a tensor lies in its storage."""
    n = t.untyped_storage().nbytes() // t.element_size()
    return torch.arange(n, device=t.device).as_strided(t.shape, t.stride(), t.storage_offset())


def _at_least(new: torch.dtype, old: torch.dtype) -> bool:
    """Whether a cast keeps every value."""
    if not (new.is_floating_point and old.is_floating_point):
        return False
    return torch.finfo(new).eps <= torch.finfo(old).eps and torch.finfo(new).max >= torch.finfo(old).max


_ACTIVE: list[Casts] = []


def enter_casts(own: torch.dtype, dtype: torch.dtype, module: nn.Module, args: Any) -> None:
    _ACTIVE.append(Casts(own, dtype))
    _ACTIVE[-1].__enter__()


def leave_casts(module: nn.Module, args: Any, result: Any) -> None:
    _ACTIVE.pop().__exit__(None, None, None)
