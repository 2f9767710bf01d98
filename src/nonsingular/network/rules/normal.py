"""normal.py - softmax inside a network, layer and group normalisation, attention: compositions of curves and products of signals.

softmax(x)_i = 1 / (1 + sum over j != i of exp(x_j - x_i)):  of monotone curves alone, so its interval is exact
normalised:    c = z - mean(z),  y = c (mean(c^2) + eps)^(-1/2).  c_i = - sum over j != i of c_j, so (n - 1) sum c_j^2 >= n c_i^2
               by Cauchy-Schwarz, and |y_i| <= sqrt(n - 1); without the mean: |y_i| <= sqrt(n)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network import curves
from nonsingular.network.calls import Call, Rules, Signal, View, as_constant, as_signal, entire, parameter
from nonsingular.network.derivatives import of_linear
from nonsingular.network.nodes import Moment, Node, Product, Sum
from nonsingular.network.rules.affine import per_channel, scaling
from nonsingular.network.rules.steps import Steps

WIDE = 512
"""Elements from which on a mean is taken off as it is, not by a matrix that knows how often it counts each element."""


def soft(steps: Steps, z: Signal, dim: int, keep: Tensor | None = None, log: bool = False, alone: bool = True) -> Signal:
    """The softmax of z along its own dimension dim, or its logarithm.

    keep: 1 for elements that take part, 0 for those whose logit is minus infinity; it broadcasts to (1, *shape).
    alone: z is there before it starts, so that its rounding is known.
    """
    shape, n = z.shape, z.shape[dim]
    last = dim == len(shape) - 1
    moved = (*shape[:dim], *shape[dim + 1 :], n)
    z = z if last else steps.map(z, moved, lambda t: t.movedim(dim + 1, -1), True)
    if n == 1:
        return steps.reshape(steps.affine(z, 0.0, 0.0 if log else 1.0), shape)
    others = torch.tensor([[j for j in range(n) if j != i] for i in range(n)], device=steps.call.device)
    pairs = (*moved, n - 1)
    theirs = steps.map(z, pairs, lambda t: t[..., others])
    own = steps.map(z, pairs, lambda t: t[..., None].expand(*t.shape, n - 1))
    ratio = steps.curve(steps.put(Sum, (theirs, own), pairs, (1.0, -1.0)), torch.exp, curves.EXP)
    if keep is not None:
        keep = keep.expand(1, *moved)
        ratio = steps.affine(ratio, keep[..., others])
    total = steps.affine(steps.map(ratio, moved, lambda t: t.sum(-1), terms=n - 1), 1.0, 1.0)

    def of_total(curve: curves.Curve) -> curves.Curve:
        return curves.of_softmax(n, curve) if alone else replace(curve, rounds=None)

    if log:
        y = steps.affine(steps.curve(total, torch.log, of_total(curves.LOG)), -1.0)
    else:
        y = steps.curve(total, torch.reciprocal, of_total(curves.RECIPROCAL))
        y = y if keep is None else steps.affine(y, keep)
    return y if last else steps.map(y, shape, lambda t: t.movedim(-1, dim + 1), True)


def softmax_of_all(call: Call, z: Signal, log: bool) -> list[Node]:
    """Over the one dimension that has more than one element."""
    steps = Steps(call)
    flat = steps.reshape(z, (math.prod(z.shape),))
    steps.reshape(soft(steps, flat, 0, log=log), z.shape)
    return steps.nodes


def _softmax(call: Call, sign: float = 1.0, log: bool = False) -> list[Node]:
    z, dim, dtype = call.bound("input", "dim", "dtype")
    if "dtype" not in call.kwargs:
        dtype = next((a for a in call.args[2:] if isinstance(a, torch.dtype)), None)
    z, steps = as_signal(call, z), Steps(call)
    if not isinstance(dim, int) or dim % (len(z.shape) + 1) == 0:
        raise call.refuse("only a named dimension other than the batch is known")
    if dtype is not None and torch.finfo(dtype).eps > torch.finfo(call.dtype).eps:
        raise call.refuse(f"it rounds to {dtype}")
    z = z if sign == 1 else steps.affine(z, sign)
    soft(steps, z, dim % (len(z.shape) + 1) - 1, log=log)
    return steps.nodes


def normalised(steps: Steps, z: Signal, eps: float, centred: bool = True) -> Signal:
    """z over its last dimension, with mean 0 (if `centred`) and mean square 1 but for eps."""
    call, n = steps.call, z.shape[-1]
    if not eps >= 0:
        raise call.refuse(f"eps is {eps}")
    one, given = (*z.shape[:-1], 1), z
    first = len(steps.nodes)
    if centred and n <= WIDE:
        matrix = torch.eye(n, dtype=call.dtype, device=call.device) - 1 / n
        z = steps.put(Product, (z,), z.shape, F.linear, matrix, None, entire, len(z.shape) == 1, derivatives=of_linear)
    elif centred:
        z = steps.put(Sum, (z, steps.map(z, one, lambda t: t.mean(-1, keepdim=True), terms=n)), z.shape, (1.0, -1.0))
    mean = steps.map(steps.square(z), one, lambda t: t.mean(-1, keepdim=True), terms=n)
    if centred:  # mean(z^2) - mean(z)^2, or z a - mean(z) a with a the root, lose more than any bound of z - mean(z) says
        mean = steps.put(Moment, (mean, given), one, _first, terms=1, power=2)
    root = steps.curve(steps.affine(mean, 1.0, eps), torch.rsqrt, curves.RSQRT)
    if centred:
        z = steps.put(Moment, (z, given), z.shape, _first, terms=1, power=1)
        steps.nodes[first:] = [replace(node, inner=True) for node in steps.nodes[first:]]
    y = steps.times(z, root)
    most = math.sqrt(n - 1 if centred else n)
    return steps.within(y, -most, most) if eps > 0 else y  # defined everywhere


def _first(v: Tensor, z: Tensor) -> Tensor:
    return v


def _scaled(steps: Steps, spread: Sequence[View], scale: Any, shift: Any) -> list[Node]:
    """The last signal times a scale plus a shift, each seen through its own `spread`; both may be missing."""
    if scale is not None or shift is not None:
        steps.last([scaling(steps.call, steps.before, spread[0], scale, shift, spread[1])])
    return steps.nodes


def _layer_norm(call: Call, centred: bool = True) -> list[Node]:
    if centred:
        z, dims, w, b, eps = call.bound("input", "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    else:
        (z, dims, w, eps), b = call.bound("input", "normalized_shape", "weight", "eps"), None
        eps = torch.finfo(call.dtype).eps if eps is None else eps
    z, (scale, see), (shift, see_shift) = as_signal(call, z), parameter(call, w, "scale"), parameter(call, b, "shift")
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if not dims or z.shape[-len(dims) :] != dims:
        raise call.refuse("it works across the batch")
    steps = Steps(call)
    flat = steps.reshape(z, (*z.shape[: -len(dims)], math.prod(dims)))
    steps.reshape(normalised(steps, flat, float(eps), centred), z.shape)
    return _scaled(steps, (see, see_shift), scale, shift)


def _group_norm(call: Call) -> list[Node]:
    z, groups, w, b, eps = call.bound("input", "num_groups", "weight", "bias", "eps", eps=1e-5)
    return _of_channels(call, as_signal(call, z), groups, (w, b), eps)


def _instance_norm(call: Call) -> list[Node]:
    z, _, _, w, b, own, _, eps = call.bound(
        "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps",
        use_input_stats=True, eps=1e-5,
    )  # fmt: skip
    z = as_signal(call, z)
    if not own:
        raise call.refuse("it uses running statistics")
    if len(z.shape) < 2:
        raise call.refuse("it needs a batch dimension")
    return _of_channels(call, z, z.shape[0], (w, b), eps)


def _of_channels(call: Call, z: Signal, groups: int, affine: tuple[Any, Any], eps: float) -> list[Node]:
    """Groups of channels, each normalised over all of its elements; a scale and a shift for each channel."""
    (scale, see), (shift, see_shift) = parameter(call, affine[0], "scale"), parameter(call, affine[1], "shift")
    steps, dims = Steps(call), len(call.out)
    flat = steps.reshape(z, (groups, math.prod(z.shape) // groups))
    steps.reshape(normalised(steps, flat, float(eps)), z.shape)

    def spread(w: Tensor, see: View) -> Tensor:
        return per_channel(see(w), dims)

    return _scaled(steps, [partial(spread, see=see), partial(spread, see=see_shift)], scale, shift)


def _attention(call: Call) -> list[Node]:
    """softmax(scale q k^T + mask) v, with a constant mask."""
    q, k, v, mask, dropout, causal, scale, grouped = call.bound(
        "query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa", dropout_p=0.0
    )
    if dropout or grouped:
        raise call.refuse("dropout and groups of queries are not known")
    if not all(isinstance(t, Signal) for t in (q, k, v)):
        raise call.refuse("its queries, keys and values must be signals")
    dims = {len(t.shape) for t in (q, k, v)}
    if len(dims) > 1 or min(dims) < 2:
        raise call.refuse("it works across the batch")
    steps = Steps(call)
    turned = steps.map(k, (*k.shape[:-2], k.shape[-1], k.shape[-2]), lambda t: t.mT, True)
    scores = steps.affine(steps.matmul(q, turned), 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))
    keep, offset = _masked(call, mask, bool(causal), scores.shape)
    scores = scores if offset is None else steps.affine(scores, 1.0, offset)
    steps.matmul(soft(steps, scores, len(scores.shape) - 1, keep, alone=offset is None), v)  # or a mask is added to its products
    return steps.nodes


def _masked(call: Call, mask: Any, causal: bool, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """(1 for scores that take part and 0 for others, what is added to scores) of a mask of booleans or numbers."""
    keep = torch.ones(1, *shape, dtype=call.dtype, device=call.device)
    if causal:
        keep = keep.tril()
    if mask is None:
        return (keep if causal else None), None
    if not isinstance(mask, Tensor):
        raise call.refuse("its mask depends on values of the signal or of a parameter")
    given = torch.as_tensor(as_constant(call, mask))
    offset = None
    if mask.dtype != torch.bool:
        offset = torch.where(torch.isfinite(given), given, 0.0)
        if bool((torch.isnan(given) | (given == torch.inf)).any()):
            raise call.refuse("its mask is no number, or infinite")
        given = torch.isfinite(given).to(call.dtype)
    keep = keep * given
    if not bool(keep.any(-1).all()):
        raise call.refuse("its mask leaves nothing to some queries")
    return (None if bool((keep == 1).all()) else keep), offset


RULES: Rules = {
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **dict.fromkeys(("log_softmax", "_log_softmax"), lambda call: _softmax(call, log=True)),
    "softmin": lambda call: _softmax(call, -1.0),
    "layer_norm": _layer_norm,
    "rms_norm": lambda call: _layer_norm(call, centred=False),
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _attention,
}
