"""quantised.py - ONNX operators on whole numbers: QuantizeLinear and back, and products in integers.

A whole number is held in a float of the run's precision, so that gradients pass: what is rounded passes them straight through,
within the range of its words.  The steps between are those of onnxruntime without optimisations, in its order.
Weights are parameters in their own units, step times word; words, steps and zero points are buffers.  Those of products in
integers have steps of 16 significant bits, so that a float32 holds their product with a word exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from nonsingular.models.onnx_rules.layers import edges, padded, spatial
from nonsingular.models.onnx_rules.scope import Node
from nonsingular.network.rounded import fused, integer_product, rounded

BITS = {"INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}
"""Kinds of words, by their names in ONNX."""
Range = tuple[int, int]


def _range(name: str) -> Range:
    bits = BITS[name]
    return (0, 2**bits - 1) if name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _kind(node: Node, i: int) -> Range:
    """The range of the words of input i, a zero point; of unsigned bytes where it is left out."""
    if not node.has(i):
        return _range("UINT8")
    name = node.scope.kinds.get(node.inputs[i], "")
    if name not in BITS:
        raise node.refuse(f"its words are of the kind {name.lower() or 'unknown'}; only whole numbers of 2 to 16 bits are known")
    return _range(name)


def _along(node: Node, value: Tensor | None, x: Any, axis: int) -> Tensor:
    """A scale or zero point as it broadcasts against x: one number, one for each place of the axis, or one for each block."""
    if value is None:
        return torch.zeros(1)
    value = value.float()
    if value.numel() == 1:
        return value.reshape(1)
    rank, axis, block = len(node.scope.shape(x)), axis % len(node.scope.shape(x)), node.get("block_size", 0)
    if value.dim() == 1 and not block:
        return value.reshape([-1 if d == axis else 1 for d in range(rank)])
    if not block or value.dim() != rank:
        raise node.refuse(f"its scale has {value.dim()} dimensions")
    n = node.scope.shape(x)[axis]
    return value.repeat_interleave(min(block, n), axis).narrow(axis, 0, n)


def _scale(node: Node, i: int) -> Tensor:
    scale = node.constant(i)
    if scale is None:
        raise node.refuse("it has no scale")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise node.refuse("its scale is not above 0")
    return scale.float()


def _shifted(node: Node, f: Any, x: Any, zero: Tensor) -> Any:
    return x if not bool(zero.any()) else node.call(f, x, zero)


def _to_words(node: Node, t: Any, zero: Tensor, words: Range) -> Any:
    """round(t) + zero, clipped to the range; the limits are whole, so clipping may come first."""
    low, high = (end - zero for end in words)
    if zero.numel() == 1:
        t = node.call(torch.clamp, t, low.item(), high.item())
    else:
        t = node.call(torch.minimum, node.call(torch.maximum, t, low), high)
    return _shifted(node, operator.add, node.call(rounded, t), zero)


def _quantize(node: Node) -> Any:
    x, axis = node.tensor(), node.get("axis", 1)
    if node.has(2):
        words = _kind(node, 2)
    else:
        name = node.scope.onnx.TensorProto.DataType.Name(node.get("output_dtype", 0) or node.scope.onnx.TensorProto.UINT8)
        if name not in BITS:
            raise node.refuse(f"its words are of the kind {name.lower()}; only whole numbers of 2 to 16 bits are known")
        words = _range(name)
    scale, zero = (_along(node, v, x, axis) for v in (_scale(node, 1), node.constant(2)))
    return _to_words(node, node.call(operator.truediv, x, scale), zero, words)


def _dequantize(node: Node) -> Any:
    q, axis = node.tensor(), node.get("axis", 1)
    scale, zero = (_along(node, v, q, axis) for v in (_scale(node, 1), node.constant(2)))
    if isinstance(q, Tensor):
        form = (*node.inputs[1:], axis, node.get("block_size", 0))
        if node.scope.forms.setdefault(node.inputs[0], form) == form:  # a weight, under the name of its words
            node.scope.sources[node.outputs[0]] = node.scope.sources.get(node.inputs[0], (node.inputs[0], 0))
        return (q.float() - zero) * scale
    factor = scale.item() if scale.numel() == 1 else scale
    return node.call(operator.mul, _shifted(node, operator.sub, q, zero), factor)


# --- products ---------------------------------------------------------------------------------------------------------------


def _product(node: Node, places: Sequence[int], bias: Tensor | None, turned: bool = False) -> tuple[Any, Tensor]:
    """(sums of products of words as real numbers, the steps of the weight), of a matrix or of a kernel.

    places: of the inputs x, its zero point, the weight, its zero point, its steps (below 0: one of 1).
    """
    at_x, at_x_zero, at_w, at_w_zero, at_step = places
    x, words = node.tensor(at_x), node.constant(at_w)
    if not isinstance(x, fx.Node) or words is None or words.dim() not in (2, 3, 4, 5):
        raise node.refuse("only a product of a signal with constant words is known")
    zero = node.constant(at_x_zero)
    if zero is not None and zero.numel() > 1:
        raise node.refuse("its signal has several zero points")
    matrix = words.dim() == 2
    words = words.float().T if matrix and not turned else words.float()
    step, w_zero = _scale(node, at_step) if at_step >= 0 else torch.ones(1), node.constant(at_w_zero)
    spread = [-1, *[1] * (words.dim() - 1)]
    words = words if w_zero is None else words - w_zero.float().reshape(spread)
    step = step.reshape(-1)
    if step.numel() not in (1, len(words)):
        raise node.refuse(f"it has {step.numel()} scales for {len(words)} outputs")
    name = node.inputs[at_w]
    z = _shifted(node, operator.sub, x, (torch.zeros(1) if zero is None else zero.float()).reshape(1))
    walk = None
    if not matrix:
        z, walk = _walk(node, z, tuple(words.shape))
    form = (
        f"words {node.inputs[at_step] if at_step >= 0 else ''} {node.inputs[at_w_zero] if node.has(at_w_zero) else ''} {turned}"
    )
    short = _short(step)
    weight = node.scope.parameter(name, words * short.reshape(spread), form)
    sums = node.call(integer_product, z, weight, words.contiguous(), short, None if bias is None else bias.reshape(-1), walk)
    return sums, step


def _short(step: Tensor) -> Tensor:
    """Rounded to 16 significant bits."""
    part, power = torch.frexp(step)
    return torch.ldexp(torch.round(part * 2**16) / 2**16, power)


def _walk(node: Node, z: Any, shape: tuple[int, ...]) -> tuple[Any, tuple[list[int], list[int], list[int], int]]:
    n = len(shape) - 2
    begin, end = edges(node, shape[2:], *spatial(node, n))
    if begin != end:
        z, begin = padded(node, z, begin, end), [0] * n
    strides, dilations = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    return z, (list(strides), list(begin), list(dilations), node.get("group", 1))


def _requantised(node: Node, sums: Any, factor: Tensor, y_zero: int) -> Any:
    """Words of the output from sums: factor times these, rounded.  factor: (1 or out,)."""
    dims = node.scope.shape(sums)
    spread = [-1] if factor.numel() == 1 else [1, -1, *[1] * (len(dims) - 2)] if node.op == "QLinearConv" else [-1]
    zero = node.constant(y_zero)
    shift = torch.zeros(1) if zero is None else zero.float().reshape(1)
    return _to_words(node, node.call(operator.mul, sums, factor.reshape(spread)), shift, _kind(node, y_zero))


def _qlinear_conv(node: Node) -> Any:
    sums, step = _product(node, (0, 2, 3, 5, 4), node.constant(8))
    return _requantised(node, sums, _scale(node, 1).reshape(1) * step / _scale(node, 6).reshape(1), 7)


def _qlinear_matmul(node: Node) -> Any:
    sums, step = _product(node, (0, 2, 3, 5, 4), None)
    return _requantised(node, sums, _scale(node, 1).reshape(1) * step / _scale(node, 6).reshape(1), 7)


def _qgemm(node: Node) -> Any:
    if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0:
        raise node.refuse("only alpha 1 and a signal that is not transposed are known")
    sums, step = _product(node, (0, 2, 3, 5, 4), node.constant(6), bool(node.get("transB", 0)))
    factor = _scale(node, 1).reshape(1) * step
    if not node.has(7):
        return node.call(operator.mul, sums, factor)
    return _requantised(node, sums, factor / _scale(node, 7).reshape(1), 8)


def _integer(node: Node) -> Any:
    """Sums in whole numbers of 32 bits, as onnxruntime converts them to float32 next."""
    return _product(node, (0, 2, 1, 3, -1), None)[0]


# --- the rest ---------------------------------------------------------------------------------------------------------------


def _qlinear_add(node: Node) -> Any:
    """a ra + (b rb + fixed) with r = s / sy and fixed = zy - (za ra + zb rb), each sum with its product rounded once."""
    sa, sb, sy = (_scale(node, i).reshape(1) for i in (1, 4, 6))
    za, zb, zy = (torch.zeros(1) if (v := node.constant(i)) is None else v.float().reshape(1) for i in (2, 5, 7))
    a, b = (v.float() if isinstance(v := node.tensor(i), Tensor) else v for i in (0, 3))
    if isinstance(b, Tensor):  # the signal last
        total = node.call(fused, a, sa / sy, fused(b, sb / sy, zy - (sa / sy * za + sb / sy * zb)))
    else:
        total = node.call(fused, b, sb / sy, zy - (sa / sy * za + sb / sy * zb))
        total = node.call(fused, a, sa / sy, total)
    low, high = _kind(node, 7)
    return node.call(rounded, node.call(torch.clamp, total, float(low), float(high)))


def _qlinear_average(node: Node) -> Any:
    """The mean over all places: sums of words less zero points, times one factor."""
    if node.get("channels_last", 0):
        raise node.refuse("its channels come last")
    x = node.tensor()
    rank = node.rank()
    if any(node.scope.is_open(x, d) for d in range(2, rank)):
        raise node.refuse("it is over sizes that the file does not have")
    count = 1
    for n in node.scope.shape(x)[2:]:
        count *= n
    zero = node.constant(2)
    z = _shifted(node, operator.sub, x, torch.zeros(1) if zero is None else zero.float().reshape(1))
    sums = node.call(torch.sum, z, list(range(2, rank)), True)
    return _requantised(node, sums, _scale(node, 1).reshape(1) / (count * _scale(node, 3).reshape(1)), 4)


def _qlinear_concat(node: Node) -> Any:
    """Words with the scale and zero point of the output stay; others go through real numbers."""
    scale, zero = _scale(node, 0).reshape(1), node.constant(1)
    shift = torch.zeros(1) if zero is None else zero.float().reshape(1)
    parts: list[Any] = []
    for i in range(2, len(node.inputs), 3):
        x, own, at = node.tensor(i), _scale(node, i + 1).reshape(1), node.constant(i + 2)
        at = torch.zeros(1) if at is None else at.float().reshape(1)
        x = x.float() if isinstance(x, Tensor) else x
        if not torch.equal(own, scale) or not torch.equal(at, shift):
            real = node.call(operator.mul, _shifted(node, operator.sub, x, at), own)
            x = _to_words(node, node.call(operator.truediv, real, scale), shift, _kind(node, 1))
        parts.append(x)
    return node.call(torch.cat, parts, node.get("axis"))


def _dynamic(node: Node) -> Any:
    raise node.refuse(
        "its scale depends on the values of the input, example by example; quantise with static ranges "
        "(onnxruntime.quantization.quantize_static)"
    )


Rule = Callable[[Node], Any]
QUANTISED: dict[str, Rule] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul, "MatMulInteger": _integer, "ConvInteger": _integer, "DynamicQuantizeLinear": _dynamic,
}  # fmt: skip
"""ONNX operator -> how it is written."""
CONTRIBUTED: dict[str, Rule] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "QGemm": _qgemm, "QLinearAdd": _qlinear_add,
    "QLinearGlobalAveragePool": _qlinear_average, "QLinearConcat": _qlinear_concat,
    **dict.fromkeys(("DynamicQuantizeMatMul", "DynamicQuantizeLSTM"), _dynamic),
}  # fmt: skip
"""The same of onnxruntime's own domain, com.microsoft, as its quantiser writes them."""
