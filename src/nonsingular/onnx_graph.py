"""onnx_graph.py - an ONNX file as a module of the functions that operators.py knows, so that attacks and bounds work on it.

Weights of Gemm, MatMul, Conv, ConvTranspose, PRelu and BatchNormalization, and what is added right after the first four, become
nn.Parameters under their ONNX names; every other constant (a normalisation, BatchNorm's statistics) is a buffer and never moves.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.onnx_rules import ON_SIZES, RULES, Node, Scope, shape

log = logging.getLogger("nonsingular")


def load_onnx(path: Path) -> nn.Module:
    """The network of an ONNX file: (B, *input) -> (B, K), differentiable, in eval mode and float32.

    A softmax at the very end is left out, with a line in the log: margins are of logits.
    Raises InvalidInput for a damaged file and for several inputs or outputs, UnsupportedModel for an operator without a rule,
    which it names with its node.  Needs the package onnx (extra `onnx`).
    """
    onnx = _onnx()
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as e:  # protobuf, onnx and the system have errors of their own
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InvalidInput(f"{path} cannot be read as ONNX ({why}); export the model again") from e
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        return _Reader(onnx, proto, path).read()
    except InvalidInput:
        raise
    except Exception as e:  # a checked file may still be one that no exporter writes
        raise InvalidInput(f"{path} cannot be read as a network ({type(e).__name__}: {e}); export the model again") from e


def _onnx() -> Any:
    try:
        for part in ("checker", "helper", "inliner", "numpy_helper", "shape_inference"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError:
        raise InvalidInput("an ONNX model needs the package onnx; pip install 'nonsingular[onnx]'") from None


class _Reader(Scope):
    """Goes through the nodes of an ONNX graph."""

    def __init__(self, onnx: Any, proto: Any, path: Path) -> None:
        super().__init__(onnx, path)
        self.proto, self.opsets = proto.graph, list(proto.opset_import)
        if self.proto.sparse_initializer:
            raise UnsupportedModel(f"{path} has sparse weights; export them as plain tensors")
        self.values |= {t.name: _tensor(onnx, t) for t in self.proto.initializer}
        self.shapes = self._shapes(proto)
        for node in self.proto.node:
            for name in node.input:
                self.users[name] = self.users.get(name, 0) + 1

    def read(self) -> nn.Module:
        (output,) = self._one("output", self.proto.output)
        self._input()
        nodes = [Node(self, n) for n in self.proto.node]
        if nodes and nodes[-1].op in ("Softmax", "LogSoftmax") and nodes[-1].outputs == [output]:
            last = nodes.pop()
            if last.get("axis", -1) not in (1, -1):
                raise last.refuse("it is not over the classes")
            log.info("%s ends with %s '%s'; it is left out, so that margins are of logits", self.path, last.op, last.name)
            output = last.inputs[0]
        for node in nodes:
            if len(node.outputs) > 1 and any(self.users.get(o) or o == output for o in node.outputs[1:]):
                raise node.refuse("only its first output is known")
            self.values[node.outputs[0]] = self._value(node)
        found = self.values.get(output)
        if not isinstance(found, fx.Node):
            raise InvalidInput(f"the output '{output}' of {self.path} does not depend on its input; export the model again")
        return self.finish(found, "FromOnnx")

    def _one(self, what: str, values: Any) -> list[str]:
        names = [v.name for v in values if v.name not in self.values]
        if len(names) != 1:
            listed = ", ".join(names[:4])
            wanted = "its logits" if what == "output" else "the examples"
            raise InvalidInput(f"{self.path} has {len(names)} {what}s ({listed}); export a model with one {what}, {wanted}")
        return names

    def _input(self) -> None:
        (name,) = self._one("input", self.proto.input)
        kind = next(v.type.tensor_type.elem_type for v in self.proto.input if v.name == name)
        kinds = self.onnx.TensorProto
        if kind not in (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16):
            called = kinds.DataType.Name(kind).lower()
            raise InvalidInput(f"{self.path} takes {called} inputs; export a model of float inputs, as radii are of real numbers")
        shape = self.shapes.get(name) or ()
        self.batch = shape[0] if shape and isinstance(shape[0], int) else None
        self.values[name] = self.graph.placeholder("x")

    def _shapes(self, proto: Any) -> dict[str, tuple[int | None, ...]]:
        """Shapes by name, None where a size is open.  Empty where onnx cannot infer them."""
        try:
            graph = self.onnx.shape_inference.infer_shapes(proto).graph
        except Exception:
            graph = proto.graph
        return {
            v.name: tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in v.type.tensor_type.shape.dim
            )
            for v in (*graph.input, *graph.value_info, *graph.output)
            if v.type.tensor_type.HasField("shape")
        }

    def _value(self, node: Node) -> Any:
        if node.domain not in ("", "ai.onnx"):
            raise node.refuse(f"it is of the domain '{node.domain}'")
        given = [self.values.get(name) for name in node.inputs]
        if node.op == "Shape" and isinstance(given[0], fx.Node):
            return shape(node)
        if not any(isinstance(v, fx.Node) for v in given):
            if not any(isinstance(v, list) for v in given):
                return self._folded(node)
            if node.op in ON_SIZES:
                return ON_SIZES[node.op](node)
            raise node.refuse("arithmetic on the sizes of the input is not known; export with fixed sizes other than the batch")
        if node.op not in RULES:
            raise node.refuse("nonsingular does not know it")
        return RULES[node.op](node)

    def _folded(self, node: Node) -> Tensor:
        """The value of a node on constants, by the reference implementation of onnx."""
        helper, inputs = self.onnx.helper, [n for n in dict.fromkeys(node.inputs) if n]
        (source, turns) = self.sources.get(inputs[0], (inputs[0], 0)) if inputs else ("", 0)
        if node.op == "Identity" or (node.op == "Transpose" and self.values[inputs[0]].dim() == 2):
            self.sources[node.outputs[0]] = (source, turns + (node.op == "Transpose"))
        anything = [helper.make_empty_tensor_value_info(n) for n in (*inputs, node.outputs[0])]
        graph = helper.make_graph([node.proto], "constant", anything[:-1], anything[-1:])
        try:
            alone = helper.make_model(graph, opset_imports=self.opsets)
            run = importlib.import_module("onnx.reference").ReferenceEvaluator(alone)
            (found, *_) = run.run([node.outputs[0]], {n: self.values[n].numpy() for n in inputs})
            return torch.from_numpy(numpy.array(found))
        except Exception as e:  # of onnx, of numpy
            raise node.refuse(f"it cannot be computed beforehand ({str(e).strip() or type(e).__name__})") from e


def _tensor(onnx: Any, proto: Any) -> Tensor:
    return torch.from_numpy(onnx.numpy_helper.to_array(proto).copy())
