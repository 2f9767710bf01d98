"""maxima.py - the largest of several elements, as a tournament of max(a, b) = a + relu(b - a): max pooling, amax, max."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nonsingular.network.calls import Call, Rules, Signal, as_signal, entire
from nonsingular.network.derivatives import Kernel, of_windows
from nonsingular.network.nodes import Activation, Larger, Lead, Map, Node, Settled, Windows

Members = Callable[[Tensor], Sequence[Tensor]]
"""(N, *shape) -> those elements that are compared, each (N, *out): the first of every window, the second, ..."""


def tournament(call: Call, z: Signal, members: Members, count: int, kernel: Kernel | None = None) -> list[Node]:
    """The largest of `count` members, in about log2(count) rounds of pairs.

    Windows(z) -> (count, *out); a round takes the first half of the rows against the second.  The last node stands for what may
    come after (`commuted`).  kernel: how windows walk, if none reaches beyond the signal.
    """

    def gather(z: Tensor) -> Tensor:
        return torch.stack(list(members(z)), 1)

    back = None if kernel is None else partial(_back, kernel)
    nodes: list[Node] = [Windows(call.name, (z.number,), (count, *call.out), gather, back=back, kernel=kernel, terms=1)]
    while count > 1:
        half, odd = divmod(count, 2)
        nodes += [
            Lead(call.name, (-1,), (half, *call.out), ()),
            Activation(call.name, (-1,), (half, *call.out), torch.relu, "hinge"),
            Larger(call.name, (-1, -3), (half + odd, *call.out), ()),
        ]
        count = half + odd
    nodes.append(Map(call.name, (-1,), call.out, _alone, True, True, lambda A: A.unsqueeze(2), terms=1))
    return [*nodes, Settled(call.name, (-1,), call.out, entire, True, True, entire, terms=1)]


def _back(kernel: Kernel, A: Tensor) -> Tensor:
    return of_windows(A.unbind(2), kernel)


def _alone(z: Tensor) -> Tensor:
    return z.squeeze(1)


def commuted(nodes: Sequence[Node]) -> list[Node]:
    """The same, where a maximum of hinges is the hinge of a maximum: a quarter of them, and as computed, too.

    What is computed for a smooth activation need not rise where the activation does.
    """
    found, waiting = list(nodes), dict[str, Activation]()
    for i, node in enumerate(found):
        if isinstance(node, Windows):
            before = found[node.inputs[0]]
            waiting.pop(node.name, None)
            if isinstance(before, Activation) and before.form == "hinge":
                found[i], waiting[node.name] = replace(node, inputs=before.inputs), before
        elif isinstance(node, Settled) and node.name in waiting:
            found[i] = replace(waiting.pop(node.name), name=node.name, inputs=node.inputs, shape=node.shape)
    return found


# --- who is compared ------------------------------------------------------------------------------------------------------


def _per_dimension(value: Any, dims: int) -> list[int]:
    return (
        [int(v) for v in (value * dims if len(value) == 1 else value)] if isinstance(value, tuple | list) else [int(value)] * dims
    )


def _pool(call: Call, dims: int) -> list[Node]:
    z, kernel, stride, padding, dilation, _, indices = call.bound(
        "input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices",
        stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False,
    )  # fmt: skip
    z = as_signal(call, z)
    if indices or len(z.shape) != len(call.out) or len(z.shape) <= dims:
        raise call.refuse("indices and inputs without a batch are not known")
    kernel, padding, dilation = (_per_dimension(v, dims) for v in (kernel, padding, dilation))
    stride = _per_dimension(stride, dims) if stride not in (None, [], ()) else kernel
    taken = [
        _clamped([[o * s - p + k * d for o in range(out)] for k in range(size)], width)
        for size, s, p, d, out, width in zip(kernel, stride, padding, dilation, call.out[-dims:], z.shape[-dims:], strict=True)
    ]
    return _windows(call, z, taken)


def _clamped(places: list[list[int]], width: int) -> list[list[int]]:
    """Places of one dimension, row k of each window; those outside are another place of the same window."""
    inside = [[0 <= p < width for p in row] for row in places]
    first = [next(places[k][o] for k in range(len(places)) if inside[k][o]) for o in range(len(places[0]))]
    return [
        [p if ok else first[o] for o, (p, ok) in enumerate(zip(row, oks, strict=True))]
        for row, oks in zip(places, inside, strict=True)
    ]


def _adaptive(call: Call, dims: int) -> list[Node]:
    z, _, indices = call.bound("input", "output_size", "return_indices", return_indices=False)
    z = as_signal(call, z)
    if indices or len(z.shape) != len(call.out) or len(z.shape) <= dims:
        raise call.refuse("indices and inputs without a batch are not known")
    taken: list[list[list[int]]] = []
    for out, width in zip(call.out[-dims:], z.shape[-dims:], strict=True):
        starts, ends = [o * width // out for o in range(out)], [-(-(o + 1) * width // out) for o in range(out)]
        most = max(e - s for s, e in zip(starts, ends, strict=True))
        taken.append([[min(s + k, e - 1) for s, e in zip(starts, ends, strict=True)] for k in range(most)])
    return _windows(call, z, taken)


def _windows(call: Call, z: Signal, taken: Sequence[list[list[int]]]) -> list[Node]:
    """taken: for each of the last dimensions and each row of the kernel, the places of all windows."""
    first = len(z.shape) + 1 - len(taken)

    views = [[_view(places) for places in rows] for rows in taken]

    def members(t: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for each in itertools.product(*views):
            part = t
            for dim, view in enumerate(each, first):
                part = view(part, dim)
            found.append(part)
        return found

    return tournament(call, z, members, math.prod(map(len, taken)), _kernel(taken) if len(taken) == 2 else None)


def _kernel(taken: Sequence[list[list[int]]]) -> Kernel | None:
    """How windows walk that begin at 0 and have equal distances, rows and columns alike."""
    found: list[tuple[int, int, int]] = []
    for rows in taken:
        stride = rows[0][1] - rows[0][0] if len(rows[0]) > 1 else len(rows)
        dilation = rows[1][0] - rows[0][0] if len(rows) > 1 else 1
        equal = [[o * stride + k * dilation for o in range(len(rows[0]))] for k in range(len(rows))]
        if stride < 1 or dilation < 1 or rows != equal:
            return None
        found.append((len(rows), stride, dilation))
    (size, stride, dilation), (width, step, apart) = found
    return Kernel((size, width), (stride, step), (0, 0), (dilation, apart))


def _view(places: list[int]) -> Callable[[Tensor, int], Tensor]:
    """Elements of one dimension: a slice where their places have equal distances."""
    steps = {b - a for a, b in itertools.pairwise(places)} or {1}
    if len(steps) == 1 and min(steps) > 0:
        at = slice(places[0], places[-1] + 1, min(steps))
        return lambda t, dim: t[(slice(None),) * dim + (at,)]
    index = torch.tensor(places)
    return lambda t, dim: t.index_select(dim, index.to(t.device))


def along(call: Call, z: Signal, dims: Sequence[int], keep: bool) -> list[Node]:
    """The largest along these dimensions, none of which is the batch."""
    dims = sorted(d % (len(z.shape) + 1) for d in dims)
    sizes = [z.shape[d - 1] for d in dims]

    def members(t: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for at in itertools.product(*map(range, sizes)):
            part = t
            for d, k in zip(dims, at, strict=True):
                part = part.narrow(d, k, 1)
            found.append(part if keep else part.flatten(1).reshape(len(t), *call.out))
        return found

    return tournament(call, z, members, math.prod(sizes))


RULES: Rules = {
    **{f"max_pool{d}d": (lambda call, d=d: _pool(call, d)) for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": (lambda call, d=d: _adaptive(call, d)) for d in (1, 2, 3)},
}
