"""functions.py - what ONNX operators do that no single function of torch does, as functions that a written graph calls.

Tracing keeps each of them as one call, so that attacks run it and certificates refuse it by its name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

_F = TypeVar("_F", bound=Callable[..., Any])


def whole(f: _F) -> _F:
    """A function that torch.fx does not look into."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = next((v for v in (*args, *kwargs.values()) if isinstance(v, fx.Proxy)), None)
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", call, args, kwargs)
        return f(*args, **kwargs)

    return cast(_F, call)


@whole
def cast_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds towards 0: `dtype` is of whole numbers, or of truth values."""
    return x.to(dtype)


@whole
def cast_as(x: Tensor, like: Tensor) -> Tensor:
    """To the kind of numbers of `like`: whole numbers and truth values become real numbers of the run's precision."""
    return x.to(like.dtype)


@whole
def take(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """Gather: the entries `at` (any shape; negative ones count from the end) along `dim`."""
    at = torch.where(at < 0, at + x.shape[dim], at)
    return x.index_select(dim, at.reshape(-1)).reshape((*x.shape[:dim], *at.shape, *x.shape[dim + 1 :]))


@whole
def take_along(x: Tensor, at: Tensor, dim: int) -> Tensor:
    """GatherElements."""
    return x.gather(dim, torch.where(at < 0, at + x.shape[dim], at))


@whole
def take_points(x: Tensor, at: Tensor, batch_dims: int) -> Tensor:
    """GatherND: the last dimension of `at` is an index into the dimensions of `x` that follow the batch dimensions."""
    if batch_dims == 0:
        return x[tuple(at.unbind(-1))]
    return torch.stack([take_points(a, b, batch_dims - 1) for a, b in zip(x, at, strict=True)])


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@whole
def put_along(x: Tensor, at: Tensor, new: Tensor, dim: int, how: str) -> Tensor:
    """ScatterElements."""
    at = torch.where(at < 0, at + x.shape[dim], at)
    return x.scatter(dim, at, new) if how == "none" else x.scatter_reduce(dim, at, new, _SCATTER[how], include_self=True)


@whole
def put_points(x: Tensor, at: Tensor, new: Tensor, how: str) -> Tensor:
    """ScatterND."""
    depth = at.shape[-1]
    rows = torch.zeros_like(at[..., 0])  # in x with its first `depth` dimensions flat
    for i, size in enumerate(x.shape[:depth]):
        rows = rows * size + torch.where(at[..., i] < 0, at[..., i] + size, at[..., i])
    flat, new = x.reshape(math.prod(x.shape[:depth]), -1), new.reshape(rows.numel(), -1)
    rows = rows.reshape(-1, 1).expand_as(new)
    flat = flat.scatter(0, rows, new) if how == "none" else flat.scatter_reduce(0, rows, new, _SCATTER[how], include_self=True)
    return flat.reshape(x.shape)


@whole
def steps(like: Tensor, start: float, stop: float, step: float) -> Tensor:
    """Range, on the device of `like`, and of its precision where it is of real numbers."""
    real = any(isinstance(v, float) for v in (start, stop, step))
    return torch.arange(start, stop, step, device=like.device, dtype=like.dtype if real else torch.int64)


@whole
def softmax_over_rest(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax before opset 13: over all dimensions from `axis` on at once."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


@whole
def hardmax(x: Tensor, dim: int) -> Tensor:
    """1 at the first largest element, 0 elsewhere."""
    return F.one_hot(x.argmax(dim), x.shape[dim]).movedim(-1, dim).to(x.dtype)


@whole
def one_hot(at: Tensor, depth: int, off: float, on: float, dim: int, like: Tensor) -> Tensor:
    """OneHot, of the kind of numbers of `like`: indices may be negative; those out of range give `off` everywhere."""
    at = at.long()
    at = torch.where(at < 0, at + depth, at)
    hot = at[..., None] == torch.arange(depth, device=at.device)
    return torch.where(hot, on, off).to(like.dtype).movedim(-1, dim)


@whole
def normalised(x: Tensor, p: int, dim: int) -> Tensor:
    """LpNormalization; 0 stays 0."""
    norm = torch.linalg.vector_norm(x, p, dim, True)
    return x / torch.where(norm == 0, 1.0, norm)


@whole
def local_response(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """LRN: x / (bias + alpha / size * sum of the squares of `size` channels around each) ** beta."""
    before = (size - 1) // 2
    squares = x.square().movedim(1, -1)
    squares = F.pad(squares, [before, size - 1 - before]).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * squares) ** beta


@whole
def cumulative(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Tensor:
    """CumSum."""
    z = x.flip(dim) if reverse else x
    sums = z.cumsum(dim)
    if exclusive:
        sums = sums - z
    return sums.flip(dim) if reverse else sums


# --- recurrent layers -------------------------------------------------------------------------------------------------------

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu, "Softsign": F.softsign, "Softplus": F.softplus,
    "HardSigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1), "Elu": F.elu, "LeakyRelu": lambda x: F.leaky_relu(x, 0.01),
}  # fmt: skip


def known_activation(name: str) -> bool:
    return name in _ACTIVATIONS


@dataclass(frozen=True)
class _Gates:
    """One direction of a recurrent layer, from one state to the next.

    R: (gates H, H).  bias: (gates H,).  peepholes: (3 H,), of an LSTM.
    flag: GRU's linear_before_reset (the reset gate comes after the product with R), LSTM's input_forget (the forget gate is
    1 - input).
    """

    R: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    activations: Sequence[Activation]
    flag: bool


@whole  # the inputs and attributes of the ONNX operators, each an argument of its own: torch.fx records them as such
def recurrent(
    kind: str,
    x: Tensor,
    W: Tensor,
    R: Tensor,
    B: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    P: Tensor | None,
    reverse: Sequence[bool],
    activations: Sequence[str],
    clip: float | None,
    flag: bool,
) -> tuple[Tensor, ...]:
    """RNN, GRU and LSTM.  x: (S, B, input).  W, R, B, h, c, P as ONNX has them, a direction in each row.

    flag: as in `_Gates`.
    Returns all states (S, directions, B, H), the last (directions, B, H), and for an LSTM its last cell.
    """
    n = len(activations) // len(reverse)
    found = [
        _direction(
            kind, F.linear(x.flip(0) if back else x, W[d], None if B is None else B[d].chunk(2)[0]),
            None if h is None else h[d], None if c is None else c[d],
            _Gates(
                R[d], None if B is None else B[d].chunk(2)[1], None if P is None else P[d],
                _limited(activations[n * d : n * (d + 1)], clip), flag,
            ),
        )
        for d, back in enumerate(reverse)
    ]  # fmt: skip
    states = torch.stack([y.flip(0) if back else y for (y, _, _), back in zip(found, reverse, strict=True)], 1)
    return (states, torch.stack([last for _, last, _ in found]), torch.stack([cell for _, _, cell in found]))[
        : 2 + (kind == "LSTM")
    ]


def _direction(kind: str, inputs: Tensor, h: Tensor | None, c: Tensor | None, gates: _Gates) -> tuple[Tensor, Tensor, Tensor]:
    """All states, the last one, and the last cell.  inputs: (S, B, gates H), what the inputs add to the gates."""
    h = inputs.new_zeros(inputs.shape[1], gates.R.shape[-1]) if h is None else h
    c = torch.zeros_like(h) if c is None else c
    step = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}[kind]
    states = list[Tensor]()
    for z in inputs:
        h, c = step(z, h, c, gates)
        states.append(h)
    return torch.stack(states), h, c


def _limited(names: Sequence[str], clip: float | None) -> list[Activation]:
    """The activations, with what the gates get clipped; onnxruntime does not clip the cell on its way out."""
    found = [_ACTIVATIONS[name] for name in names]
    return found if clip is None else [functools.partial(_clipped, a, clip) for a in found[:2]] + found[2:]


def _clipped(a: Activation, clip: float, x: Tensor) -> Tensor:
    return a(x.clamp(-clip, clip))


def _rnn(z: Tensor, h: Tensor, c: Tensor, gates: _Gates) -> tuple[Tensor, Tensor]:
    return gates.activations[0](z + F.linear(h, gates.R, gates.bias)), c


def _gru(z: Tensor, h: Tensor, c: Tensor, gates: _Gates) -> tuple[Tensor, Tensor]:
    """Gates in the order update, reset, hidden."""
    (zu, zr, zh), (Ru, Rr, Rh) = z.chunk(3, -1), gates.R.chunk(3)
    bu, br, bh = (None, None, None) if gates.bias is None else gates.bias.chunk(3)
    f, g = gates.activations
    update, reset = f(zu + F.linear(h, Ru, bu)), f(zr + F.linear(h, Rr, br))
    hidden = g(zh + (reset * F.linear(h, Rh, bh) if gates.flag else F.linear(reset * h, Rh, bh)))
    return (1 - update) * hidden + update * h, c


def _lstm(z: Tensor, h: Tensor, c: Tensor, gates: _Gates) -> tuple[Tensor, Tensor]:
    """Gates in the order input, output, forget, cell; peepholes input, output, forget."""
    zi, zo, zf, zc = (z + F.linear(h, gates.R, gates.bias)).chunk(4, -1)
    pi, po, pf = (0.0, 0.0, 0.0) if gates.peepholes is None else gates.peepholes.chunk(3)
    f, g, out = gates.activations
    enter = f(zi + pi * c)
    forget = 1 - enter if gates.flag else f(zf + pf * c)
    c = forget * c + enter * g(zc)
    return f(zo + po * c) * out(c), c
