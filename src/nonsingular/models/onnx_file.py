"""onnx_file.py - an ONNX file as a module of the functions that operators.py knows, so that attacks and bounds work on it.

Constants that enter products, convolutions, normalisations and recurrent layers are nn.Parameters under their ONNX names (see
models/onnx_rules/layers.py); every other constant (a normalisation, BatchNorm's statistics) is a buffer and never moves.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.onnx_rules import CONTRIBUTED, RULES, Node, Scope
from nonsingular.models.onnx_rules.shapes import constant_of
from nonsingular.models.onnx_rules.sizes import ON_SIZES, settled

log = logging.getLogger("nonsingular")

OPSETS = (7, 22)
"""The oldest and newest opset whose operators the rules follow; older files are converted by the package onnx."""


def onnx_package() -> Any:
    try:
        for part in ("checker", "external_data_helper", "helper", "inliner", "numpy_helper", "version_converter"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError:
        raise InvalidInput("an ONNX model needs the package onnx; pip install 'nonsingular[onnx]'") from None


# --- the file ---------------------------------------------------------------------------------------------------------------


def checked_proto(onnx: Any, path: Path) -> Any:
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _look_beside(onnx, proto, path)
        onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(proto)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        opset = _opset(proto)
        if opset < OPSETS[0]:
            proto = onnx.version_converter.convert_version(proto, 8)
    except InvalidInput:
        raise
    except Exception as e:  # protobuf, onnx and the system have errors of their own
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InvalidInput(f"{path} cannot be read as ONNX ({why}); export the model again") from e
    if opset > OPSETS[1]:
        log.warning("%s is of opset %d; the rules follow opsets up to %d", path, opset, OPSETS[1])
    return proto


def _opset(proto: Any) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def _look_beside(onnx: Any, proto: Any, path: Path) -> None:
    """Raises InvalidInput if weights would be read from outside the folder of the file, through links too."""
    folder = path.parent.resolve()
    for tensor in _tensors(proto.graph, proto.functions):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or "\\" in location or not target.is_relative_to(folder):
            raise InvalidInput(f"{path} keeps '{tensor.name}' in {location!r}, outside its folder, which is not read")
        if not target.is_file():
            raise InvalidInput(f"{path} cannot be read as ONNX: there is no file {location!r} beside it, with its weights")


def _tensors(graph: Any, functions: Sequence[Any] = ()) -> Iterator[Any]:
    """Every tensor of a graph, of its branches and of the functions of a file."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for a in node.attribute:
            yield from (a.t, *a.tensors, a.sparse_tensor.values, a.sparse_tensor.indices)
            for inner in (a.g, *a.graphs):
                yield from _tensors(inner)
    for f in functions:
        yield from _tensors(f)


class File:
    """What stands in a file: its constants, its one input, its one output and the nodes between them."""

    def __init__(self, onnx: Any, proto: Any, path: Path) -> None:
        self.onnx, self.path, self.opset = onnx, path, _opset(proto)
        graph = proto.graph
        if graph.sparse_initializer:
            raise UnsupportedModel(f"{path} has sparse weights; export them as plain tensors")
        self.constants = {t.name: self._constant(t) for t in graph.initializer}
        self.kinds = self._kinds(graph)
        (self.output,) = self._one("output", graph.output)
        self.left_out: str | None = None
        self.nodes = self._without_head(list(graph.node))
        (self.input,) = self._one("input", graph.input)
        self.shape = self._shape(graph)
        self.needed = _needed(self.nodes, self.output)

    def _constant(self, proto: Any) -> Tensor:
        try:
            return constant_of(self.onnx.numpy_helper.to_array(proto))
        except (TypeError, ValueError) as e:
            raise UnsupportedModel(f"the constant '{proto.name}' of {self.path} is not of numbers that are known ({e})") from e

    def _kinds(self, graph: Any) -> dict[str, str]:
        """Kinds of numbers of constants, as ONNX calls them."""
        found = {t.name: t.data_type for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                found.update((node.output[0], a.t.data_type) for a in node.attribute if a.name == "value")
            elif node.op_type == "Identity" and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
        return {name: self.onnx.TensorProto.DataType.Name(kind) for name, kind in found.items()}

    def _one(self, what: str, values: Any) -> list[str]:
        names = [v.name for v in values if v.name not in self.constants]
        if len(names) != 1:
            listed = ", ".join(names[:4])
            wanted = "its logits" if what == "output" else "the examples"
            raise InvalidInput(f"{self.path} has {len(names)} {what}s ({listed}); export a model with one {what}, {wanted}")
        return names

    def _shape(self, graph: Any) -> list[int | None]:
        """The sizes of the input, None where they are open."""
        of = next(v.type.tensor_type for v in graph.input if v.name == self.input)
        kinds = self.onnx.TensorProto
        if of.elem_type not in (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16):
            called = kinds.DataType.Name(of.elem_type).lower()
            raise InvalidInput(f"{self.path} takes {called} inputs; export a model of float inputs, as radii are of real numbers")
        if not of.HasField("shape") or not of.shape.dim:
            raise InvalidInput(f"the input '{self.input}' of {self.path} has no shape; export the model with one")
        self.double = of.elem_type == kinds.DOUBLE
        return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in of.shape.dim]

    def _without_head(self, nodes: list[Any]) -> list[Any]:
        """Leaves out what only renames or orders the logits at the very end."""
        made_by = {o: n for n in nodes for o in n.output}
        used = [i for n in nodes for i in n.input]
        while (last := made_by.get(self.output)) is not None and last.domain in ("", "ai.onnx"):
            node = Node(Scope(self.onnx, self.path, self.opset), last)
            if last.op_type in ("Softmax", "LogSoftmax", "ArgMax"):
                if node.get("axis", {"ArgMax": 0}.get(node.op, -1)) not in (1, -1):
                    raise node.refuse("it is not over the classes")
                log.info("%s ends with %s '%s'; it is left out, so that margins are of logits", self.path, node.op, node.name)
                self.left_out = node.op
            elif last.op_type not in ("Identity", "Cast") or used.count(last.input[0]) > 1:
                break
            self.output, nodes = last.input[0], [n for n in nodes if n is not last]
        return nodes


def _needed(nodes: Sequence[Any], output: str) -> set[str]:
    """The values that the output depends on."""
    needed = {output}
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(_inputs(node))
    return needed


def _inputs(node: Any) -> Iterator[str]:
    """What a node reads, in its branches too."""
    yield from node.input
    for a in node.attribute:
        for graph in (a.g, *a.graphs):
            yield from (v.name for v in graph.output)
            for inner in graph.node:
                yield from _inputs(inner)


# --- its nodes --------------------------------------------------------------------------------------------------------------


class Reader(Scope):
    """Goes through the nodes of a file once, on probes of these shapes.

    any_batch: the first dimension is the batch, of any size; fixed: what the file takes it for; added: the file has none.
    """

    def __init__(
        self, file: File, shapes: Sequence[Sequence[int]], *, any_batch: bool, fixed: int | None = None, added: bool = False
    ) -> None:
        super().__init__(file.onnx, file.path, file.opset)
        self.file = file
        self.kinds.update(file.kinds)
        for name, value in file.constants.items():
            self.hold(name, value)
        for node in file.nodes:
            for name in _inputs(node):
                self.users[name] = self.users.get(name, 0) + 1
        self.users[file.output] = self.users.get(file.output, 0) + 1
        self.values[file.input] = self.begin(shapes, any_batch, fixed, added)
        self._through(file.nodes, file.needed)
        found = self.values.get(file.output)
        if not isinstance(found, fx.Node):
            raise InvalidInput(f"the output '{file.output}' of {file.path} does not depend on its input; export the model again")
        self.output = found

    def module(self) -> nn.Module:
        return self.finish(self.output, "FromOnnx")

    def _through(self, nodes: Sequence[Any], needed: set[str]) -> None:
        for proto in nodes:
            if not needed.intersection(proto.output):
                continue
            node = Node(self, proto)
            found = self._value(node)
            several = found if isinstance(found, tuple) else (found,)
            if any(name and name in needed for name in node.outputs[len(several) :]):
                raise node.refuse("only its first output is known")
            for name, value in zip(node.outputs, several, strict=False):
                self.keep(name, settled(value))

    def _value(self, node: Node) -> Any:
        rules = {"": RULES, "ai.onnx": RULES, "com.microsoft": CONTRIBUTED}.get(node.domain)
        if rules is None or (rules is CONTRIBUTED and node.op not in rules):
            raise node.refuse(f"it is of the domain '{node.domain}'")
        if node.op == "If":
            return self._branch(node)
        on_sizes = any(_is_array(v) for v in node.values) and not node.moves
        if (
            on_sizes
            and node.op in ON_SIZES
            and (_is_array(node.value(0)) or not isinstance(node.value(0), Tensor) or node.op in _MIXED)
        ):
            return ON_SIZES[node.op](node)
        if node.op not in rules:
            raise node.refuse("nonsingular does not know it")
        if node.op == "Identity" or (node.op == "Transpose" and isinstance(node.value(0), Tensor) and node.rank() == 2):
            source, turns = self.sources.get(node.inputs[0], (node.inputs[0], 0))
            self.sources[node.outputs[0]] = (source, turns + (node.op == "Transpose"))
        try:
            return rules[node.op](node)
        except InvalidInput:
            raise
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, ArithmeticError, KeyError) as e:
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise Unfit(str(node.refuse(f"it does not work on its inputs ({why[:300]})"))) from e

    def _branch(self, node: Node) -> Any:
        """The values of one branch, whose condition is constant."""
        condition = node.constant(0)
        assert condition is not None
        graph = node.get("then_branch" if bool(condition.any()) else "else_branch")
        for tensor in graph.initializer:
            self.hold(tensor.name, constant_of(self.onnx.numpy_helper.to_array(tensor)))
        needed = {v.name for v in graph.output} | {name for n in graph.node for name in _inputs(n)}
        self._through(graph.node, needed)
        return tuple(self.values[v.name] for v in graph.output)


class Unfit(UnsupportedModel):
    """A node does not work on the shapes that it is given: perhaps it does in another batch."""


def _is_array(value: Any) -> bool:
    return value is not None and not isinstance(value, Tensor | fx.Node | list)


_MIXED = {"Concat", "Add", "Sub", "Mul", "Div", "Mod", "Equal", "Where"}
"""Operators of which any input may be sizes."""
