"""spliced.py - a network with further inputs at some nodes, and the network behind a node: what a change of one output needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.network.graph import Graph
from nonsingular.network.nodes import Input, Map, Node, Sum


def beside(graph: Graph, *numbers: int) -> Graph:
    """The same network with further inputs t that are added to the outputs of these nodes; its input is (x, t, ...), flat."""
    shape = graph.nodes[0].shape
    sizes = [math.prod(s) for s in (shape, *(graph.nodes[i].shape for i in numbers))]
    total, first = sum(sizes), dict(zip(numbers, accumulate(sizes), strict=False))
    nodes: list[Node] = [Input("x", (), (total,)), _slice(0, sizes[0], total, shape)]
    at = {0: 1}
    for i, node in enumerate(graph.nodes[1:], 1):
        nodes.append(replace(node, inputs=tuple(at[k] for k in node.inputs)))
        at[i] = len(nodes) - 1
        if i in first:
            own = node.shape
            nodes += [
                _slice(first[i], first[i] + math.prod(own), total, own),
                Sum(node.name, (at[i], len(nodes)), own, (1.0, 1.0)),
            ]
            at[i] = len(nodes) - 1
    return Graph(tuple(nodes), graph.params)


@dataclass(frozen=True, eq=False)
class Tail:
    """What follows node `number`: a network whose input are the outputs of the nodes `cut`, flat, that of `number` first."""

    graph: Graph
    cut: tuple[int, ...]

    def enter(self, values: Sequence[Tensor]) -> Tensor:
        """(B, d) its input, from the value (B, *shape) of every node of the whole network."""
        return torch.cat([values[i].flatten(1) for i in self.cut], 1)


def tail(graph: Graph, number: int) -> Tail:
    """The network behind a node."""
    behind = {number}
    for i, node in enumerate(graph.nodes[number + 1 :], number + 1):
        if behind & {*node.inputs}:
            behind.add(i)
    used = {k for i in behind - {number} for k in graph.nodes[i].inputs} - behind
    cut = (number, *sorted(used))
    sizes = [math.prod(graph.nodes[i].shape) for i in cut]
    nodes: list[Node] = [Input("x", (), (sum(sizes),))]
    at: dict[int, int] = {}
    first = 0
    for i, size in zip(cut, sizes, strict=True):
        nodes.append(_slice(first, first + size, sum(sizes), graph.nodes[i].shape))
        at[i], first = len(nodes) - 1, first + size
    for i in sorted(behind - {number}):
        node = graph.nodes[i]
        nodes.append(replace(node, inputs=tuple(at[k] for k in node.inputs)))
        at[i] = len(nodes) - 1
    return Tail(Graph(tuple(nodes), graph.params), cut)


def _slice(first: int, last: int, size: int, shape: tuple[int, ...]) -> Map:
    """Elements [first, last) of an input of `size`, in a shape."""
    return Map(
        "slice", (0,), shape, partial(_part, first, last, shape), moves_only=True, back=partial(_padded, first, size - last)
    )


def _part(first: int, last: int, shape: tuple[int, ...], t: Tensor) -> Tensor:
    return t[:, first:last].reshape(len(t), *shape)


def _padded(before: int, after: int, A: Tensor) -> Tensor:
    return F.pad(A.flatten(2), (before, after))
