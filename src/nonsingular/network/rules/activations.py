"""activations.py - elementwise functions: hinges, what is made of hinges, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network import curves
from nonsingular.network.calls import (
    Call,
    Rules,
    Signal,
    as_signal,
    parameter,
)
from nonsingular.network.curves import Curve
from nonsingular.network.nodes import Activation, NegativePart, Node, Sum
from nonsingular.network.rules.affine import per_channel, scaling


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
        return per_channel(see(w), max(dims, 1))

    return [
        *_halves(call, z),
        scaling(call, Signal(-1, call.out), spread, slope, None),
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
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return clamp(call, z, low, high, factor, offset)


def clamp(call: Call, z: Signal, low: Any, high: Any, factor: float = 1.0, offset: float = 0.0) -> list[Node]:
    """min(max(t, low), high) of t = factor z + offset, in hinges: with r = relu(t - low) it is high - relu(high - low - r).

    Branching on hinges and mixed-integer programs then know it.
    """
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


def _abs(call: Call) -> list[Node]:
    """|z| = 2 relu(z) - z."""
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    hinge = Activation(call.name, (z.number,), call.out, torch.relu, "hinge")
    return [hinge, Sum(call.name, (-1, z.number), call.out, (2.0, -1.0))]


RULES: Rules = {
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
}
