"""spelled.py - layers of torch that are one call in their forward, spelled out in operations that have rules.

nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN and their cells, for the length that is given.  A graph read off this spelling is
compared with the layer itself, as every graph is.  What is not spelled out here runs as it is, and is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.network.rounded import linear_among, one_call, toward

State = tuple[Tensor, *tuple[Tensor, ...]]
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
"""Those of the input and of the state, their biases, and the projection of an LSTM."""
Step = Callable[[Weights, Tensor, "State | None"], State]
"""(weights, input (N, d), state) -> the next state, what comes out first; no state: zeros."""


@contextmanager
def spelled(module: nn.Module) -> Generator[None]:
    """Every such layer within runs as spelled out here."""
    changed = [(m, run) for m in module.modules() if "forward" not in vars(m) and (run := SPELLED.get(type(m)))]
    try:
        for m, run in changed:
            m.forward = partial(run, m)
        yield
    finally:
        for m, _ in changed:
            del m.forward


MASKS: dict[str, Any] = {
    "key_padding_mask": None,
    "need_weights": True,
    "attn_mask": None,
    "average_attn_weights": True,
    "is_causal": False,
}
"""What nn.MultiheadAttention takes besides queries, keys and values, in order."""


def attention(m: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
    """Queries, keys and values by three linear maps, cut into heads; with a mask, without the weights of attention."""
    asked = {**MASKS, **dict(zip(MASKS, given, strict=False)), **named}
    attn_mask, need_weights = asked["attn_mask"], asked["need_weights"]
    plain = m.bias_k is None and m.bias_v is None and not m.add_zero_attn and asked["key_padding_mask"] is None
    if not plain or query.dim() != 3 or (attn_mask is not None and attn_mask.dim() != 2) or (m.dropout and m.training):
        return type(m).forward(m, query, key, value, *given, **named)
    q, k, v = (_heads(m, t) for t in _projected(m, query, key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # True: not allowed here, allowed there
    weights = None
    if need_weights and attn_mask is None:
        weights = (q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]))).softmax(-1)
        y = weights @ v
        weights = weights.mean(1) if asked["average_attn_weights"] else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask)
    y = F.linear(y.transpose(1, 2).flatten(2), m.out_proj.weight, m.out_proj.bias)
    return (y if m.batch_first else y.transpose(0, 1)), weights


def _projected(m: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    b, d = m.in_proj_bias, m.embed_dim
    if query is key is value and m.in_proj_weight is not None:
        z = query if m.batch_first else query.transpose(0, 1)
        return list(F.linear(z, m.in_proj_weight, b).chunk(3, -1))
    if m.in_proj_weight is not None:
        weights = [m.in_proj_weight[i * d : (i + 1) * d] for i in range(3)]
    else:
        weights = [m.q_proj_weight, m.k_proj_weight, m.v_proj_weight]
    biases = [None if b is None else b[i * d : (i + 1) * d] for i in range(3)]
    signals = [t if m.batch_first else t.transpose(0, 1) for t in (query, key, value)]
    return [F.linear(t, w, c) for t, w, c in zip(signals, weights, biases, strict=True)]


def _heads(m: Any, t: Tensor) -> Tensor:
    """(N, L, E) -> (N, heads, L, E / heads)."""
    return t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2)


# --- recurrent layers --------------------------------------------------------------------------------------------------------


def _sum(w: Weights, x: Tensor, h: Tensor | None) -> Tensor:
    """W x + b + V h + c."""
    of_x, of_h, b, c, _ = w
    y = linear_among(x, of_x, b, of_h.shape[1] + 2)
    if h is not None:
        return y + linear_among(h, of_h, c, of_x.shape[1] + 2)
    return y if c is None else y + c


def _out(state: State | None) -> Tensor | None:
    return state[0] if state else None


def _lstm(w: Weights, x: Tensor, state: State | None) -> State:
    i, f, g, o = _sum(w, x, _out(state)).chunk(4, 1)
    c = i.sigmoid() * g.tanh()
    if state:
        c = f.sigmoid() * state[1] + c
    h = o.sigmoid() * c.tanh()
    return (h if w[4] is None else F.linear(h, w[4])), c


def _gru(w: Weights, x: Tensor, state: State | None) -> State:
    """n = tanh(W x + b + r (V h + c)),  h' = n + z (h - n)."""
    of_x, of_h, b, c, _ = w
    size = of_x.shape[0] // 3
    first, rest = slice(2 * size), slice(2 * size, None)
    gates = (of_x[first], of_h[first], None if b is None else b[first], None if c is None else c[first], None)
    r, z = _sum(gates, x, _out(state)).sigmoid().chunk(2, 1)
    n, c = linear_among(x, of_x[rest], None if b is None else b[rest], 2), None if c is None else c[rest]
    if state:
        n = n + r * F.linear(state[0], of_h[rest], c)
    elif c is not None:
        n = n + r * c
    n = n.tanh()
    return (toward(n, z, _out(state)),)


def _rnn(rho: Callable[[Tensor], Tensor], w: Weights, x: Tensor, state: State | None) -> State:
    return (rho(_sum(w, x, _out(state))),)


def _step_of(m: Any) -> Step:
    if isinstance(m, nn.LSTM | nn.LSTMCell):
        return _lstm
    if isinstance(m, nn.GRU | nn.GRUCell):
        return _gru
    relu = m.nonlinearity == "relu"
    return partial(_rnn, torch.relu if relu else torch.tanh)


@one_call
def is_constant(t: Tensor) -> bool:
    """Whether a recording knows a tensor as a constant; it answers in place of this function."""
    return False


def _given(hx: Any) -> Any:
    """A first state; None for zeros that do not depend on the input."""
    parts: list[Any] = list(hx) if isinstance(hx, list | tuple) else [hx]
    zeros = all(isinstance(t, Tensor) and is_constant(t) and not bool(t.any()) for t in parts)
    return None if zeros else hx


def cell(m: Any, x: Tensor, hx: Any = None) -> Any:
    """One step of nn.LSTMCell, nn.GRUCell or nn.RNNCell."""
    if x.dim() != 2:
        return type(m).forward(m, x, hx)
    hx = _given(hx)
    state = None if hx is None else tuple(hx) if isinstance(hx, list | tuple) else (hx,)
    found = _step_of(m)((m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh, None), x, state)
    return found if len(found) > 1 else found[0]


def recurrent(m: Any, x: Any, hx: Any = None) -> Any:
    """nn.LSTM, nn.GRU or nn.RNN from a state of zeros, unrolled."""
    if not isinstance(x, Tensor) or x.dim() != 3 or _given(hx) is not None or (m.dropout and m.training):
        return type(m).forward(m, x, hx)
    z, last = x if m.batch_first else x.transpose(0, 1), list[State]()
    for layer in range(m.num_layers):
        ways = list[Tensor]()
        for suffix in ("", "_reverse")[: 1 + m.bidirectional]:
            outputs, state = _unrolled(m, f"l{layer}{suffix}", z)
            ways.append(outputs)
            last.append(state)
        z = ways[0] if len(ways) == 1 else torch.cat(ways, 2)
    states = [torch.stack(parts, 1).transpose(0, 1) for parts in zip(*last, strict=True)]
    return (z if m.batch_first else z.transpose(0, 1)), (tuple(states) if len(states) > 1 else states[0])


def _unrolled(m: Any, name: str, x: Tensor) -> tuple[Tensor, State]:
    """(all outputs (N, T, h), the last state) of one layer in one direction."""
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    w: Any = tuple(getattr(m, f"{part}_{name}", None) for part in parts)
    step, state, outputs, times = _step_of(m), None, list[Tensor](), range(x.shape[1])
    for t in reversed(times) if name.endswith("reverse") else times:
        state = step(w, x[:, t], state)
        outputs.append(state[0])
    assert state is not None, "torch wants one step at least"
    return torch.stack(outputs[::-1] if name.endswith("reverse") else outputs, 1), state


SPELLED: dict[type, Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), recurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), cell),
}
