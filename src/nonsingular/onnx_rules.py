"""onnx_rules.py - ONNX operators in the functions that operators.py knows: one rule for each, in the table RULES."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.written import Writer

Sizes = list[int | fx.Node]
"""Sizes: known, or computed from the input's."""


class Scope(Writer):
    """What is known on the way through an ONNX graph.

    values: ONNX names -> a Tensor that is constant, an fx.Node on the way from input to output, or Sizes.
    shapes: by name, None where a size is open.  users: by how many inputs of nodes a value is used.
    batch: the batch size, where the file fixes it.
    """

    def __init__(self, onnx: Any, path: Path) -> None:
        super().__init__()
        self.onnx, self.path = onnx, path
        self.values: dict[str, Any] = {"": None}
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.users: dict[str, int] = {}
        self.batch: int | None = None


class Node:
    """One ONNX node: its operator, inputs and attributes."""

    def __init__(self, scope: Scope, proto: Any) -> None:
        self.proto = proto
        self.op: str = proto.op_type
        self.name: str = proto.name or proto.output[0]
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = [o for o in proto.output if o]
        self.domain: str = proto.domain
        self.scope = scope
        self.attributes = {a.name: scope.onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and bool(self.inputs[i])

    def refuse(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"no rule for ONNX operator {self.op} at node '{self.name}' of {self.scope.path}: {why}")

    # what an input is

    def signal(self, i: int = 0) -> fx.Node:
        value = self.scope.values.get(self.inputs[i]) if self.has(i) else None
        if not isinstance(value, fx.Node):
            raise self.refuse(f"its input {i + 1} is not computed from the model's input")
        return value

    def is_signal(self, i: int) -> bool:
        return isinstance(self.scope.values.get(self.inputs[i]), fx.Node)

    def constant(self, i: int) -> Tensor | None:
        """None where the input is left out."""
        if not self.has(i):
            return None
        value = self.scope.values.get(self.inputs[i])
        if isinstance(value, list) and all(isinstance(v, int) for v in value):
            return torch.tensor(value)
        if not isinstance(value, Tensor):
            raise self.refuse(f"its input '{self.inputs[i]}' is not constant")
        return value

    def numbers(self, i: int, attribute: str) -> list[int] | None:
        """An input that older opsets have as an attribute; None if neither is there."""
        found = self.constant(i)
        return self.get(attribute) if found is None else [int(v) for v in found.flatten().tolist()]

    def rank(self, i: int = 0) -> int:
        found = self.scope.shapes.get(self.inputs[i])
        if found is None:
            raise self.refuse("the number of dimensions of its input is not known; export with known shapes")
        return len(found)


# --- sizes ------------------------------------------------------------------------------------------------------------------


def shape(node: Node) -> Sizes:
    x, call = node.signal(), node.scope.call
    if node.get("start") is not None or node.get("end") is not None:
        raise node.refuse("a part of a shape is not known")
    known = node.scope.shapes.get(node.inputs[0], ())
    return [call("size", x, i) if i == 0 or known[i] is None else cast("int", known[i]) for i in range(node.rank())]


def _sizes(node: Node, i: int = 0) -> Sizes:
    value = node.scope.values.get(node.inputs[i]) if node.has(i) else None
    if isinstance(value, Tensor) and not value.is_floating_point() and value.dim() <= 1:
        return [int(v) for v in value.reshape(-1).tolist()]
    if not isinstance(value, list):
        raise node.refuse("only sizes and whole numbers are known here")
    return value


def _gather_sizes(node: Node) -> Sizes:
    at = node.constant(1)
    assert at is not None
    values = _sizes(node)
    return [values[int(i)] for i in at.flatten().tolist()]


def _slice_sizes(node: Node) -> Sizes:
    start, end, step = (node.numbers(i, name) for i, name in ((1, "starts"), (2, "ends"), (4, "steps")))
    if not start or not end:
        raise node.refuse("its ends are not known")
    return _sizes(node)[start[0] : end[0] : step[0] if step else 1]


def _join_sizes(node: Node) -> Sizes:
    return [v for i in range(len(node.inputs)) for v in _sizes(node, i)]


ON_SIZES: dict[str, Callable[[Node], Any]] = {
    "Gather": _gather_sizes, "Concat": _join_sizes, "Slice": _slice_sizes,
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Cast", "Identity", "Reshape"), _sizes),
}  # fmt: skip


# --- layers -----------------------------------------------------------------------------------------------------------------


def _gemm(node: Node) -> fx.Node:
    x, W = node.signal(), node.constant(1)
    if node.get("transA", 0) or W is None or W.dim() != 2:
        raise node.refuse("only x W + b is known, with a constant matrix W")
    alpha, beta, turned = node.get("alpha", 1.0), node.get("beta", 1.0), node.get("transB", 0)
    weight = node.scope.matrix(node.inputs[1], W, bool(turned), alpha)
    b = node.constant(2)
    if b is None:
        return node.scope.call(F.linear, x, weight)
    b = beta * b.reshape(-1) if b.numel() > 1 else (beta * b.reshape(1)).expand(W.shape[0 if turned else 1])
    return node.scope.call(F.linear, x, weight, node.scope.parameter(node.inputs[2], b, f"bias {beta}"))


def _matmul(node: Node) -> fx.Node:
    W = None if node.is_signal(1) else node.constant(1)
    if W is None or W.dim() != 2:
        raise node.refuse("only x W is known, with a constant matrix W")
    return node.scope.call(F.linear, node.signal(), node.scope.matrix(node.inputs[1], W, turned=False))


def _pads(node: Node, kernel: Sequence[int], i: int = 0) -> tuple[list[int], list[int]]:
    """Padding before and after, in each spatial dimension."""
    auto, n = node.get("auto_pad", "NOTSET"), len(kernel)
    pads = node.get("pads") or [0] * 2 * n
    if auto in ("NOTSET", "", "VALID"):
        return ([0] * n, [0] * n) if auto == "VALID" else (pads[:n], pads[n:])
    strides, dilations = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    sizes = (node.scope.shapes.get(node.inputs[i]) or ())[2:]
    begin, end = list[int](), list[int]()
    for d in range(n):
        size = sizes[d] if d < len(sizes) else None
        if size is None and strides[d] > 1:
            raise node.refuse(f"auto_pad {auto} needs sizes that the file does not have; export with explicit pads")
        reach = dilations[d] * (kernel[d] - 1) + 1
        total = reach - 1 if size is None else max(0, (math.ceil(size / strides[d]) - 1) * strides[d] + reach - size)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin, end


def _padded(node: Node, x: fx.Node, begin: Sequence[int], end: Sequence[int]) -> fx.Node:
    return node.scope.call(F.pad, x, [v for pair in zip(reversed(begin), reversed(end), strict=True) for v in pair])


def _weights(node: Node) -> tuple[Tensor, tuple[Any, ...]]:
    """The kernel, and (weight, bias) as nodes."""
    W, b = node.constant(1), node.constant(2)
    if W is None or W.dim() not in (3, 4, 5):
        raise node.refuse("only constant kernels in one to three dimensions are known")
    weight = node.scope.parameter(node.inputs[1], W)
    return W, (weight, None if b is None else node.scope.parameter(node.inputs[2], b))


def _conv(node: Node) -> fx.Node:
    x = node.signal()
    W, parameters = _weights(node)
    n = W.dim() - 2
    begin, end = _pads(node, W.shape[2:])
    if begin != end:
        x, begin = _padded(node, x, begin, end), [0] * n
    f = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
    strides, dilations = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    return node.scope.call(f, x, *parameters, strides, begin, dilations, node.get("group", 1))


def _conv_transpose(node: Node) -> fx.Node:
    x = node.signal()
    W, parameters = _weights(node)
    n = W.dim() - 2
    pads = node.get("pads") or [0] * 2 * n
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "") or node.get("output_shape") or pads[:n] != pads[n:]:
        raise node.refuse("only equal pads on both sides are known")
    f = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
    strides, dilations, extra = (node.get(k) or [v] * n for k, v in (("strides", 1), ("dilations", 1), ("output_padding", 0)))
    return node.scope.call(f, x, *parameters, strides, pads[:n], extra, node.get("group", 1), dilations)


def _batch_norm(node: Node) -> fx.Node:
    if node.get("training_mode", 0):
        raise InvalidInput(f"BatchNormalization '{node.name}' of {node.scope.path} is in training mode; export model.eval()")
    scale, shift, mean, var = (node.constant(i) for i in range(1, 5))
    if scale is None or shift is None or mean is None or var is None:
        raise node.refuse("it has no statistics")
    make = node.scope
    fixed = [make.buffer(node.inputs[3], mean.reshape(-1)), make.buffer(node.inputs[4], var.reshape(-1))]
    moving = [make.parameter(node.inputs[1], scale), make.parameter(node.inputs[2], shift)]
    return make.call(F.batch_norm, node.signal(), *fixed, *moving, False, 0.0, node.get("epsilon", 1e-5))


# --- pooling, shapes --------------------------------------------------------------------------------------------------------


def _max_pool(node: Node) -> fx.Node:
    kernel = node.get("kernel_shape")
    begin, end = _pads(node, kernel)
    if begin != end:
        raise node.refuse(f"its padding {begin} before and {end} after differ")
    n = len(kernel)
    f = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    return node.scope.call(
        f, node.signal(), kernel, node.get("strides") or [1] * n, padding=begin, dilation=node.get("dilations") or [1] * n,
        ceil_mode=bool(node.get("ceil_mode", 0)),
    )  # fmt: skip


def _avg_pool(node: Node) -> fx.Node:
    kernel, x, include = node.get("kernel_shape"), node.signal(), bool(node.get("count_include_pad", 0))
    begin, end = _pads(node, kernel)
    n = len(kernel)
    if node.get("ceil_mode", 0) or any(d != 1 for d in node.get("dilations") or [1]) or (begin != end and not include):
        raise node.refuse("ceil_mode, dilations and one-sided padding are not known")
    if begin != end:
        x, begin = _padded(node, x, begin, end), [0] * n
    f = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    return node.scope.call(f, x, kernel, node.get("strides") or [1] * n, begin, False, include)


def _global(node: Node) -> fx.Node:
    return node.scope.call(
        torch.mean if node.op == "GlobalAveragePool" else torch.amax, node.signal(), list(range(2, node.rank())), True
    )


def _reduce(node: Node) -> fx.Node:
    axes = node.numbers(1, "axes")
    if not axes:
        raise node.refuse("it takes all dimensions, the batch too")
    f = {"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax}[node.op]
    return node.scope.call(f, node.signal(), axes, bool(node.get("keepdims", 1)))


def _flatten(node: Node) -> fx.Node:
    if node.get("axis", 1) != 1:
        raise node.refuse(f"its axis is {node.get('axis')}; only 1 keeps the batch")
    return node.scope.call(torch.flatten, node.signal(), 1)


def _reshape(node: Node) -> fx.Node:
    x, sizes, call = node.signal(), _sizes(node, 1), node.scope.call
    if 0 in sizes and node.get("allowzero", 0):
        raise node.refuse("it makes an empty tensor")
    sizes = [call("size", x, i) if s == 0 else s for i, s in enumerate(sizes)]
    if sizes and sizes[0] == node.scope.batch and node.scope.batch is not None:  # a batch size that the export fixed
        sizes[0] = call("size", x, 0)
    if len(sizes) == 2 and (isinstance(sizes[0], fx.Node) or sizes[0] == -1) and (sizes[1] == -1 or sizes[0] == -1):
        rest = (node.scope.shapes.get(node.inputs[0]) or (None,))[1:]
        if sizes[1] == -1 or (None not in rest and math.prod(v or 0 for v in rest) == sizes[1]):
            return call(torch.flatten, x, 1)
    return call("reshape", x, *sizes)


def _transpose(node: Node) -> fx.Node:
    order = node.get("perm") or list(range(node.rank()))[::-1]
    return node.scope.call(torch.permute, node.signal(), order)


def _squeeze(node: Node) -> fx.Node:
    axes = node.numbers(1, "axes")
    if not axes:
        raise node.refuse("it takes every dimension of size 1, perhaps the batch too")
    return node.scope.call(torch.squeeze, node.signal(), axes[0] if len(axes) == 1 else tuple(axes))


def _unsqueeze(node: Node) -> fx.Node:
    axes, x = node.numbers(1, "axes") or [], node.signal()
    if len(axes) > 1 and min(axes) < 0:
        rank = node.rank() + len(axes)
        axes = [a % rank for a in axes]
    for axis in sorted(axes):
        x = node.scope.call(torch.unsqueeze, x, axis)
    return x


def _concat(node: Node) -> fx.Node:
    return node.scope.call(torch.cat, [node.signal(i) for i in range(len(node.inputs))], node.get("axis"))


def _pad(node: Node) -> fx.Node:
    pads, mode = node.numbers(1, "pads"), node.get("mode", "constant")
    value = node.constant(2) if node.has(2) else None
    axes = node.constant(3)
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if not pads or axes is not None or mode not in modes:
        raise node.refuse(f"only constant pads of all dimensions, in the modes {', '.join(modes)}, are known")
    n = len(pads) // 2
    keep = max((n - i for i in range(n) if pads[i] or pads[n + i]), default=0)
    if not keep:
        return node.signal()
    begin, end = pads[n - keep : n], pads[2 * n - keep :]
    flat = [v for pair in zip(reversed(begin), reversed(end), strict=True) for v in pair]
    fill = node.get("value", 0.0) if value is None else float(value)
    return node.scope.call(F.pad, node.signal(), flat, modes[mode], *([fill] if mode == "constant" else []))


# --- elementwise ------------------------------------------------------------------------------------------------------------


def _unary(f: Any, **defaults: Any) -> Callable[[Node], fx.Node]:
    """A function of one signal; ONNX attribute -> its keyword in torch and its default."""

    def rule(node: Node) -> fx.Node:
        return node.scope.call(f, node.signal(), **{k: node.get(k, v) for k, v in defaults.items()})

    return rule


def _leaky(node: Node) -> fx.Node:
    return node.scope.call(F.leaky_relu, node.signal(), node.get("alpha", 0.01))


def _clip(node: Node) -> fx.Node:
    low, high = (
        float(found) if (found := node.constant(i)) is not None else node.get(name) for i, name in ((1, "min"), (2, "max"))
    )
    if low is not None and high is not None and low > -3e38 and high < 3e38:
        return node.scope.call(F.hardtanh, node.signal(), low, high)
    low, high = None if low is None or low < -3e38 else low, None if high is None or high > 3e38 else high
    if low is None and high is None:
        return node.signal()
    return (
        node.scope.call(F.relu, node.signal())
        if (low, high) == (0.0, None)
        else node.scope.call(torch.clamp, node.signal(), low, high)
    )


def _hard_sigmoid(node: Node) -> fx.Node:
    alpha, beta, call = node.get("alpha", 0.2), node.get("beta", 0.5), node.scope.call
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call(F.hardsigmoid, node.signal())
    return call(torch.clamp, call(torch.add, call(torch.mul, node.signal(), alpha), beta), 0.0, 1.0)


def _prelu(node: Node) -> fx.Node:
    slope = node.constant(1)
    if slope is None or slope.numel() != max(1, *slope.shape):
        raise node.refuse("only one slope, or one for each channel, is known")
    return node.scope.call(F.prelu, node.signal(), node.scope.parameter(node.inputs[1], slope.reshape(-1)))


_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_AFTER = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED}


def _binary(f: Any) -> Callable[[Node], fx.Node]:
    def rule(node: Node) -> fx.Node:
        if len(node.inputs) != 2:
            return _summed(node)
        if f is operator.add and (biased := _biased(node)) is not None:
            return biased
        if f is operator.mul and (silu := _silu(node)) is not None:
            return silu
        a, b = (node.signal(i) if node.is_signal(i) else _operand(node, i) for i in (0, 1))
        return node.scope.call(f, a, b)

    return rule


def _operand(node: Node, i: int) -> fx.Node | float:
    value = node.constant(i)
    assert value is not None
    if not value.is_floating_point():
        value = value.float()
    return node.scope.buffer(node.inputs[i], value)


def _biased(node: Node) -> fx.Node | None:
    """A vector that is added right after a linear layer, and nowhere else, is its bias."""
    i = 0 if node.is_signal(0) else 1
    if node.is_signal(0) and node.is_signal(1):
        return None
    layer, b = node.signal(i), node.constant(1 - i)
    args: list[Any] = [*layer.args]
    if b is None or layer.target not in _AFTER or (len(args) > 2 and args[2] is not None):
        return None
    W = node.scope.root.get_parameter(str(args[1].target))
    channels = W.shape[1 if layer.target in _TRANSPOSED else 0]
    spread = [1] * (W.dim() - 2)  # over the positions of a convolution
    if list(b.shape) not in ([channels, *spread], [1, channels, *spread]) or node.scope.users[node.inputs[i]] != 1:
        return None
    bias = node.scope.parameter(node.inputs[1 - i], b.reshape(-1), "bias 1.0")
    return node.scope.call(layer.target, *args[:2], bias, *args[3:])


def _silu(node: Node) -> fx.Node | None:
    if not (node.is_signal(0) and node.is_signal(1)):
        return None
    a, b = node.signal(0), node.signal(1)
    for x, gate in ((a, b), (b, a)):
        if gate.target is torch.sigmoid and gate.args[0] is x:
            return node.scope.call(F.silu, x)
    return None


def _summed(node: Node) -> fx.Node:
    total = node.signal(0)
    for i in range(1, len(node.inputs)):
        total = node.scope.call(operator.add, total, node.signal(i))
    return total


def _identity(node: Node) -> Any:
    return node.scope.values[node.inputs[0]]


def _dropout(node: Node) -> fx.Node:
    training = node.constant(2)
    if training is not None and bool(training.any()):
        raise InvalidInput(f"Dropout '{node.name}' of {node.scope.path} is in training mode; export model.eval()")
    return node.signal()


def _cast(node: Node) -> fx.Node:
    kinds = node.scope.onnx.TensorProto
    if node.get("to") not in (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16):
        raise node.refuse("the values on the way would be rounded to whole numbers")
    return node.signal()


def _softmax(node: Node) -> fx.Node:
    return node.scope.call(F.softmax if node.op == "Softmax" else F.log_softmax, node.signal(), dim=node.get("axis", -1))


RULES: dict[str, Callable[[Node], Any]] = {
    "Gemm": _gemm, "MatMul": _matmul, "Conv": _conv, "ConvTranspose": _conv_transpose, "BatchNormalization": _batch_norm,
    "Relu": _unary(F.relu), "Sigmoid": _unary(torch.sigmoid), "Tanh": _unary(torch.tanh), "Softsign": _unary(F.softsign),
    "Softplus": _unary(F.softplus), "HardSwish": _unary(F.hardswish), "Abs": _unary(torch.abs), "Neg": _unary(torch.neg),
    "Erf": _unary(torch.erf), "Elu": _unary(F.elu, alpha=1.0), "Celu": _unary(F.celu, alpha=1.0),
    "Gelu": _unary(F.gelu, approximate="none"), "LeakyRelu": _leaky, "PRelu": _prelu, "HardSigmoid": _hard_sigmoid,
    "Clip": _clip, "MaxPool": _max_pool, "AveragePool": _avg_pool,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduce),
    "Flatten": _flatten, "Reshape": _reshape, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Concat": _concat, "Pad": _pad, "Identity": _identity, "Dropout": _dropout, "Cast": _cast,
    "Add": _binary(operator.add), "Sub": _binary(operator.sub), "Mul": _binary(operator.mul), "Div": _binary(operator.truediv),
    "Sum": _binary(operator.add), "Max": _binary(torch.maximum), "Min": _binary(torch.minimum),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
}  # fmt: skip
"""ONNX operator -> how it is written."""
