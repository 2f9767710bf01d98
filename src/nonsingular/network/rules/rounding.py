"""rounding.py - rounding to whole numbers, and to steps: quantised activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network.calls import Call, Rules, Signal, as_constant, as_signal
from nonsingular.network.nodes import Node, Rounded, Sum
from nonsingular.network.rounded import fused, integer_product, rounded
from nonsingular.network.rules.activations import clamp
from nonsingular.network.rules.affine import RULES as AFFINE


def _round(call: Call) -> list[Node]:
    z, decimals = call.bound("input", "decimals", decimals=0)
    if decimals:
        raise call.refuse(f"it keeps {decimals} decimals; only rounding to whole numbers is known")
    return [Rounded(call.name, (as_signal(call, z).number,), call.out, rounded, "steps")]


def _by_tensor(call: Call) -> list[Node]:
    z, scale, zero, low, high = call.bound("input", "scale", "zero_point", "quant_min", "quant_max")
    return _quantised(call, as_signal(call, z), _number(call, scale, "scale"), _number(call, zero, "zero point"), low, high)


def _by_channel(call: Call) -> list[Node]:
    z, scale, zero, dim, low, high = call.bound("input", "scale", "zero_point", "axis", "quant_min", "quant_max")
    z = as_signal(call, z)
    dim %= len(z.shape) + 1
    if dim == 0 or not isinstance(scale, Tensor) or not isinstance(zero, Tensor):
        raise call.refuse("only constant scales and zero points, along a dimension other than the batch, are known")
    spread = [-1 if d == dim - 1 else 1 for d in range(len(z.shape))]
    return _quantised(call, z, scale.to(call.dtype).view(spread), zero.to(call.dtype).view(spread), low, high)


def _number(call: Call, value: Any, what: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if not isinstance(value, int | float):
        raise call.refuse(f"its {what} is not a constant number")
    return float(value)


def _quantised(call: Call, z: Signal, scale: Any, zero: Any, low: int, high: int) -> list[Node]:
    """s (round(min(max(z / s + o, low), high)) - o) for a whole number o: limits are whole, so rounding may come after them."""
    if not bool((torch.as_tensor(scale) > 0).all()):
        raise call.refuse("its scale is not above 0")
    return [
        Sum(call.name, (z.number,), call.out, (1.0 / scale,), zero),
        *clamp(call, Signal(-1, call.out), low, high),
        Rounded(call.name, (-1,), call.out, rounded, "steps"),
        Sum(call.name, (-1,), call.out, (scale,), -zero * scale),
    ]


def _fused(call: Call) -> list[Node]:
    z, factor, offset = call.bound("z", "factor", "offset")
    terms = [(v, c) for v, c in ((z, as_constant(call, factor)), (offset, 1.0)) if isinstance(v, Signal)]
    rest = [as_constant(call, v) * c for v, c in ((z, factor), (offset, 1.0)) if not isinstance(v, Signal)]
    return [Sum(call.name, tuple(v.number for v, _ in terms), call.out, tuple(c for _, c in terms), sum(rest))]


def _integer_product(call: Call) -> list[Node]:
    """(z W^T) / s + b, the weight W in its own units."""
    z, weight, _, step, bias, walk = call.bound("z", "weight", "words", "step", "bias", "walk")
    if not isinstance(step, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        raise call.refuse("its steps and its bias are not constant")
    spread = [-1, *[1] * (0 if walk is None else len(call.out) - 1)]
    target = F.linear if walk is None else (torch.conv1d, torch.conv2d, torch.conv3d)[len(call.out) - 2]
    args = (z, weight, None, *(walk or ()))
    product = replace(call, target=target, args=args, kwargs={})
    offset = 0.0 if bias is None else bias.to(call.dtype).view(spread)
    return [
        *AFFINE[target.__name__](product),
        Sum(call.name, (-1,), call.out, (1.0 / step.to(call.dtype).view(spread),), offset),
    ]


RULES: Rules = {
    rounded: _round,
    fused: _fused,
    integer_product: _integer_product,
    "round": _round,
    "fake_quantize_per_tensor_affine": _by_tensor,
    "fake_quantize_per_channel_affine": _by_channel,
}
