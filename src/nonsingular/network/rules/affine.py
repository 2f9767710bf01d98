"""affine.py - layers whose parameters move: Linear, convolutions, scales and shifts for each channel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network.calls import (
    Call,
    Rules,
    Signal,
    View,
    as_signal,
    entire,
    parameter,
)
from nonsingular.network.derivatives import Kernel, of_convolution, of_linear, of_scale
from nonsingular.network.nodes import Node, Parameter, Product, Sum
from nonsingular.network.rounded import linear_among, toward
from nonsingular.network.rules.steps import Steps


def _linear(call: Call) -> list[Node]:
    z, w, b = call.bound("input", "weight", "bias")
    z, (weight, see), (bias, spread) = as_signal(call, z), parameter(call, w, "weight"), parameter(call, b, "bias")
    return [linear(call, z, weight, see, bias, spread)]


def _linear_among(call: Call) -> list[Node]:
    """F.linear, added up together with `others` more terms."""
    z, w, b, others = call.bound("input", "weight", "bias", "others")
    z, (weight, see), (bias, spread) = as_signal(call, z), parameter(call, w, "weight"), parameter(call, b, "bias")
    return [replace(linear(call, z, weight, see, bias, spread), among=others)]


def _toward(call: Call) -> list[Node]:
    """n + z (h - n), or (1 - z) n + z h: a product and two sums round each term up to 3 times, and |z h| <= |n| + |z (h - n)|."""
    n, z, h = (None if t is None else as_signal(call, t) for t in call.bound("n", "z", "h"))
    assert n is not None and z is not None
    steps = Steps(call)
    away = n if h is None else steps.put(Sum, (h, n), n.shape, (1.0, -1.0))
    steps.put(Sum, (n, steps.times(z, away)), n.shape, (1.0, -1.0 if h is None else 1.0), among=8)
    return steps.nodes


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
        return per_channel(own(b), dims=len(call.out))

    node = Product(call.name, (z.number,), call.out, apply, weight, bias, spread)
    if call.target is torch.conv2d and see is entire:
        node = replace(
            node, derivatives=partial(of_convolution, z_shape=z.shape, **settings), kernel=_kernel(tuple(w.shape[-2:]), settings)
        )
    return [node]


def _kernel(size: tuple[int, ...], settings: dict[str, Any]) -> Kernel | None:
    """How a convolution in two dimensions walks; None where its padding is a name."""
    if isinstance(settings.get("padding"), str):
        return None
    pairs = [settings.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    stride, padding, dilation = ((v, v) if isinstance(v, int) else (int(v[0]), int(v[-1])) for v in pairs)
    return Kernel((size[0], size[1]), stride, padding, dilation, settings.get("groups", 1))


def per_channel(b: Tensor, dims: int) -> Tensor:
    return b.reshape(-1, *[1] * (dims - 1))


def _batch_norm(call: Call) -> list[Node]:
    """In eval mode: a fixed affine map, then a scale and a shift per channel that may move."""
    z, mean, var, w, b, training, _, eps = call.bound(
        "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps", training=False, eps=1e-5
    )
    if training or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        raise call.refuse("it uses the statistics of the batch; use eval mode and running statistics")
    z, (scale, see), (shift, see_shift) = as_signal(call, z), parameter(call, w, "scale"), parameter(call, b, "shift")
    dims = len(call.out)
    inverse = per_channel((var.to(call.dtype) + eps).rsqrt(), dims)
    nodes: list[Node] = [Sum(call.name, (z.number,), call.out, (inverse,), -per_channel(mean.to(call.dtype), dims) * inverse)]
    if scale is not None or shift is not None:

        def spread(w: Tensor, see: View = see) -> Tensor:
            return per_channel(see(w), dims)

        nodes.append(scaling(call, Signal(-1, call.out), spread, scale, shift, partial(spread, see=see_shift)))
    return nodes


def scaling(
    call: Call, z: Signal, spread: View, scale: Parameter | None, shift: Parameter | None, spread_shift: View | None = None
) -> Product:
    """z * spread(scale) + spread_shift(shift)."""
    node = Product(call.name, (z.number,), call.out, lambda z, w: z * spread(w), scale, shift, spread_shift or spread)
    if z.shape != call.out:  # the signal is widened
        return node
    return replace(node, scales=True, see=spread, derivatives=partial(of_scale, spread=spread, shape=call.out))


_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
RULES: Rules = {
    "linear": _linear,
    linear_among: _linear_among,
    toward: _toward,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), lambda call: _convolution(call, *_CONV)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), lambda call: _convolution(call, *_TRANSPOSED)),
    "batch_norm": _batch_norm,
}
