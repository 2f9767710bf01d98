"""operators.py - the operators that bounds have rules for, as a few kinds of nodes, and how calls of torch become them.

Every operator is one of: a product of the signal with a parameter (plus a bias), a fixed affine sum, a fixed linear map with
non-negative coefficients, an activation, or a maximum; or a few of these in a row.  Bounds have one rule per kind; a new operator
is one line in a table below.  Anything else raises UnsupportedModel: nothing is skipped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network import curves
from nonsingular.network.calls import (
    COMPUTED,
    Call,
    Name,
    Signal,
    View,
    as_constant,
    as_signal,
    broadcast,
    entire,
    parameter,
    rows_alike,
)
from nonsingular.network.curves import Curve
from nonsingular.network.derivatives import of_convolution, of_linear, of_scale
from nonsingular.network.nodes import Activation, Map, Maximum, NegativePart, Node, Parameter, Product, Sum

# --- from calls of torch: arguments are already values, except the signals, which are `Signal` ---------------------------


def _linear(call: Call) -> list[Node]:
    z, w, b = call.bound("input", "weight", "bias")
    z, (weight, see), (bias, spread) = as_signal(call, z), parameter(call, w, "weight"), parameter(call, b, "bias")
    return [linear(call, z, weight, see, bias, spread)]


def linear(
    call: Call, z: Signal, weight: Parameter | None, see: View = entire, bias: Parameter | None = None, spread: View = entire
) -> Product:
    """F.linear(z, see(weight), spread(bias))."""
    if see is entire:
        dense = len(z.shape) == 1
        return Product(call.name, (z.number,), call.out, F.linear, weight, bias, spread, dense, derivatives=of_linear)
    return Product(call.name, (z.number,), call.out, lambda z, w: F.linear(z, see(w)), weight, bias, spread)


def _convolution(call: Call, *names: str) -> list[Node]:
    z, w, b, *rest = call.bound("input", "weight", "bias", *names)
    settings = {n: v for n, v in zip(names, rest, strict=True) if v is not None}
    z, (weight, see), (bias, own) = as_signal(call, z), parameter(call, w, "weight"), parameter(call, b, "bias")
    if len(z.shape) != len(call.out) or len(z.shape) < 2:
        raise call.refuse("it needs a batch dimension")

    def apply(z: Tensor, w: Tensor) -> Tensor:
        return call.target(z, see(w), None, **settings)

    def spread(b: Tensor) -> Tensor:
        return _per_channel(own(b), dims=len(call.out))

    node = Product(call.name, (z.number,), call.out, apply, weight, bias, spread)
    if call.target is torch.conv2d and see is entire:
        node = replace(node, derivatives=partial(of_convolution, z_shape=z.shape, **settings))
    return [node]


def _per_channel(b: Tensor, dims: int) -> Tensor:
    return b.reshape(-1, *[1] * (dims - 1))


def _map(call: Call) -> list[Node]:
    """The operation itself, with its constants kept."""
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    rest, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}
    if any(isinstance(v, Signal | Name) or v is COMPUTED for v in _flattened((*rest, *kwargs.values()))):
        raise call.refuse("an argument besides the first is a signal, a parameter or computed")

    def apply(z: Tensor) -> Tensor:
        return call.target(z, *rest, **kwargs)

    return [Map(call.name, (z.number,), call.out, apply)]


def _flattened(values: Sequence[Any]) -> list[Any]:
    return [w for v in values for w in (_flattened(cast("Sequence[Any]", v)) if isinstance(v, list | tuple) else [v])]


def _reshape(call: Call) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))

    def apply(z: Tensor) -> Tensor:
        return z.reshape(len(z), *call.out)  # the batch stays first, so each example's elements stay in order

    if torch.Size(z.shape).numel() != torch.Size(call.out).numel():
        raise call.refuse("it does not keep the batch as first dimension")
    return [Map(call.name, (z.number,), call.out, apply, True)]


def _mean(call: Call) -> list[Node]:
    z, dims, *_ = call.bound("input", "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(z, Signal) or not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    return _map(call)


def _triangle(call: Call) -> list[Node]:
    if len(call.out) < 2:
        raise call.refuse("it works across the batch")
    return _map(call)


def _interpolate(call: Call) -> list[Node]:
    mode = call.kwargs.get("mode", call.args[3] if len(call.args) > 3 else "nearest")
    if mode not in ("nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear"):
        raise call.refuse(f"mode '{mode}' has negative coefficients, or is not known")
    return _map(call)


def _avg_pool(call: Call) -> list[Node]:
    *_, divisor = call.bound(
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override", divisor_override=None
    )
    if divisor is not None and divisor <= 0:
        raise call.refuse(f"the divisor is {divisor}")
    return _pooled(call)


def _pooled(call: Call) -> list[Node]:
    if len(call.out) < 2:
        raise call.refuse("it needs a batch dimension")
    return _map(call)


def _cat(call: Call, join: Callable[..., Tensor]) -> list[Node]:
    """Joined signals; constants among them are an offset, parameters (one, expanded along the batch) a bias."""
    parts, dim = call.bound("tensors", "dim", dim=0)
    if "axis" in call.kwargs:
        dim = call.kwargs["axis"]
    if dim % (len(call.out) + 1) == 0:
        raise call.refuse("it joins along the batch")
    own = dim if dim < 0 else dim - 1
    shapes = [
        tuple(p.shape) if isinstance(p, Signal) else tuple(p.shape[1:]) for p in parts if isinstance(p, Signal | Tensor | Name)
    ]
    if len(shapes) != len(parts) or not all(isinstance(p, Signal) or p.shape[0] == call.batch for p in parts):
        raise call.refuse("only signals, constants and parameters can be joined")
    numbers = tuple(p.number for p in parts if isinstance(p, Signal))

    def joined(rows: int, like: Tensor, blocks: Sequence[Tensor | None]) -> Tensor:
        full = [like.new_zeros(rows, *shape) if t is None else t for t, shape in zip(blocks, shapes, strict=True)]
        return join([t.to(like) for t in full], own if own < 0 else own + 1)

    def apply(*z: Tensor) -> Tensor:
        signals = iter(z)
        return joined(len(z[0]), z[0], [next(signals) if isinstance(p, Signal) else None for p in parts])

    nodes: list[Node] = [Map(call.name, numbers, call.out, apply)]
    constants = [p if isinstance(p, Tensor) else None for p in parts]
    if any(p is not None for p in constants):
        if not all(p is None or rows_alike(p) for p in constants):
            raise call.refuse("a constant is different for each example of the batch")
        like = next(p for p in constants if p is not None).to(call.dtype)
        offset = joined(1, like, [None if p is None else p[:1] for p in constants])
        nodes.append(Sum(call.name, (-1,), call.out, (1.0,), offset))
    for k, p in enumerate(parts):
        if isinstance(p, Name):
            if not p.rows_alike:
                raise call.refuse(f"'{p.of}' is different for each example of the batch")

            def spread(w: Tensor, k: int = k, view: View = p.view) -> Tensor:
                return joined(1, w, [view(w)[:1] if i == k else None for i in range(len(parts))])[0]

            nodes.append(Product(call.name, (-1,), call.out, lambda z, w: z, None, p.of, spread))
    return nodes


def _pad(call: Call) -> list[Node]:
    """Pads (below 0: crops) with elements of the signal, or with a number."""
    z, pad, mode, value = call.bound("input", "pad", "mode", "value", mode="constant", value=None)
    z, pad = as_signal(call, z), list(pad)
    if len(pad) // 2 > len(call.out):
        raise call.refuse("it pads the batch")
    nodes: list[Node] = [Map(call.name, (z.number,), call.out, partial(F.pad, pad=pad, mode=mode))]
    if mode == "constant" and value:
        frame = F.pad(torch.zeros(1, *z.shape, dtype=call.dtype), pad, value=float(value))
        nodes.append(Sum(call.name, (-1,), call.out, (1.0,), frame.to(call.device)))
    return nodes


def _max_pool(call: Call) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    if call.kwargs.get("return_indices") or len(z.shape) != len(call.out) or len(z.shape) < 2:
        raise call.refuse("indices and inputs without a batch are not known")
    kwargs = {k: v for k, v in call.kwargs.items() if k != "input"}
    return [Maximum(call.name, (z.number,), call.out, lambda z: call.target(z, *call.args[1:], **kwargs))]


def _dropout(call: Call) -> list[Node]:
    z, p, training = call.bound("input", "p", "training", training=True)
    if training and p:
        raise call.refuse("dropout is on; use eval mode")
    return [Map(call.name, (as_signal(call, z).number,), call.out, entire, True)]


def _hinge(call: Call) -> list[Node]:
    z, slope = call.bound("input", "negative_slope", negative_slope=0.01)
    return _leaky(call, as_signal(call, z), slope)


def _rrelu(call: Call) -> list[Node]:
    z, low, high, training = call.bound("input", "lower", "upper", "training", lower=1 / 8, upper=1 / 3, training=False)
    if training:
        raise call.refuse("its slopes are drawn at random; use eval mode")
    return _leaky(call, as_signal(call, z), (low + high) / 2)


def _leaky(call: Call, z: Signal, slope: Any) -> list[Node]:
    """max(z, 0) - slope max(-z, 0)."""
    if not isinstance(slope, int | float) or not math.isfinite(slope):
        raise call.refuse(f"the negative slope is {slope}, not a number")
    if 0 <= slope <= 1:
        return [Activation(call.name, (z.number,), call.out, lambda z: F.leaky_relu(z, slope), "hinge", float(slope))]
    return [*_halves(call, z), Sum(call.name, (-2, -1), call.out, (1.0, -float(slope)))]


def _prelu(call: Call) -> list[Node]:
    """max(z, 0) - a max(-z, 0), with a slope a for each channel that may move."""
    z, w = call.bound("input", "weight")
    z, (slope, see) = as_signal(call, z), parameter(call, w, "slope")
    dims = len(call.out)

    def spread(w: Tensor) -> Tensor:
        return _per_channel(see(w), max(dims, 1))

    return [
        *_halves(call, z),
        _scale(call, Signal(-1, call.out), spread, slope, None),
        Sum(call.name, (-3, -1), call.out, (1.0, -1.0)),
    ]


def _halves(call: Call, z: Signal) -> list[Node]:
    """max(z, 0) and max(-z, 0)."""
    return [
        Activation(call.name, (z.number,), call.out, torch.relu, "hinge"),
        NegativePart(call.name, (-1, z.number), call.out, (1.0, -1.0)),
    ]


def _threshold(call: Call) -> list[Node]:
    _, threshold, value = call.bound("input", "threshold", "value")
    if threshold != value:
        raise call.refuse(f"it jumps from {value} to {threshold}; only equal ones are known")
    return _clamp(call, threshold, None)


def _relu(call: Call) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return [Activation(call.name, (z.number,), call.out, torch.relu, "hinge")]


def _smooth(call: Call, apply: Callable[[Tensor], Tensor], curve: Curve) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return [Activation(call.name, (z.number,), call.out, apply, "smooth", curve=curve)]


def _gelu(call: Call) -> list[Node]:
    _, approximate = call.bound("input", "approximate", approximate="none")
    if approximate == "tanh":
        return _smooth(call, lambda z: F.gelu(z, approximate="tanh"), curves.GELU_TANH)
    return _smooth(call, F.gelu, curves.GELU)


def _elu(call: Call, alpha: float, scale: float = 1.0, rate: float = 1.0) -> list[Node]:
    if not (alpha >= 0 and rate > 0):
        raise call.refuse(f"alpha is {alpha}")
    return _smooth(call, *curves.elu(alpha, scale, rate))


def _celu(call: Call) -> list[Node]:
    _, alpha = call.bound("input", "alpha", alpha=1.0)
    if alpha <= 0:
        raise call.refuse(f"alpha is {alpha}")
    return _elu(call, alpha, rate=1 / alpha)


def _softplus(call: Call) -> list[Node]:
    _, beta, threshold = call.bound("input", "beta", "threshold", beta=1.0, threshold=20.0)
    if not (beta > 0 and threshold >= 10):
        raise call.refuse(f"beta is {beta}, the threshold {threshold}; only beta > 0 and a threshold of 10 or more are known")
    return _smooth(call, *curves.softplus(beta, threshold))


def _clamp(call: Call, low: Any, high: Any, factor: float = 1.0, offset: float = 0.0) -> list[Node]:
    """min(max(t, low), high) of t = factor z + offset, in hinges: with r = relu(t - low) it is high - relu(high - low - r).

    Branching on hinges and mixed-integer programs then know it.
    """
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    given = [v for v in (low, high) if v is not None]
    if not given or any(isinstance(v, bool) or not isinstance(v, int | float) for v in given):
        raise call.refuse("its limits must be numbers")
    if low is not None and high is not None and low > high:
        raise call.refuse(f"its limits {low} and {high} are the wrong way round")

    def affine(source: int, factor: float, offset: float) -> Node:
        return Sum(call.name, (source,), call.out, (factor,), offset)

    hinge = Activation(call.name, (-1,), call.out, torch.relu, "hinge")
    if low is None:
        assert high is not None
        return [affine(z.number, -factor, high - offset), hinge, affine(-1, -1.0, high)]
    raised: list[Node] = [affine(z.number, factor, offset - low), hinge]
    if high is None:
        return [*raised, affine(-1, 1.0, low)]
    return [*raised, affine(-1, -1.0, high - low), hinge, affine(-1, -1.0, high)]


def _hardtanh(call: Call) -> list[Node]:
    _, low, high = call.bound("input", "min_val", "max_val", min_val=-1.0, max_val=1.0)
    return _clamp(call, low, high)


def _clip(call: Call) -> list[Node]:
    _, low, high = call.bound("input", "min", "max")
    return _clamp(call, low, high)


def _two(call: Call) -> tuple[Any, Any]:
    values = [*call.args, *(call.kwargs[k] for k in ("input", "other") if k in call.kwargs)]
    if len(values) != 2 or set(call.kwargs) - {"input", "other", "alpha"}:
        raise call.refuse("only two plain operands are known")
    return values[0], values[1]


def _aligned(call: Call, *values: Any) -> None:
    """The last dimensions are aligned, so with fewer of them than the output a signal's batch would meet another dimension."""
    if any(isinstance(v, Signal) and len(v.shape) != len(call.out) for v in values):
        raise call.refuse("signals of different numbers of dimensions: it would work across the batch")


def _add(call: Call, sign: float, turned: bool = False) -> list[Node]:
    """a + sign alpha b; turned: the operands the other way round."""
    a, b = _two(call)
    factor = sign * call.kwargs.get("alpha", 1)
    if turned:
        a, b = b, a
    return plus(call, a, b, factor)


def plus(call: Call, a: Any, b: Any, factor: float = 1.0) -> list[Node]:
    """a + factor b, of signals, parameters and constants, of which one is a signal."""
    _aligned(call, a, b)
    if isinstance(a, Signal) and isinstance(b, Signal):
        return [Sum(call.name, (a.number, b.number), call.out, (1.0, factor))]
    if isinstance(a, Name) or isinstance(b, Name):  # a bias: z + c b = c (z / c + b), and b + c z
        z, name = (b, a) if isinstance(a, Name) else (a, b)
        z = as_signal(call, z)
        if factor == 0:
            raise call.refuse("its factor is 0")
        inner, outer = (factor, 1.0) if isinstance(a, Name) else (1 / factor, factor)
        nodes: list[Node] = []
        if z.shape != call.out:
            nodes.append(Map(call.name, (z.number,), call.out, partial(_expanded, shape=call.out)))
        if inner != 1.0:
            nodes.append(Sum(call.name, (-1 if nodes else z.number,), call.out, (inner,)))
        spread = broadcast(call, name)
        nodes.append(Product(call.name, (-1 if nodes else z.number,), call.out, lambda z, w: z, None, name.of, spread))
        return nodes if outer == 1.0 else [*nodes, Sum(call.name, (-1,), call.out, (outer,))]
    if isinstance(a, Signal):
        return [Sum(call.name, (a.number,), call.out, (1.0,), factor * as_constant(call, b))]
    return [Sum(call.name, (as_signal(call, b).number,), call.out, (factor,), as_constant(call, a))]


def _expanded(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    return z.expand(len(z), *shape)


def _abs(call: Call) -> list[Node]:
    """|z| = 2 relu(z) - z."""
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    hinge = Activation(call.name, (z.number,), call.out, torch.relu, "hinge")
    return [hinge, Sum(call.name, (-1, z.number), call.out, (2.0, -1.0))]


def _extreme(call: Call, sign: float) -> list[Node]:
    """max (sign 1) or min (sign -1), of two values or along a dimension."""
    second = call.args[1] if len(call.args) > 1 else call.kwargs.get("other", call.kwargs.get("dim"))
    if isinstance(second, int | tuple | list):
        return _along(call, sign)
    if second is None:
        raise call.refuse("only named dimensions other than the batch are known")
    return _larger(call, sign)


def _larger(call: Call, sign: float) -> list[Node]:
    """max(a, b) = a + relu(b - a) for sign 1, min(a, b) = a - relu(a - b) for sign -1."""
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(a, Tensor):
        a, b = b, a
    a = as_signal(call, a)
    if not isinstance(b, Signal):  # max(a, c) = c + relu(a - c)
        c = as_constant(call, b)
        return [
            Sum(call.name, (a.number,), call.out, (sign,), -sign * c),
            Activation(call.name, (-1,), call.out, torch.relu, "hinge"),
            Sum(call.name, (-1,), call.out, (sign,), c),
        ]
    return [
        Sum(call.name, (b.number, a.number), call.out, (sign, -sign)),
        Activation(call.name, (-1,), call.out, torch.relu, "hinge"),
        Sum(call.name, (a.number, -1), call.out, (1.0, sign)),
    ]


def _along(call: Call, sign: float) -> list[Node]:
    """The largest (smallest) along named dimensions."""
    z, dims, keep = call.bound("input", "dim", "keepdim", keepdim=False)
    z, dims = as_signal(call, z), (dims,) if isinstance(dims, int) else tuple(dims or ())
    if not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    largest = Maximum(call.name, (z.number,), call.out, lambda z: z.amax(dims, keepdim=keep))
    if sign > 0:
        return [largest]
    return [
        Sum(call.name, (z.number,), z.shape, (-1.0,)), replace(largest, inputs=(-1,)), Sum(call.name, (-1,), call.out, (-1.0,)),
    ]  # fmt: skip


def _where(call: Call) -> list[Node]:
    """mask a + (1 - mask) b, with a mask that does not depend on the signal."""
    mask, a, b = call.bound("condition", "input", "other")
    return _chosen(call, mask, a, b)


def _masked_fill(call: Call) -> list[Node]:
    z, mask, value = call.bound("input", "mask", "value")
    return _chosen(call, mask, value, z)


def _chosen(call: Call, mask: Any, a: Any, b: Any) -> list[Node]:
    if not isinstance(mask, Tensor):
        raise call.refuse("its mask depends on values of the signal or of a parameter")
    _aligned(call, a, b)
    chosen = cast(Tensor, as_constant(call, mask))
    offset: Tensor | float = 0.0
    numbers, factors = list[int](), list[Tensor]()
    for value, here in ((a, chosen), (b, 1 - chosen)):
        if isinstance(value, Signal):
            numbers.append(value.number)
            factors.append(here)
            continue
        constant = as_constant(call, value)
        if not bool(torch.isfinite(torch.as_tensor(constant)).all()):
            raise call.refuse("it fills with infinite values")
        offset = here * constant + offset
    return [Sum(call.name, tuple(numbers), call.out, tuple(factors), offset)]


def _mul(call: Call) -> list[Node]:
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(a, Signal) and isinstance(b, Signal):
        raise call.refuse("a product of two signals is not linear")
    z, factor = (a, b) if isinstance(a, Signal) else (b, a)
    z = as_signal(call, z)
    if isinstance(factor, Name):  # a parameter that scales
        return [_scale(call, z, broadcast(call, factor), factor.of, None)]
    return [Sum(call.name, (z.number,), call.out, (as_constant(call, factor),))]


def _div(call: Call) -> list[Node]:
    a, b = _two(call)
    _aligned(call, a, b)
    if isinstance(b, Name | Signal):
        raise call.refuse("its divisor is a signal or a parameter")
    return [Sum(call.name, (as_signal(call, a).number,), call.out, (1.0 / as_constant(call, b),))]


def _neg(call: Call) -> list[Node]:
    return [Sum(call.name, (as_signal(call, call.args[0]).number,), call.out, (-1.0,))]


def _batch_norm(call: Call) -> list[Node]:
    """In eval mode: a fixed affine map, then a scale and a shift per channel that may move."""
    z, mean, var, w, b, training, _, eps = call.bound(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps", training=False, eps=1e-5
    )
    if training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise call.refuse("it uses the statistics of the batch; use eval mode and running statistics")
    z, (scale, see), (shift, see_shift) = as_signal(call, z), parameter(call, w, "scale"), parameter(call, b, "shift")
    dims = len(call.out)
    inverse = _per_channel((var.to(call.dtype) + eps).rsqrt(), dims)
    nodes: list[Node] = [Sum(call.name, (z.number,), call.out, (inverse,), -_per_channel(mean.to(call.dtype), dims) * inverse)]
    if scale is not None or shift is not None:

        def spread(w: Tensor, see: View = see) -> Tensor:
            return _per_channel(see(w), dims)

        nodes.append(_scale(call, Signal(-1, call.out), spread, scale, shift, partial(spread, see=see_shift)))
    return nodes


def _scale(
    call: Call, z: Signal, spread: View, scale: Parameter | None, shift: Parameter | None, spread_shift: View | None = None
) -> Product:
    """z * spread(scale) + spread_shift(shift)."""
    node = Product(call.name, (z.number,), call.out, lambda z, w: z * spread(w), scale, shift, spread_shift or spread)
    if z.shape != call.out:  # the signal is widened
        return node
    return replace(node, scales=True, derivatives=partial(of_scale, spread=spread, shape=call.out))


_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
RULES: dict[Any, Callable[[Call], list[Node]]] = {
    "linear": _linear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), lambda call: _convolution(call, *_CONV)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), lambda call: _convolution(call, *_TRANSPOSED)),
    "batch_norm": _batch_norm,
    "relu": _relu,
    "leaky_relu": _hinge,
    "rrelu": _rrelu,
    "prelu": _prelu,
    **dict.fromkeys(("threshold", "_threshold"), _threshold),
    "sigmoid": lambda call: _smooth(call, torch.sigmoid, curves.SIGMOID),
    "tanh": lambda call: _smooth(call, torch.tanh, curves.TANH),
    "softsign": lambda call: _smooth(call, F.softsign, curves.SOFTSIGN),
    **dict.fromkeys(("logsigmoid", "log_sigmoid"), lambda call: _smooth(call, F.logsigmoid, curves.LOG_SIGMOID)),
    "gelu": _gelu,
    "silu": lambda call: _smooth(call, F.silu, curves.SILU),
    "hardswish": lambda call: _smooth(call, F.hardswish, curves.HARDSWISH),
    "softplus": _softplus,
    "elu": lambda call: _elu(call, call.bound("input", "alpha", alpha=1.0)[1]),
    "selu": lambda call: _elu(call, 1.6732632423543772, 1.0507009873554805),
    "celu": _celu,
    "relu6": lambda call: _clamp(call, 0.0, 6.0),
    "hardtanh": _hardtanh,
    "hardsigmoid": lambda call: _clamp(call, 0.0, 1.0, 1 / 6, 0.5),
    **dict.fromkeys(("clamp", "clip"), _clip),
    "clamp_min": lambda call: _clamp(call, call.bound("input", "min")[1], None),
    "clamp_max": lambda call: _clamp(call, None, call.bound("input", "max")[1]),
    **dict.fromkeys(("abs", "absolute"), _abs),
    "maximum": lambda call: _larger(call, 1.0),
    "minimum": lambda call: _larger(call, -1.0),
    "max": lambda call: _extreme(call, 1.0),
    "min": lambda call: _extreme(call, -1.0),
    "amax": lambda call: _along(call, 1.0),
    "amin": lambda call: _along(call, -1.0),
    "add": lambda call: _add(call, 1.0),
    **dict.fromkeys(("sub", "subtract"), lambda call: _add(call, -1.0)),
    **dict.fromkeys(("rsub",), lambda call: _add(call, -1.0, turned=True)),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    "where": _where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "ravel"), _reshape),
    **dict.fromkeys(("view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _pooled),
    **dict.fromkeys(("mean", "sum"), _mean),
    **dict.fromkeys(("tril", "triu"), _triangle),
    "pad": _pad,
    "interpolate": _interpolate,
    **dict.fromkeys(("cat", "concat", "concatenate"), lambda call: _cat(call, torch.cat)),
    "stack": lambda call: _cat(call, torch.stack),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _max_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), _max_pool),
}  # fmt: skip
"""Operation -> its nodes.  A name stands for the method of torch.Tensor and the function of torch and of its `functional`."""
