"""sizes.py - ONNX operators on sizes that the input decides: numpy arrays of numbers and Sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from nonsingular.models.onnx_rules.elementwise import KINDS
from nonsingular.models.onnx_rules.scope import Node, Size, product


def _array(node: Node, i: int = 0) -> Any:
    value = node.value(i)
    if isinstance(value, numpy.ndarray):
        return value
    if not isinstance(value, Tensor):
        raise node.refuse("sizes and values of the input are mixed")
    return numpy.array(value.tolist(), dtype=object)


def _of_two(f: Any) -> Callable[[Node], Any]:
    return lambda node: f(_array(node, 0), _array(node, 1))


def _divided(node: Node) -> Any:
    a, b = _array(node, 0), _array(node, 1)
    real = any(isinstance(v, float) for v in (*a.reshape(-1), *b.reshape(-1)))
    return a / b if real else a // b


def _int_of(v: Any) -> Any:
    return v.write(math.trunc) if isinstance(v, Size) else int(v)


def _mapped(value: Any, f: Callable[[Any], Any]) -> Any:
    found = numpy.empty(value.size, dtype=object)
    found[:] = [f(v) for v in value.reshape(-1)]
    return found.reshape(value.shape)


def _cast_sizes(node: Node) -> Any:
    name = node.scope.onnx.TensorProto.DataType.Name(node.get("to"))
    real = KINDS.get(name) == torch.float32
    if name == "BOOL":
        raise node.refuse("a size as a truth value is not known")
    return _mapped(_array(node), (lambda v: v * 1.0) if real else _int_of)


def _rounded(f: Any) -> Callable[[Node], Any]:
    return lambda node: _mapped(_array(node), lambda v: v.write(f) * 1.0 if isinstance(v, Size) else float(f(v)))


def _sliced_sizes(node: Node) -> Any:
    starts, ends, steps = node.numbers(1, "starts"), node.numbers(2, "ends"), node.numbers(4) or [1]
    if not starts or not ends or len(starts) != 1:
        raise node.refuse("its ends are not known")
    return _array(node)[starts[0] : ends[0] : steps[0]]


def _gathered_sizes(node: Node) -> Any:
    at = node.constant(1)
    assert at is not None
    found = _array(node)[at.numpy()]
    return found if isinstance(found, numpy.ndarray) else _scalar(found)


def _scalar(value: Any) -> Any:
    found = numpy.empty((), dtype=object)
    found[()] = value
    return found


def _squeezed_sizes(node: Node) -> Any:
    axes = node.numbers(1, "axes")
    found = _array(node)
    return found.reshape(found.shape[1:]) if axes in ([0], [-1], None) and found.shape[:1] == (1,) else found.squeeze()


def _product_of_sizes(node: Node) -> Any:
    total = _scalar(product(list(_array(node).reshape(-1))))
    return total.reshape(1) if node.get("keepdims", 1) else total


def _equal_sizes(node: Node) -> Any:
    """A size of the input is never -1 or 0; whether it is another number, only the input can say."""

    def equal(a: Any, b: Any) -> bool:
        if not isinstance(a, Size) and not isinstance(b, Size):
            return a == b
        other = b if isinstance(a, Size) else a
        if isinstance(other, int) and other <= 0:
            return False
        raise node.refuse("it compares a size that the file does not have")

    a, b = numpy.broadcast_arrays(_array(node, 0), _array(node, 1))
    found = [equal(v, w) for v, w in zip(a.reshape(-1), b.reshape(-1), strict=True)]
    return torch.tensor(found).reshape(a.shape)


def _where_sizes(node: Node) -> Any:
    condition = node.constant(0)
    assert condition is not None
    return numpy.where(condition.numpy(), _array(node, 1), _array(node, 2))


ON_SIZES: dict[str, Callable[[Node], Any]] = {
    "Gather": _gathered_sizes, "Slice": _sliced_sizes, "Cast": _cast_sizes, "Squeeze": _squeezed_sizes,
    "Concat": lambda node: numpy.concatenate([_array(node, i) for i in range(len(node.inputs))]),
    "Unsqueeze": lambda node: _array(node).reshape(1), "Identity": _array,
    "Reshape": lambda node: _array(node).reshape(node.numbers(1, "shape")),
    "Add": _of_two(operator.add), "Sub": _of_two(operator.sub), "Mul": _of_two(operator.mul), "Div": _divided,
    "Mod": _of_two(operator.mod), "Neg": lambda node: -_array(node), "Floor": _rounded(math.floor), "Ceil": _rounded(math.ceil),
    "ReduceProd": _product_of_sizes, "Equal": _equal_sizes, "Where": _where_sizes,
}  # fmt: skip
"""ONNX operator -> what it does to sizes."""


def settled(value: Any) -> Any:
    """Sizes as an array; a constant, where all of them are known."""
    if isinstance(value, Size | int | float):
        value = _scalar(value)
    if not isinstance(value, numpy.ndarray) or any(isinstance(v, Size) for v in value.reshape(-1)):
        return value
    real = any(isinstance(v, float) for v in value.reshape(-1))
    return torch.tensor(value.tolist(), dtype=torch.float32 if real else torch.int64)
