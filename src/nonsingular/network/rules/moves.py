"""moves.py - operations that move, repeat, average or choose among elements: shapes, joining, padding, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network.calls import (
    COMPUTED,
    Call,
    Name,
    Rules,
    Signal,
    View,
    as_signal,
    entire,
    rows_alike,
)
from nonsingular.network.derivatives import Kernel, of_windows
from nonsingular.network.nodes import Map, Node, Product, Sum


def _map(call: Call, terms: int | None = None) -> list[Node]:
    """The operation itself, with its constants kept.  terms: as of Map."""
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    rest, kwargs = call.args[1:], {k: v for k, v in call.kwargs.items() if k != "input"}
    if any(isinstance(v, Signal | Name) or v is COMPUTED for v in _flattened((*rest, *kwargs.values()))):
        raise call.refuse("an argument besides the first is a signal, a parameter or computed")

    def apply(z: Tensor) -> Tensor:
        return call.target(z, *rest, **kwargs)

    return [Map(call.name, (z.number,), call.out, apply, terms=terms)]


def _flattened(values: Sequence[Any]) -> list[Any]:
    return [w for v in values for w in (_flattened(cast("Sequence[Any]", v)) if isinstance(v, list | tuple) else [v])]


def _reshape(call: Call) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))

    def apply(z: Tensor) -> Tensor:
        return z.reshape(len(z), *call.out)  # the batch stays first, so each example's elements stay in order

    if torch.Size(z.shape).numel() != torch.Size(call.out).numel():
        raise call.refuse("it does not keep the batch as first dimension")
    return [Map(call.name, (z.number,), call.out, apply, True, terms=1)]


def _mean(call: Call) -> list[Node]:
    z, dims, *_ = call.bound("input", "dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(z, Signal) or not dims or any(d % (len(z.shape) + 1) == 0 for d in dims):
        raise call.refuse("only named dimensions other than the batch are known")
    return _map(call, max(1, math.prod(z.shape[d - 1 if d > 0 else d] for d in dims)))


def _triangle(call: Call) -> list[Node]:
    if len(call.out) < 2:
        raise call.refuse("it works across the batch")
    return _map(call, 1)


def _interpolate(call: Call) -> list[Node]:
    mode = call.kwargs.get("mode", call.args[3] if len(call.args) > 3 else "nearest")
    if mode not in ("nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear"):
        raise call.refuse(f"mode '{mode}' has negative coefficients, or is not known")
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return _map(call, 1 if mode.startswith("nearest") else _windows(z.shape, call.out) if mode == "area" else None)


def _windows(shape: tuple[int, ...], out: tuple[int, ...]) -> int:
    """How many elements an output of adaptive pooling covers at most: from floor(i n / m) to ceil((i + 1) n / m)."""
    return math.prod(-(-n // m) + 1 if m != n else 1 for n, m in zip(shape[1:], out[1:], strict=True))


def _avg_pool(call: Call) -> list[Node]:
    _, kernel, stride, padding, ceil, whole, divisor = call.bound(
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
        stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
    )  # fmt: skip
    if divisor is not None and divisor <= 0:
        raise call.refuse(f"the divisor is {divisor}")
    dims = len(call.out) - 1
    sizes = [kernel] * dims if isinstance(kernel, int) else list(kernel) * (dims if len(kernel) == 1 else 1)
    (node,) = _pooled(call, math.prod(sizes))
    if call.target is not torch.nn.functional.avg_pool2d or ceil or (padding not in (0, (0, 0), [0, 0]) and not whole):
        return [node]
    pairs = [(v, v) if isinstance(v, int) else (int(v[0]), int(v[-1])) for v in (kernel, stride or kernel, padding)]
    walks = Kernel(pairs[0], pairs[1], pairs[2], (1, 1))
    share = 1 / (divisor or math.prod(walks.size))

    def back(A: Tensor) -> Tensor:
        return of_windows([A * share] * math.prod(walks.size), walks)

    return [replace(cast(Map, node), kernel=walks, back=back)]


def _adaptive(call: Call) -> list[Node]:
    z = as_signal(call, call.args[0] if call.args else call.kwargs.get("input"))
    return _pooled(call, _windows(z.shape, call.out) if len(z.shape) == len(call.out) else None)


def _pooled(call: Call, terms: int | None) -> list[Node]:
    if len(call.out) < 2:
        raise call.refuse("it needs a batch dimension")
    return _map(call, terms)


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

    nodes: list[Node] = [Map(call.name, numbers, call.out, apply, terms=1)]
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
    nodes: list[Node] = [Map(call.name, (z.number,), call.out, partial(F.pad, pad=pad, mode=mode), terms=1)]
    if mode == "constant" and value:
        frame = F.pad(torch.zeros(1, *z.shape, dtype=call.dtype), pad, value=float(value))
        nodes.append(Sum(call.name, (-1,), call.out, (1.0,), frame.to(call.device)))
    return nodes


def _dropout(call: Call) -> list[Node]:
    z, p, training = call.bound("input", "p", "training", training=True)
    if training and p:
        raise call.refuse("dropout is on; use eval mode")
    return [Map(call.name, (as_signal(call, z).number,), call.out, entire, True, terms=1)]


RULES: Rules = {
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "ravel"), _reshape),
    **dict.fromkeys(("view_as", "reshape_as"), _reshape),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive),
    **dict.fromkeys(("mean", "sum"), _mean),
    **dict.fromkeys(("tril", "triu"), _triangle),
    "pad": _pad,
    "interpolate": _interpolate,
    **dict.fromkeys(("cat", "concat", "concatenate"), lambda call: _cat(call, torch.cat)),
    "stack": lambda call: _cat(call, torch.stack),
}
