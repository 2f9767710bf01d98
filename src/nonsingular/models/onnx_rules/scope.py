"""scope.py - the values of an ONNX graph while it is read: constants, signals, and sizes that only the input decides.

A rule is written once for all three.  `Scope.call` computes it where every argument is constant, and writes a node of torch.fx
where one is a signal; what a node gives is followed on tensors without values ("meta"), of two batch sizes, so that shapes are
known and a size that differs between the two is one that the input decides.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from nonsingular.errors import UnsupportedModel
from nonsingular.models.fx_writer import Writer

LIMIT = 2**24
"""Elements of a matrix, or of all constants computed from others beyond eight times what a file holds: more is not a
network, but a file made to fill the memory."""


class Size:
    """A size that is known when the network runs: arithmetic on it is written into the graph."""

    def __init__(self, scope: Scope, node: fx.Node) -> None:
        self.scope, self.node = scope, node

    def write(self, f: Callable[..., Any], *args: Any) -> Size:
        return Size(self.scope, self.scope.call(f, *args))

    # Python finds operators by these names alone, and a type checker reads them only where they are written out.

    def __add__(self, other: Any) -> Size:
        return self.write(operator.add, self, other)

    def __radd__(self, other: Any) -> Size:
        return self.write(operator.add, other, self)

    def __sub__(self, other: Any) -> Size:
        return self.write(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Size:
        return self.write(operator.sub, other, self)

    def __mul__(self, other: Any) -> Size:
        return self.write(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Size:
        return self.write(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Size:
        return self.write(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Size:
        return self.write(operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Size:
        return self.write(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Any) -> Size:
        return self.write(operator.floordiv, other, self)

    def __mod__(self, other: Any) -> Size:
        return self.write(operator.mod, self, other)

    def __neg__(self) -> Size:
        return self.write(operator.neg, self)


Sizes = list[int | Size]


class Scope(Writer):
    """Values by their ONNX names: None (left out), Tensor (constant), fx.Node (signal), list (a sequence), or a numpy array
    of numbers and Sizes.

    batch: the number of examples, and `fixed` what the file takes it for, where the graph is written for any batch.
    """

    def __init__(self, onnx: Any, path: Path, opset: int) -> None:
        super().__init__()
        self.onnx, self.path, self.opset = onnx, path, opset
        self.values: dict[str, Any] = {"": None}
        self.users: dict[str, int] = {}
        """By how many inputs of nodes a value is used."""
        self.seen: dict[fx.Node, tuple[Any, ...]] = {}
        """What a node gives on the probes."""
        self.kinds: dict[str, str] = {}
        """Kinds of numbers of constants, as ONNX calls them."""
        self.forms: dict[str, tuple[Any, ...]] = {}
        """Words -> what they were first made real numbers with."""
        self.names: dict[int, str] = {}
        """id of a constant -> its ONNX name."""
        self.batch: Size | None = None
        self.fixed: int | None = None
        self.added = False
        """Whether the file has no batch, and one was put before its dimensions."""
        self._room = LIMIT
        """Elements that computed constants may still have."""
        self._alive: list[Tensor] = []

    def hold(self, name: str, value: Tensor) -> None:
        """A constant of the file."""
        self.keep(name, value)
        self._room += 8 * value.numel()

    def begin(self, shapes: Sequence[Sequence[int]], any_batch: bool, fixed: int | None, added: bool) -> fx.Node:
        """The input, with the shapes of its probes."""
        self.added = added
        x = self.graph.placeholder("x")
        self.seen[x] = tuple(torch.empty(*s, device="meta") for s in shapes)
        if any_batch:
            self.batch, self.fixed = Size(self, self.call("size", x, 0)), fixed
        return x

    def keep(self, name: str, value: Any) -> None:
        """Gives a value its name."""
        self.values[name] = value
        if isinstance(value, Tensor):
            self.names.setdefault(id(value), name)

    # --- calls --------------------------------------------------------------------------------------------------------------

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """What `target` (a function, or a method by its name) gives: computed for constants, written for anything else."""
        if not any(isinstance(v, fx.Node | Size) for v in _leaves((args, kwargs))):
            return self._computed(target, args, kwargs)
        args, kwargs = map_aggregate((args, kwargs), self._written)  # type: ignore[assignment]
        node = super().call(target, *args, **kwargs)
        self.seen[node] = tuple(self._on_probe(i, target, args, kwargs) for i in range(len(next(iter(self.seen.values())))))
        return node

    def _written(self, value: Any) -> Any:
        if isinstance(value, Size):
            return value.node
        if not isinstance(value, Tensor):
            return value
        self._alive.append(value)  # so that no other constant gets its id
        return self.buffer(self.names.get(id(value), "constant"), value, f"fixed {id(value)}")

    def _on_probe(self, i: int, target: Any, args: Any, kwargs: Any) -> Any:
        def seen(node: fx.Node) -> Any:
            return self.seen[node][i]

        return _run(target, *map_arg((args, kwargs), seen))

    def _computed(self, target: Any, args: Any, kwargs: Any) -> Any:
        try:
            with torch.device("meta"):
                sizes = _run(target, *map_aggregate((args, kwargs), _without_values))
        except (NotImplementedError, RuntimeError, TypeError):
            sizes = None  # an operation that looks at values
        self._room -= sum(v.numel() for v in _leaves(sizes) if isinstance(v, Tensor))
        if self._room < 0:
            raise UnsupportedModel(f"{self.path} computes constants of far more numbers than it holds; export with them folded")
        return _run(target, args, kwargs)

    def _attribute(self, name: str, value: Tensor, form: str) -> fx.Node:
        node = super()._attribute(name, value, form)
        if node not in self.seen:
            self.seen[node] = (value.detach().to("meta"),) * len(next(iter(self.seen.values())))
        return node

    @property
    def source(self) -> fx.Node:
        """The model's input, whose device and kind of numbers are those of the run."""
        return next(iter(self.seen))

    # --- shapes -------------------------------------------------------------------------------------------------------------

    def shape(self, value: Any) -> tuple[int, ...]:
        """On the first probe."""
        return tuple(value.shape if isinstance(value, Tensor) else self.seen[value][0].shape)

    def dtype(self, value: Any) -> torch.dtype:
        return value.dtype if isinstance(value, Tensor) else self.seen[value][0].dtype

    def is_open(self, value: Any, dim: int) -> bool:
        """Whether the input decides this size."""
        return isinstance(value, fx.Node) and len({v.shape[dim] for v in self.seen[value]}) > 1

    def dims(self, value: Any) -> Sizes:
        """The shape, with a Size where the input decides it."""
        known = self.shape(value)
        return [Size(self, self.call("size", value, i)) if self.is_open(value, i) else n for i, n in enumerate(known)]


def _run(target: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _leaves(value: Any) -> Iterator[Any]:
    found: list[Any] = []
    map_aggregate(value, lambda v: found.append(v))  # pyright: ignore[reportArgumentType]
    return iter(found)


# --- nodes ------------------------------------------------------------------------------------------------------------------


class Node:
    """One ONNX node: its operator, inputs and attributes."""

    def __init__(self, scope: Scope, proto: Any) -> None:
        self.scope, self.proto = scope, proto
        self.op: str = proto.op_type
        self.name: str = proto.name or next(iter(proto.output), "")
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self.domain: str = proto.domain
        self.attributes = {a.name: scope.onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def refuse(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"no rule for ONNX operator {self.op} at node '{self.name}' of {self.scope.path}: {why}")

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return self.scope.call(target, *args, **kwargs)

    # what its inputs are

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and bool(self.inputs[i])

    def value(self, i: int) -> Any:
        """None where the input is left out."""
        return self.scope.values[self.inputs[i]] if self.has(i) else None

    @property
    def values(self) -> list[Any]:
        return [self.value(i) for i in range(len(self.inputs))]

    @property
    def moves(self) -> bool:
        """Whether an input is computed from the model's input."""
        return any(isinstance(v, fx.Node) for v in self.values)

    def tensor(self, i: int = 0) -> Any:
        """A constant or a signal."""
        value = self.value(i)
        if isinstance(value, numpy.ndarray):
            raise self.refuse(f"its input {i + 1} is computed from sizes of the input; export with fixed sizes but for the batch")
        if not isinstance(value, Tensor | fx.Node):
            raise self.refuse(f"its input {i + 1} is left out" if value is None else f"its input {i + 1} is a sequence")
        return value

    def constant(self, i: int) -> Tensor | None:
        """None where the input is left out."""
        value = self.value(i)
        if value is not None and not isinstance(value, Tensor):
            raise self.refuse(f"its input '{self.inputs[i]}' is not constant")
        return value

    def numbers(self, i: int, attribute: str = "") -> list[int] | None:
        """Constant whole numbers, which other opsets have as an attribute; None if neither is there."""
        found = self.constant(i)
        return self.get(attribute) if found is None else [int(v) for v in found.flatten().tolist()]

    def sizes(self, i: int, attribute: str = "") -> Sizes | None:
        """Whole numbers and Sizes; None if they are left out."""
        value = self.value(i)
        found = list(value.reshape(-1)) if isinstance(value, numpy.ndarray) else self.numbers(i, attribute)
        return cast("Sizes | None", found)

    def rank(self, i: int = 0) -> int:
        return len(self.scope.shape(self.tensor(i)))

    def weight(self, i: int, change: Callable[[Tensor], Tensor] = lambda v: v, form: str = "") -> Any:
        """An input that may move: a parameter where it is constant and meets a signal.

        change: what is done to it first; the result is another parameter, unless `form` is the same.
        """
        value = self.value(i)
        if isinstance(value, fx.Node):
            return self.call(change, value)
        if value is None or not self.moves:
            return None if value is None else change(self.tensor(i))
        return self.scope.parameter(self.inputs[i], change(self.tensor(i)), form)


def product(sizes: Sequence[Any]) -> Any:
    """The product of numbers and Sizes."""
    total: Any = 1
    for s in sizes:
        total = total * s
    return total


def pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    """ONNX pads (all begins, then all ends) -> (begin, end) in each dimension."""
    half = len(values) // 2
    return list(zip(values[:half], values[half:], strict=True))


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """The pads in the order of F.pad: the last dimension first."""
    return list(itertools.chain.from_iterable(reversed(pads)))
