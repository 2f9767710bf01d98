"""elementwise.py - ONNX operators on each element, on two values element by element, and over dimensions (ReduceX, Softmax)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from nonsingular.errors import InvalidInput
from nonsingular.models.onnx_rules.functions import cast_as, cast_to, cumulative, hardmax, normalised, softmax_over_rest
from nonsingular.models.onnx_rules.layers import biased, scaled
from nonsingular.models.onnx_rules.scope import Node

Rule = Callable[[Node], Any]


def _unary(f: Any, **defaults: Any) -> Rule:
    """A function of one value; ONNX attribute -> its keyword in torch and its default."""

    def rule(node: Node) -> Any:
        return node.call(f, node.tensor(), **{k: node.get(k, v) for k, v in defaults.items()})

    return rule


def _leaky(node: Node) -> Any:
    return node.call(F.leaky_relu, node.tensor(), node.get("alpha", 0.01))


def _selu(node: Node) -> Any:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    if abs(alpha - 1.6732632423543772) < 1e-6 and abs(gamma - 1.0507009873554805) < 1e-6:
        return node.call(F.selu, node.tensor())
    return node.call(operator.mul, node.call(F.elu, node.tensor(), alpha), gamma)


def _threshold(node: Node) -> Any:
    return node.call(F.threshold, node.tensor(), node.get("alpha", 1.0), 0.0)


def _shrink(node: Node) -> Any:
    x, bias, lambd, call = node.tensor(), node.get("bias", 0.0), node.get("lambd", 0.5), node.call
    high = call(torch.where, call(torch.gt, x, lambd), call(operator.sub, x, bias), 0.0)
    return call(torch.where, call(torch.lt, x, -lambd), call(operator.add, x, bias), high)


def _hard_sigmoid(node: Node) -> Any:
    alpha, beta, call = node.get("alpha", 0.2), node.get("beta", 0.5), node.call
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call(F.hardsigmoid, node.tensor())
    return call(torch.clamp, call(torch.add, call(torch.mul, node.tensor(), alpha), beta), 0.0, 1.0)


def _swish(node: Node) -> Any:
    x, alpha = node.tensor(), node.get("alpha", 1.0)
    if alpha == 1:
        return node.call(F.silu, x)
    return node.call(operator.mul, x, node.call(torch.sigmoid, node.call(operator.mul, x, alpha)))


def _is_inf(node: Node) -> Any:
    low, high = node.get("detect_negative", 1), node.get("detect_positive", 1)
    f = torch.isinf if low and high else torch.isneginf if low else torch.isposinf
    found = node.call(f, node.tensor())
    return found if low or high else node.call(torch.logical_and, found, False)


def _clip(node: Node) -> Any:
    given = [node.value(i) if node.has(i) else node.get(name) for i, name in ((1, "min"), (2, "max"))]
    if any(isinstance(v, fx.Node) for v in given):
        low, high = given
        x = node.tensor() if low is None else node.call(torch.maximum, node.tensor(), _tensor(node, 1))
        return x if high is None else node.call(torch.minimum, x, _tensor(node, 2))
    low, high = (v.item() if isinstance(v, Tensor) else v for v in given)
    low, high = None if low is None or low < -3e38 else low, None if high is None or high > 3e38 else high
    if low is None and high is None:
        return node.tensor()
    if (low, high) == (0, None):
        return node.call(F.relu, node.tensor())
    if low is not None and high is not None and low <= high and node.scope.dtype(node.tensor()).is_floating_point:
        return node.call(F.hardtanh, node.tensor(), low, high)
    return node.call(torch.clamp, node.tensor(), low, high)


def _prelu(node: Node) -> Any:
    x, slope, call = node.tensor(), node.tensor(1), node.call
    rank, sizes = node.rank(), node.scope.shape(slope)
    channel = tuple([1] * (rank - len(sizes)) + list(sizes))
    if isinstance(slope, Tensor) and (slope.numel() == 1 or (rank > 1 and slope.numel() == channel[1])):
        return call(F.prelu, x, node.weight(1, lambda v: v.reshape(-1)))
    return call(torch.where, call(torch.lt, x, 0.0), call(operator.mul, x, node.weight(1)), x)


# --- of two values, or more -------------------------------------------------------------------------------------------------


def _operand(node: Node, i: int) -> Any:
    """Input i; a single number beside a signal becomes a Python number."""
    value = node.value(i)
    if isinstance(value, numpy.ndarray) and value.size == 1 and node.moves:
        return value.reshape(-1)[0]
    return node.tensor(i)


def _tensor(node: Node, i: int) -> Any:
    """Input i, for a function that takes no plain numbers."""
    value = node.tensor(i)
    return value.reshape(1) if isinstance(value, Tensor) and value.dim() == 0 and node.moves else value


def _binary(f: Any, operand: Callable[[Node, int], Any] = _operand) -> Rule:
    """A function of two values; operand: how each is taken."""

    def rule(node: Node) -> Any:
        return node.call(f, operand(node, 0), operand(node, 1))

    return rule


def _add(node: Node) -> Any:
    found = biased(node)
    return _binary(operator.add)(node) if found is None else found


def _mul(node: Node) -> Any:
    found = scaled(node)
    if found is not None:
        return found
    if isinstance(node.value(0), fx.Node) and isinstance(node.value(1), fx.Node):
        a, b = node.tensor(0), node.tensor(1)
        for x, gate in ((a, b), (b, a)):
            if gate.target is torch.sigmoid and gate.args[0] is x:
                return node.call(F.silu, x)
    return _binary(operator.mul)(node)


def _div(node: Node) -> Any:
    if all(isinstance(v, Tensor | fx.Node) and not node.scope.dtype(v).is_floating_point for v in node.values):
        return node.call(torch.div, node.tensor(0), node.tensor(1), rounding_mode="trunc")
    return _binary(operator.truediv)(node)


def _mod(node: Node) -> Any:
    return _binary(torch.fmod if node.get("fmod", 0) else torch.remainder, _tensor)(node)


def _pow(node: Node) -> Any:
    base, exponent = node.tensor(0), node.tensor(1)
    kind = node.scope.dtype(base)
    found = node.call(torch.pow, base, exponent)
    return found if kind.is_floating_point else node.call(cast_to, found, kind)


def _many(f: Any) -> Rule:
    def rule(node: Node) -> Any:
        found = node.tensor(0)
        for i in range(1, len(node.inputs)):
            found = node.call(f, found, node.tensor(i))
        return found

    return rule


def _mean_of(node: Node) -> Any:
    return node.call(operator.truediv, _many(operator.add)(node), float(len(node.inputs)))


def _extreme(f: Any, name: str) -> Rule:
    """Max and Min: one number is a clamp, which bounds know."""

    def rule(node: Node) -> Any:
        found = node.tensor(0)
        for i in range(1, len(node.inputs)):
            a, b = found, node.tensor(i)
            a, b = (b, a) if isinstance(a, Tensor) and isinstance(b, fx.Node) else (a, b)
            if isinstance(b, Tensor) and b.dim() == 0:
                found = node.call(torch.clamp, a, **{name: b.item()})
            else:
                found = node.call(f, a, b)
        return found

    return rule


def _where(node: Node) -> Any:
    a, b = (node.tensor(i) if node.scope.dtype(node.tensor(i)) != torch.float32 else _tensor(node, i) for i in (1, 2))
    return node.call(torch.where, _tensor(node, 0), a, b)


# --- kinds of numbers -------------------------------------------------------------------------------------------------------


def _cast(node: Node) -> Any:
    return to_kind(node, node.get("to"))


def to_kind(node: Node, to: int) -> Any:
    """All kinds of real numbers are float32 here, so that rounding to float16 on the way is left out."""
    name = node.scope.onnx.TensorProto.DataType.Name(to)
    kind = KINDS.get(name)
    if kind is None:
        raise node.refuse(f"the values on the way would become {name.lower()}")
    return _as_kind(node, kind)


def _as_kind(node: Node, kind: torch.dtype) -> Any:
    x = node.tensor()
    if isinstance(x, Tensor):
        return x.to(kind)
    if node.scope.dtype(x) == kind:
        return x
    return node.call(cast_as, x, node.scope.source) if kind.is_floating_point else node.call(cast_to, x, kind)


KINDS = {
    **dict.fromkeys(("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"), torch.float32),
    "INT64": torch.int64, "INT32": torch.int32, "INT16": torch.int16, "INT8": torch.int8, "UINT8": torch.uint8,
    "BOOL": torch.bool, "UINT16": torch.int32, "UINT32": torch.int64, "UINT64": torch.int64,
}  # fmt: skip
"""Kinds of numbers of ONNX -> what holds them."""


def _cast_like(node: Node) -> Any:
    return _as_kind(node, node.scope.dtype(node.tensor(1)))


# --- over dimensions --------------------------------------------------------------------------------------------------------


def _reduce(f: Callable[[Node, Any, list[int], bool], Any]) -> Rule:
    def rule(node: Node) -> Any:
        x, rank, keep = node.tensor(), node.rank(), bool(node.get("keepdims", 1))
        axes = node.numbers(1, "axes")
        if not axes and node.get("noop_with_empty_axes", 0):
            return x
        axes = sorted({a % rank for a in axes}) if axes else list(range(rank))
        if 0 in axes and node.scope.is_open(x, 0):
            if node.scope.fixed != 1 or len(axes) < rank:
                raise node.refuse("it takes the batch too")
            axes = axes[1:]  # of one example, the file says
        return f(node, x, axes, keep) if axes else x

    return rule


def _plain(f: Any) -> Any:
    return _then(None, f, None)


def _then(before: Any, f: Any, after: Any) -> Any:
    """f over dimensions, of `before` of each element; then `after`."""

    def rule(node: Node, x: Any, axes: list[int], keep: bool) -> Any:
        x = x if before is None else node.call(before, x)
        x = node.call(f, x, axes, keep)
        return x if after is None else node.call(after, x)

    return rule


def _extreme_over(f: Any) -> Any:
    def rule(node: Node, x: Any, axes: list[int], keep: bool) -> Any:
        if node.scope.dtype(x) == torch.bool:
            return node.call(cast_to, node.call(f, node.call(cast_to, x, torch.uint8), axes, keep), torch.bool)
        return node.call(f, x, axes, keep)

    return rule


def _product(node: Node, x: Any, axes: Sequence[int], keep: bool) -> Any:
    for axis in reversed(axes):
        x = node.call(torch.prod, x, axis, keep)
    return x


def _over(f: Any, log: bool | None) -> Rule:
    """Softmax, LogSoftmax and Hardmax: before opset 13 over all dimensions from the axis on."""

    def rule(node: Node) -> Any:
        x, rank = node.tensor(), node.rank()
        old = node.scope.opset < 13
        axis = node.get("axis", 1 if old else -1)
        axis = axis % rank if rank else 0
        if old and axis < rank - 1:
            if log is None:
                raise node.refuse(f"before opset 13 its axis {axis} stands for all dimensions from there on")
            return node.call(softmax_over_rest, x, axis, log)
        return node.call(f, x, axis) if log is None else node.call(f, x, dim=axis - rank)

    return rule


def _lp_norm(node: Node) -> Any:
    x, p, axis = node.tensor(), node.get("p", 2), node.get("axis", -1)
    return node.call(normalised, x, p, axis)


def _cumsum(node: Node) -> Any:
    axis = node.numbers(1)
    assert axis
    return node.call(cumulative, node.tensor(), axis[0], bool(node.get("exclusive", 0)), bool(node.get("reverse", 0)))


def _standardise(node: Node) -> Any:
    x, axes, call = node.tensor(), node.get("axes", [0, 2, 3]), node.call
    if any(a % node.rank() == 0 for a in axes) and node.scope.is_open(x, 0):
        raise node.refuse("it takes the batch too")
    centred = call(operator.sub, x, call(torch.mean, x, axes, True))
    spread = call(torch.sqrt, call(torch.mean, call(torch.mul, centred, centred), axes, True))
    return call(operator.truediv, centred, call(operator.add, spread, 1e-9))


# --- the rest ---------------------------------------------------------------------------------------------------------------


def _identity(node: Node) -> Any:
    return node.value(0)


def _dropout(node: Node) -> Any:
    training = node.constant(2) if node.scope.opset >= 12 else None
    if training is not None and bool(training.any()):
        raise InvalidInput(f"Dropout '{node.name}' of {node.scope.path} is in training mode; export model.eval()")
    return node.tensor()


def _einsum(node: Node) -> Any:
    return node.call(torch.einsum, node.get("equation"), *(node.tensor(i) for i in range(len(node.inputs))))


ELEMENTWISE: dict[str, Rule] = {
    "Relu": _unary(F.relu), "Sigmoid": _unary(torch.sigmoid), "Tanh": _unary(torch.tanh), "Softsign": _unary(F.softsign),
    "Softplus": _unary(F.softplus), "HardSwish": _unary(F.hardswish), "Abs": _unary(torch.abs), "Neg": _unary(torch.neg),
    "Erf": _unary(torch.erf), "Elu": _unary(F.elu, alpha=1.0), "Celu": _unary(F.celu, alpha=1.0), "Mish": _unary(F.mish),
    "Gelu": _unary(F.gelu, approximate="none"), "LeakyRelu": _leaky, "PRelu": _prelu, "HardSigmoid": _hard_sigmoid,
    "Selu": _selu, "ThresholdedRelu": _threshold, "Shrink": _shrink, "Clip": _clip, "Swish": _swish,
    "IsInf": _is_inf, "IsNaN": _unary(torch.isnan), "Not": _unary(torch.logical_not), "Sign": _unary(torch.sign),
    "Reciprocal": _unary(torch.reciprocal), "Det": _unary(torch.linalg.det),
    **{f.__name__.capitalize(): _unary(f) for f in (
        torch.exp, torch.log, torch.sqrt, torch.ceil, torch.floor, torch.round, torch.sin, torch.cos, torch.tan, torch.asin,
        torch.acos, torch.atan, torch.sinh, torch.cosh, torch.asinh, torch.acosh, torch.atanh,
    )},
    "Add": _add, "Sub": _binary(operator.sub), "Mul": _mul, "Div": _div, "Mod": _mod, "Pow": _pow,
    "Sum": _many(operator.add), "Mean": _mean_of, "Max": _extreme(torch.maximum, "min"), "Min": _extreme(torch.minimum, "max"),
    "Equal": _binary(operator.eq), "Greater": _binary(operator.gt), "Less": _binary(operator.lt),
    "GreaterOrEqual": _binary(operator.ge), "LessOrEqual": _binary(operator.le),
    "And": _binary(torch.logical_and, _tensor), "Or": _binary(torch.logical_or, _tensor),
    "Xor": _binary(torch.logical_xor, _tensor),
    "Where": _where, "Cast": _cast, "CastLike": _cast_like,
    "ReduceMean": _reduce(_plain(torch.mean)), "ReduceSum": _reduce(_plain(torch.sum)),
    "ReduceMax": _reduce(_extreme_over(torch.amax)), "ReduceMin": _reduce(_extreme_over(torch.amin)),
    "ReduceProd": _reduce(_product), "ReduceL1": _reduce(_then(torch.abs, torch.sum, None)),
    "ReduceL2": _reduce(_then(torch.square, torch.sum, torch.sqrt)),
    "ReduceSumSquare": _reduce(_then(torch.square, torch.sum, None)),
    "ReduceLogSum": _reduce(_then(None, torch.sum, torch.log)), "ReduceLogSumExp": _reduce(_plain(torch.logsumexp)),
    "Softmax": _over(F.softmax, False), "LogSoftmax": _over(F.log_softmax, True), "Hardmax": _over(hardmax, None),
    "LpNormalization": _lp_norm, "CumSum": _cumsum, "MeanVarianceNormalization": _standardise,
    "Identity": _identity, "Dropout": _dropout, "Einsum": _einsum,
}  # fmt: skip
"""ONNX operator -> how it is written."""
