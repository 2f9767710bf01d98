"""operators.py - the operators that bounds have rules for, as a few kinds of nodes, and how torch.fx nodes become them.

Every operator is one of: a product of the signal with a parameter (plus a bias), a fixed affine sum, a fixed linear map with
non-negative coefficients, an activation, or a maximum; or a few of these in a row.  Bounds have one rule per kind; a new operator
is one line in a table below.  Anything else raises UnsupportedModel: nothing is skipped in silence.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular import curves
from nonsingular.curves import Curve
from nonsingular.derivatives import Derivatives, of_convolution, of_linear, of_scale
from nonsingular.errors import UnsupportedModel

Parameter = str | Tensor
"""A parameter's name in `named_parameters()`, or a constant tensor in its place."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on the signal.  inputs: numbers of earlier nodes.  shape: of its output, without the batch."""

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Product(Node):
    """y = apply(z, w) + spread(b), with `apply` linear in z and in w with coefficients 0 and 1: Linear, Conv, a scale."""

    apply: Callable[[Tensor, Tensor], Tensor]
    weight: Parameter | None
    bias: Parameter | None
    spread: Callable[[Tensor], Tensor]
    dense: bool = False
    """A Linear layer on a flat signal: every element of w is used once."""
    scales: bool = False
    """z * spread(w): every element of z is used once."""
    derivatives: Callable[[tuple[int, ...]], Derivatives | None] = lambda w_shape: None
    """From the weight's shape: the derivatives of `apply` written out, where they are known."""


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """y = sum_i factors_i * z_i + offset, elementwise with broadcasting, with constant factors and offset."""

    factors: tuple[Tensor | float, ...]
    offset: Tensor | float = 0.0

    def apply(self, *z: Tensor) -> Tensor:
        terms = [c * t for c, t in zip(self.factors, z, strict=True)]
        return sum(terms[1:], terms[0]) + self.offset


@dataclass(frozen=True, eq=False)
class Map(Node):
    """y = apply(*z): linear, no offset, no negative coefficient.  `moves_only`: it permutes or reshapes its one input."""

    apply: Callable[..., Tensor]
    moves_only: bool = False


@dataclass(frozen=True, eq=False)
class Activation(Node):
    """y = apply(z), elementwise.

    `hinge`: max(z, slope z) with 0 <= slope <= 1.  `smooth`: convex and concave in turn, as `curve` says.
    """

    apply: Callable[[Tensor], Tensor]
    form: Literal["hinge", "smooth"]
    slope: float = 0.0
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class Maximum(Node):
    """y = apply(z): each output is the largest of some elements of z."""

    apply: Callable[[Tensor], Tensor]


# --- from torch.fx: arguments are already values, except the signals, which are `Signal` ---------------------------------


@dataclass(frozen=True)
class Signal:
    """What a traced node passes on: the number of the node that computes it and its shape without the batch."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A traced operation: its arguments hold Signals, constants, and parameters by name; `out` is its output's shape."""

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[int, ...]

    def bound(self, *names: str, **defaults: Any) -> list[Any]:
        """Values of the arguments `names`, given by position or by keyword."""
        given = {**defaults, **dict(zip(names, self.args, strict=False)), **self.kwargs}
        return [given.get(n) for n in names]

    def refuse(self, why: str) -> UnsupportedModel:
        called = getattr(self.target, "__name__", self.target)
        return UnsupportedModel(f"no rule for {called} at node '{self.name}': {why}")


@dataclass(frozen=True)
class Name:
    """A parameter of the model, by name."""

    of: str


COMPUTED = object()
"""Stands for a value that is neither a constant nor a signal: computed from parameters or from shapes.  Only reshapes take it."""


def _signal(call: Call, value: Any) -> Signal:
    if not isinstance(value, Signal):
        raise call.refuse("its first argument is not the signal")
    return value


def _constant(call: Call, value: Any) -> Tensor | float:
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
        raise call.refuse("only numbers, buffers and signals are known here")
    return value


def _parameter(call: Call, value: Any, at: str) -> Parameter | None:
    if isinstance(value, Name):
        return value.of
    if value is None or isinstance(value, Tensor):
        return value
    raise call.refuse(f"its {at} is computed, not a parameter; merge it into a plain layer first")


def _linear(call: Call) -> list[Node]:
    z, w, b = call.bound("input", "weight", "bias")
    z, weight = _signal(call, z), _parameter(call, w, "weight")
    bias, dense = _parameter(call, b, "bias"), len(z.shape) == 1
    return [Product(call.name, (z.number,), call.out, F.linear, weight, bias, lambda b: b, dense, derivatives=of_linear)]


def _convolution(call: Call, *names: str) -> list[Node]:
    z, w, b, *rest = call.bound("input", "weight", "bias", *names)
    settings = {n: v for n, v in zip(names, rest, strict=True) if v is not None}
    z, weight, bias = _signal(call, z), _parameter(call, w, "weight"), _parameter(call, b, "bias")
    if len(z.shape) != len(call.out) or len(z.shape) < 2:
        raise call.refuse("it needs a batch dimension")

    def apply(z: Tensor, w: Tensor) -> Tensor:
        return call.target(z, w, None, **settings)

    node = Product(call.name, (z.number,), call.out, apply, weight, bias, partial(_per_channel, dims=len(call.out)))
    if call.target is torch.conv2d:
        node = replace(node, derivatives=partial(of_convolution, z_shape=z.shape, **settings))
    return [node]


def _per_channel(b: Tensor, dims: int) -> Tensor:
    return b.reshape(-1, *[1] * (dims - 1))


def _map(call: Call) -> list[Node]:
    """The operation itself, with its constants kept."""
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    rest, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}
    if any(isinstance(v, Signal | Name) or v is COMPUTED for v in _flattened((*rest, *kwargs.values()))):
        raise call.refuse("an argument besides the first is a signal, a parameter or computed")

    def apply(z: Tensor) -> Tensor:
        return getattr(z, call.target)(*rest, **kwargs) if isinstance(call.target, str) else call.target(z, *rest, **kwargs)

    return [Map(call.name, (z.number,), call.out, apply, call.target in _PERMUTES)]


def _flattened(values: Sequence[Any]) -> list[Any]:
    return [w for v in values for w in (_flattened(cast("Sequence[Any]", v)) if isinstance(v, list | tuple) else [v])]


def _reshape(call: Call) -> list[Node]:
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))

    def apply(z: Tensor) -> Tensor:
        return z.reshape(len(z), *call.out)  # the batch stays first, so each example's elements stay in order

    return [Map(call.name, (z.number,), call.out, apply, True)]


def _mean(call: Call) -> list[Node]:
    z, dims, *_ = call.bound("input", "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(z, Signal) or not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    return _map(call)


def _interpolate(call: Call) -> list[Node]:
    mode = call.kwargs.get("mode", call.args[3] if len(call.args) > 3 else "nearest")
    if mode not in ("nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear"):
        raise call.refuse(f"mode '{mode}' has negative coefficients, or is not known")
    return _map(call)


def _slice(call: Call) -> list[Node]:
    z, at = call.args
    at = at if isinstance(at, tuple) else (at,)
    parts = [v for i in at for v in ((i.start, i.stop, i.step) if isinstance(i, slice) else (0 if i is Ellipsis else i,))]
    if not all(v is None or isinstance(v, int) for v in parts):
        raise call.refuse("only numbers and slices are known")
    if at[0] not in (slice(None), Ellipsis) or sum(i not in (None, Ellipsis) for i in at[1:]) > len(_signal(call, z).shape):
        raise call.refuse("it takes a part of the batch")
    return _map(call)


def _amax(call: Call) -> list[Node]:
    z, dims, keep = call.bound("input", "dim", "keepdim", keepdim=False)
    z, dims = _signal(call, z), (dims,) if isinstance(dims, int) else dims
    if not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    return [Maximum(call.name, (z.number,), call.out, lambda z: z.amax(dims, keepdim=keep))]


def _avg_pool(call: Call) -> list[Node]:
    *_, divisor = call.bound(
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override", divisor_override=None
    )
    if divisor is not None and divisor <= 0:
        raise call.refuse(f"the divisor is {divisor}")
    return _map(call)


def _cat(call: Call, join: Callable[..., Tensor]) -> list[Node]:
    parts, dim = call.bound("tensors", "dim", dim=0)
    if not isinstance(parts, Sequence) or not all(isinstance(p, Signal) for p in parts):
        raise call.refuse("only signals can be joined")
    if dim % (len(call.out) + 1) == 0:
        raise call.refuse("it joins along the batch")
    return [Map(call.name, tuple(p.number for p in parts), call.out, lambda *z: join(z, dim))]


def _pad(call: Call) -> list[Node]:
    _, pad, mode, value = call.bound("input", "pad", "mode", "value", mode="constant", value=None)
    if mode == "constant" and (value or min(pad) < 0):
        raise call.refuse("only padding with 0 is known")
    if len(pad) // 2 > len(call.out):
        raise call.refuse("it pads the batch")
    return _map(call)


def _max_pool(call: Call) -> list[Node]:
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    if call.kwargs.get("return_indices") or len(z.shape) != len(call.out):
        raise call.refuse("indices and inputs without a batch are not known")
    kwargs = {k: v for k, v in call.kwargs.items() if k != "input"}
    return [Maximum(call.name, (z.number,), call.out, lambda z: call.target(z, *call.args[1:], **kwargs))]


def _same(z: Tensor) -> Tensor:
    return z


def _identity(call: Call) -> list[Node]:
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return [Map(call.name, (z.number,), call.out, _same, True)]


def _dropout(call: Call) -> list[Node]:
    z, p, training = call.bound("input", "p", "training", training=True)
    if training and p:
        raise call.refuse("dropout is on; use eval mode")
    return [Map(call.name, (_signal(call, z).number,), call.out, _same, True)]


def _hinge(call: Call) -> list[Node]:
    z, slope = call.bound("input", "negative_slope", negative_slope=0.01)
    if not isinstance(slope, int | float) or not 0 <= slope <= 1:
        raise call.refuse(f"the negative slope is {slope}, not within 0..1")
    return [Activation(call.name, (_signal(call, z).number,), call.out, lambda z: F.leaky_relu(z, slope), "hinge", float(slope))]


def _relu(call: Call) -> list[Node]:
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return [Activation(call.name, (z.number,), call.out, torch.relu, "hinge")]


def _smooth(call: Call, apply: Callable[[Tensor], Tensor], curve: Curve) -> list[Node]:
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
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
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
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
    values = [*call.args, *(v for k, v in call.kwargs.items() if k in ("input", "other"))]
    if len(values) != 2 or set(call.kwargs) - {"input", "other"}:
        raise call.refuse("only two plain operands are known")
    return values[0], values[1]


def _add(call: Call, sign: float) -> list[Node]:
    a, b = _two(call)
    if isinstance(a, Signal) and isinstance(b, Signal):
        return [Sum(call.name, (a.number, b.number), call.out, (1.0, sign))]
    if sign > 0 and (isinstance(a, Name) or isinstance(b, Name)):  # a parameter that is added: a bias
        z, name = (b, a) if isinstance(a, Name) else (a, b)
        z = _signal(call, z)
        if z.shape != call.out:
            raise call.refuse(f"adding '{name.of}' changes the shape from {z.shape} to {call.out}")
        return [Product(call.name, (z.number,), call.out, lambda z, w: z, None, name.of, lambda b: b)]
    if isinstance(a, Signal):
        return [Sum(call.name, (a.number,), call.out, (1.0,), sign * _constant(call, b))]
    return [Sum(call.name, (_signal(call, b).number,), call.out, (sign,), _constant(call, a))]


def _abs(call: Call) -> list[Node]:
    """|z| = 2 relu(z) - z."""
    z = _signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    hinge = Activation(call.name, (z.number,), call.out, torch.relu, "hinge")
    return [hinge, Sum(call.name, (-1, z.number), call.out, (2.0, -1.0))]


def _larger(call: Call, sign: float) -> list[Node]:
    """max(a, b) = a + relu(b - a) for sign 1, min(a, b) = a - relu(a - b) for sign -1."""
    a, b = (_signal(call, v) for v in _two(call))
    return [
        Sum(call.name, (b.number, a.number), call.out, (sign, -sign)),
        Activation(call.name, (-1,), call.out, torch.relu, "hinge"),
        Sum(call.name, (a.number, -1), call.out, (1.0, sign)),
    ]


def _mul(call: Call) -> list[Node]:
    a, b = _two(call)
    if isinstance(a, Signal) and isinstance(b, Signal):
        raise call.refuse("a product of two signals is not linear")
    z, factor = (a, b) if isinstance(a, Signal) else (b, a)
    z = _signal(call, z)
    if isinstance(factor, Name):  # a parameter that scales
        return [_scale(call, z, lambda b: b, factor.of, None)]
    return [Sum(call.name, (z.number,), call.out, (_constant(call, factor),))]


def _div(call: Call) -> list[Node]:
    a, b = _two(call)
    return [Sum(call.name, (_signal(call, a).number,), call.out, (1.0 / _constant(call, b),))]


def _neg(call: Call) -> list[Node]:
    return [Sum(call.name, (_signal(call, call.args[0]).number,), call.out, (-1.0,))]


def _batch_norm(call: Call) -> list[Node]:
    z, mean, var, w, b, training, eps = call.bound(
        "input", "running_mean", "running_var", "weight", "bias", "training", "eps", training=False, eps=1e-5
    )
    # positional order of F.batch_norm has momentum before eps
    if len(call.args) > 6:
        eps = call.args[7] if len(call.args) > 7 else call.kwargs.get("eps", 1e-5)
    if training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise call.refuse("it uses the statistics of the batch; use eval mode and running statistics")
    return normalise(call, _signal(call, z), mean, var, _parameter(call, w, "scale"), _parameter(call, b, "shift"), eps)


def normalise(
    call: Call, z: Signal, mean: Tensor, var: Tensor, scale: Parameter | None, shift: Parameter | None, eps: float
) -> list[Node]:
    """BatchNorm in eval mode: a fixed affine map, then a scale and a shift per channel that may move."""
    dims = len(call.out)
    inverse = _per_channel((var + eps).rsqrt(), dims)
    nodes: list[Node] = [Sum(call.name, (z.number,), call.out, (inverse,), -_per_channel(mean, dims) * inverse)]
    if scale is not None or shift is not None:
        spread = partial(_per_channel, dims=dims)
        nodes.append(_scale(call, Signal(-1, call.out), spread, scale, shift))
    return nodes


def _scale(
    call: Call, z: Signal, spread: Callable[[Tensor], Tensor], scale: Parameter | None, shift: Parameter | None
) -> Product:
    """z * spread(scale) + spread(shift)."""
    node = Product(call.name, (z.number,), call.out, lambda z, w: z * spread(w), scale, shift, spread)
    if z.shape != call.out:  # the signal is widened
        return node
    return replace(node, scales=True, derivatives=partial(of_scale, spread=spread, shape=call.out))


def batch_norm_module(call: Call, module: nn.Module) -> list[Node]:
    """The nodes of a BatchNorm module in eval mode.  call.args: the signal, then scale and shift."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if module.training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise call.refuse("it uses the statistics of the batch; use eval mode and running statistics")
    z, scale, shift = call.args
    eps: Any = module.eps
    return normalise(call, _signal(call, z), mean, var, _parameter(call, scale, "scale"), _parameter(call, shift, "shift"), eps)


_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
_PERMUTES = {
    "permute", torch.permute, "transpose", torch.transpose, "movedim", torch.movedim,
    F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle,
}  # fmt: skip

RULES: dict[Any, Callable[[Call], list[Node]]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), lambda call: _convolution(call, *_CONV)),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), lambda call: _convolution(call, *_TRANSPOSED)
    ),
    F.batch_norm: _batch_norm,
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_", torch.relu_), _relu),
    F.leaky_relu: _hinge,
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), lambda call: _smooth(call, torch.sigmoid, curves.SIGMOID)),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), lambda call: _smooth(call, torch.tanh, curves.TANH)),
    F.softsign: lambda call: _smooth(call, F.softsign, curves.SOFTSIGN),
    F.logsigmoid: lambda call: _smooth(call, F.logsigmoid, curves.LOG_SIGMOID),
    F.gelu: _gelu,
    F.silu: lambda call: _smooth(call, F.silu, curves.SILU),
    F.hardswish: lambda call: _smooth(call, F.hardswish, curves.HARDSWISH),
    F.softplus: _softplus,
    F.elu: lambda call: _elu(call, call.bound("input", "alpha", alpha=1.0)[1]),
    F.selu: lambda call: _elu(call, 1.6732632423543772, 1.0507009873554805),
    F.celu: _celu,
    F.relu6: lambda call: _clamp(call, 0.0, 6.0),
    F.hardtanh: _hardtanh,
    F.hardsigmoid: lambda call: _clamp(call, 0.0, 1.0, 1 / 6, 0.5),
    **dict.fromkeys((torch.clamp, "clamp", "clamp_", torch.clip, "clip", "clip_"), _clip),
    **dict.fromkeys((abs, operator.abs, torch.abs, "abs"), _abs),
    **dict.fromkeys((torch.maximum, "maximum"), lambda call: _larger(call, 1.0)),
    **dict.fromkeys((torch.minimum, "minimum"), lambda call: _larger(call, -1.0)),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), lambda call: _add(call, 1.0)),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), lambda call: _add(call, -1.0)),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), _div),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), _neg),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape), _reshape),
    **dict.fromkeys(("squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "unflatten", torch.unflatten), _reshape),
    **dict.fromkeys(_PERMUTES, _map),
    **dict.fromkeys(("contiguous", "clone", torch.clone), _identity),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.avg_pool1d), _avg_pool),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d), _map),
    **dict.fromkeys(("mean", torch.mean, "sum", torch.sum), _mean),
    F.pad: _pad,
    F.interpolate: _interpolate,
    operator.getitem: _slice,
    **dict.fromkeys((torch.cat, torch.concat), lambda call: _cat(call, torch.cat)),
    torch.stack: lambda call: _cat(call, torch.stack),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), _max_pool),
    **dict.fromkeys((F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d), _max_pool),
    **dict.fromkeys(("amax", torch.amax), _amax),
}  # fmt: skip
"""Operation -> its nodes."""
