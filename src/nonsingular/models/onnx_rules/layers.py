"""layers.py - ONNX operators with weights: products, convolutions, normalisations and recurrent layers.

Constants that enter them are parameters, and so is what is added right after a product or a convolution, or what scales and
shifts a quotient of two signals (a layer norm written out).  Every other constant is a buffer and never moves.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from nonsingular.errors import InvalidInput
from nonsingular.models.onnx_rules.functions import known_activation, local_response, recurrent
from nonsingular.models.onnx_rules.scope import Node, flat_pads

# --- products ---------------------------------------------------------------------------------------------------------------


def _gemm(node: Node) -> Any:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    W, b, turned = node.value(1), node.value(2), bool(node.get("transB", 0))
    if isinstance(node.value(0), fx.Node) and not node.get("transA", 0) and isinstance(W, Tensor) and not isinstance(b, fx.Node):
        return _linear(node, W, b, turned, alpha, beta)
    x, w = node.weight(0), node.weight(1)
    x = node.call(torch.t, x) if node.get("transA", 0) else x
    y = node.call(torch.matmul, x, node.call(torch.t, w) if turned else w)
    y = y if alpha == 1 else node.call(operator.mul, y, alpha)
    if not node.has(2):
        return y
    shift = node.weight(2)
    return node.call(operator.add, y, shift if beta == 1 else node.call(operator.mul, shift, beta))


def _linear(node: Node, W: Tensor, b: Tensor | None, turned: bool, alpha: float, beta: float) -> Any:
    """x W + b with a constant matrix W."""
    if W.dim() != 2:
        raise node.refuse(f"its matrix has {W.dim()} dimensions")
    weight = node.scope.matrix(node.inputs[1], W, turned, alpha)
    outputs = W.shape[0 if turned else 1]
    if b is None:
        return node.call(F.linear, node.tensor(), weight)
    if b.dim() == 2 and b.shape[0] > 1:  # a row for each example
        y = node.call(F.linear, node.tensor(), weight)
        return node.call(operator.add, y, node.weight(2, lambda v: beta * v, f"rows {beta}"))
    bias = beta * b.reshape(-1) if b.numel() > 1 else (beta * b.reshape(1)).expand(outputs)
    return node.call(F.linear, node.tensor(), weight, node.scope.parameter(node.inputs[2], bias, f"bias {beta}"))


def _matmul(node: Node) -> Any:
    x, W = node.tensor(0), node.tensor(1)
    if isinstance(x, fx.Node) and isinstance(W, Tensor) and W.dim() == 2:
        return node.call(F.linear, x, node.scope.matrix(node.inputs[1], W, turned=False))
    if isinstance(x, Tensor) and isinstance(W, fx.Node) and x.dim() == 2:  # W x = (x^T W^T)^T
        weight = node.scope.matrix(node.inputs[0], x, turned=True)
        if node.rank(1) == 1 + node.scope.added:
            return node.call(F.linear, W, weight)
        return node.call(torch.transpose, node.call(F.linear, node.call(torch.transpose, W, -1, -2), weight), -1, -2)
    return node.call(torch.matmul, node.weight(0), node.weight(1))


_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_AFTER = {F.linear, torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED}


def _with_constant(node: Node) -> tuple[fx.Node, Tensor, int] | None:
    """The signal, the constant and the constant's place, of an operation on one of each."""
    for i in (0, 1):
        signal, constant = node.value(1 - i), node.value(i)
        if isinstance(signal, fx.Node) and isinstance(constant, Tensor):
            return signal, constant, i
    return None


def biased(node: Node) -> Any:
    """A vector that is added right after a linear layer, and nowhere else, is its bias; None for anything else."""
    found = _with_constant(node)
    if found is None:
        return None
    layer, b, i = found
    if layer.target is operator.mul and _is_scale(layer):
        return node.call(operator.add, layer, node.weight(i))
    args: list[Any] = [*layer.args]
    if layer.target not in _AFTER or (len(args) > 2 and args[2] is not None) or args[1].op != "get_attr":
        return None
    W = node.scope.root.get_parameter(str(args[1].target))
    channels = W.shape[1 if layer.target in _TRANSPOSED else 0]
    if layer.target in _TRANSPOSED and len(args) > 6 and args[6] != 1:
        return None
    spread = [1] * (W.dim() - 2)  # over the positions of a convolution
    if list(b.shape) not in ([channels, *spread], [1, channels, *spread]) or node.scope.users[node.inputs[1 - i]] != 1:
        return None
    bias = node.weight(i, lambda v: v.reshape(-1), "bias 1.0")
    return node.call(layer.target, *args[:2], bias, *args[3:])


def scaled(node: Node) -> Any:
    """What multiplies a quotient of two signals: the scale of a layer norm that is written out; None for anything else."""
    found = _with_constant(node)
    if found is None or found[1].dim() == 0:
        return None
    signal, _, i = found
    if signal.target is not operator.truediv or not all(isinstance(a, fx.Node) for a in signal.args):
        return None
    product = node.call(operator.mul, signal, node.weight(i))
    return product


def _is_scale(product: fx.Node) -> bool:
    signal, scale = product.args
    return (
        isinstance(signal, fx.Node)
        and isinstance(scale, fx.Node)
        and signal.target is operator.truediv
        and scale.op == "get_attr"
    )


# --- convolutions -----------------------------------------------------------------------------------------------------------


def edges(node: Node, kernel: Sequence[int], sizes: Sequence[int], opens: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Padding before and after, in each spatial dimension; sizes: of the input, some of which the input decides."""
    auto, n = node.get("auto_pad", "NOTSET"), len(kernel)
    pads = node.get("pads") or [0] * 2 * n
    if auto in ("NOTSET", "", "VALID"):
        return ([0] * n, [0] * n) if auto == "VALID" else (pads[:n], pads[n:])
    strides, dilations = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    begin, end = list[int](), list[int]()
    for d in range(n):
        if opens[d] and strides[d] > 1:
            raise node.refuse(f"auto_pad {auto} needs sizes that the file does not have; export with explicit pads")
        reach = dilations[d] * (kernel[d] - 1) + 1
        total = max(0, (math.ceil(sizes[d] / strides[d]) - 1) * strides[d] + reach - sizes[d])
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin, end


def spatial(node: Node, n: int) -> tuple[list[int], list[bool]]:
    """The last n sizes of the first input, and which of them the input decides."""
    x = node.tensor()
    if node.rank() != n + 2:
        raise node.refuse(f"its input has {node.rank()} dimensions, not {n + 2}")
    return list(node.scope.shape(x)[2:]), [node.scope.is_open(x, 2 + d) for d in range(n)]


def padded(node: Node, x: Any, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Any:
    pads = flat_pads(list(zip(begin, end, strict=True)))
    return node.call(F.pad, x, pads, "constant", value) if value else node.call(F.pad, x, pads)


def _kernel(node: Node) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The shape of the kernel, and (weight, bias) as nodes."""
    shape = node.scope.shape(node.tensor(1))
    if len(shape) not in (3, 4, 5):
        raise node.refuse("only kernels in one to three dimensions are known")
    return shape, (node.weight(1), node.weight(2))


def _conv(node: Node) -> Any:
    shape, parameters = _kernel(node)
    x, n = node.tensor(), len(shape) - 2
    begin, end = edges(node, shape[2:], *spatial(node, n))
    if begin != end:
        x, begin = padded(node, x, begin, end), [0] * n
    f = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
    strides, dilations = node.get("strides") or [1] * n, node.get("dilations") or [1] * n
    return node.call(f, x, *parameters, strides, begin, dilations, node.get("group", 1))


def _conv_transpose(node: Node) -> Any:
    shape, parameters = _kernel(node)
    x, n = node.tensor(), len(shape) - 2
    f = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
    strides, dilations, extra = (node.get(k) or [v] * n for k, v in (("strides", 1), ("dilations", 1), ("output_padding", 0)))
    group, pads, auto = node.get("group", 1), node.get("pads") or [0] * 2 * n, node.get("auto_pad", "NOTSET")
    begin, end = ([0] * n, [0] * n) if auto == "VALID" else (pads[:n], pads[n:])
    if node.get("output_shape") or auto in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = _crop(node, shape[2:], strides, dilations, extra, n)
    if begin == end and min(begin) >= 0:
        return node.call(f, x, *parameters, strides, begin, extra, group, dilations)
    y = node.call(f, x, *parameters, strides, [0] * n, extra, group, dilations)
    return padded(node, y, [-v for v in begin], [-v for v in end])


def _crop(
    node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: Sequence[int], n: int
) -> tuple[list[int], list[int]]:
    """What a transposed convolution of a wanted output size cuts off."""
    sizes, opens = spatial(node, n)
    if any(opens):
        raise node.refuse("its output has sizes that the file does not have; export with explicit pads")
    wanted = (node.get("output_shape") or [size * s for size, s in zip(sizes, strides, strict=True)])[-n:]
    begin, end = list[int](), list[int]()
    for d in range(n):
        total = strides[d] * (sizes[d] - 1) + extra[d] + dilations[d] * (kernel[d] - 1) + 1 - wanted[d]
        first = total // 2 if node.get("auto_pad", "NOTSET") == "SAME_UPPER" else total - total // 2
        begin.append(first)
        end.append(total - first)
    return begin, end


# --- normalisations ---------------------------------------------------------------------------------------------------------


def _batch_norm(node: Node) -> Any:
    if node.get("training_mode", 0) or (node.scope.opset < 7 and not node.get("is_test", 0)):
        raise InvalidInput(f"BatchNormalization '{node.name}' of {node.scope.path} is in training mode; export model.eval()")
    if not node.get("spatial", 1):
        raise node.refuse("statistics for each position are not known")
    mean, var = node.constant(3), node.constant(4)
    if mean is None or var is None:
        raise node.refuse("it has no statistics")
    fixed = [mean.reshape(-1), var.reshape(-1)]
    if node.moves:
        fixed = [node.scope.buffer(node.inputs[3], fixed[0]), node.scope.buffer(node.inputs[4], fixed[1])]
    return node.call(F.batch_norm, node.tensor(), *fixed, node.weight(1), node.weight(2), False, 0.0, node.get("epsilon", 1e-5))


def _layer_norm(node: Node) -> Any:
    x, rank, call = node.tensor(), node.rank(), node.call
    axis, eps = node.get("axis", -1) % rank, node.get("epsilon", 1e-5)
    if any(node.scope.is_open(x, d) for d in range(axis, rank)):
        raise node.refuse("it is over sizes that the file does not have")
    over = list(node.scope.shape(x)[axis:])
    if node.op == "RMSNormalization":
        return call(operator.mul, call(F.rms_norm, x, over, None, eps), node.weight(1))
    scale, shift = node.weight(1), node.weight(2)
    if all(v is None or list(node.scope.shape(v)) == over for v in (scale, shift)):
        return call(F.layer_norm, x, over, scale, shift, eps)
    y = call(operator.mul, call(F.layer_norm, x, over, None, None, eps), scale)
    return y if shift is None else call(operator.add, y, shift)


def _group_norm(node: Node) -> Any:
    x, groups, call = node.tensor(), node.get("num_groups"), node.call
    scale, shift = node.weight(1), node.weight(2)
    channels = node.scope.shape(x)[1]
    if node.scope.opset < 21 and groups != channels:  # one scale for each group
        scale, shift = (call(torch.repeat_interleave, v, channels // groups) for v in (scale, shift))
    return call(F.group_norm, x, groups, scale, shift, node.get("epsilon", 1e-5))


def _instance_norm(node: Node) -> Any:
    channels = node.scope.shape(node.tensor())[1]
    return node.call(F.group_norm, node.tensor(), channels, node.weight(1), node.weight(2), node.get("epsilon", 1e-5))


def _lrn(node: Node) -> Any:
    settings = (node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))
    return node.call(local_response, node.tensor(), node.get("size"), *settings)


# --- recurrent layers -------------------------------------------------------------------------------------------------------

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def _recurrent(node: Node) -> Any:
    x, first, call = node.tensor(), bool(node.get("layout", 0)), node.call
    direction = node.get("direction", "forward")
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    names = [v.decode() for v in node.get("activations", [])] or _DEFAULTS[node.op] * len(reverse)
    unknown = [v for v in names if not known_activation(v)]
    if unknown or node.get("activation_alpha") or node.get("activation_beta"):
        raise node.refuse(f"its activations are {', '.join(unknown) or 'of other parameters'}")
    lengths = node.numbers(4)
    if lengths and set(lengths) != {node.scope.shape(x)[1 - first]}:
        raise node.refuse("its sequences have several lengths")
    if first:
        x = call(torch.transpose, x, 0, 1)
    states = [_state(node, i, x, first) for i in ((5, 6) if node.op == "LSTM" else (5,))]
    peepholes = node.weight(7) if node.op == "LSTM" else None
    flag = bool(node.get("linear_before_reset" if node.op == "GRU" else "input_forget", 0))
    found = call(
        recurrent, node.op, x, node.weight(1), node.weight(2), node.weight(3), *states, *[None] * (2 - len(states)), peepholes,
        reverse, names, node.get("clip"), flag,
    )  # fmt: skip
    if isinstance(found, fx.Node):
        found = tuple(call(operator.getitem, found, i) for i in range(2 + (node.op == "LSTM")))
    if not first:
        return found
    return (call(torch.permute, found[0], [2, 0, 1, 3]), *(call(torch.transpose, v, 0, 1) for v in found[1:]))


def _state(node: Node, i: int, x: Any, first: bool) -> Any:
    """The first state (directions, B, H); a constant one is that of every example, where the file fixes the batch to 1."""
    state = node.value(i)
    if state is None:
        return None
    state = node.call(torch.transpose, node.tensor(i), 0, 1) if first else node.tensor(i)
    if isinstance(state, Tensor) and node.scope.is_open(x, 1) and state.shape[1] == 1:
        return node.call("expand", state, -1, node.scope.dims(x)[1], -1)
    return state


LAYERS: dict[str, Callable[[Node], Any]] = {
    "Gemm": _gemm, "MatMul": _matmul, "Conv": _conv, "ConvTranspose": _conv_transpose, "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm, "RMSNormalization": _layer_norm, "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm, "LRN": _lrn, **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
}  # fmt: skip
"""ONNX operator -> how it is written."""
