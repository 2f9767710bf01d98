"""folds.py - BatchNorm in eval mode as a part of the convolution before it: fewer passes over signals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from nonsingular.network.graph import Graph
from nonsingular.network.nodes import Node, Parameter, Product, Sum


@dataclass(frozen=True, eq=False)
class Fold:
    """scale * y + offset, for each output channel of a convolution: what the nodes `after` it compute."""

    scale: Tensor
    offset: Tensor
    after: tuple[int, ...]

    def kernel(self, w: Tensor) -> Tensor:
        """w (..., O, I, h, w) for the convolution with the scale."""
        return w * self.scale[:, None, None, None]


def folds(graph: Graph, moving: Collection[str]) -> dict[int, Fold]:
    """By the number of each convolution: the fixed scales and shifts of channels, and nothing else, that its output goes through.

    moving: names of parameters that move; a scale, shift or bias that does is not folded.
    """
    uses = Counter(i for node in graph.nodes for i in node.inputs)
    users = {i: number for number, node in enumerate(graph.nodes) for i in node.inputs}
    found = dict[int, Fold]()
    for number, node in enumerate(graph.nodes):
        if not isinstance(node, Product) or node.kernel is None or node.weight is None or _moves(node.bias, moving):
            continue
        like = graph.value(node.weight)
        fold, last = Fold(like.new_ones(len(like)), like.new_zeros(len(like)), ()), number
        while uses[last] == 1 and (step := _affine(graph, graph.nodes[users[last]], moving, fold.scale)) is not None:
            last = users[last]
            fold = Fold(fold.scale * step[0], fold.offset * step[0] + step[1], (*fold.after, last))
        if fold.after:
            found[number] = fold
    return found


def _moves(p: Parameter | None, moving: Collection[str]) -> bool:
    return isinstance(p, str) and p in moving


def _affine(graph: Graph, node: Node, moving: Collection[str], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """(scale, offset) of each channel, for a node that does nothing else to a signal with as many channels as `like` (O,)."""
    if type(node) is Sum and len(node.inputs) == 1:
        parts = node.factors[0], node.offset
    elif (
        isinstance(node, Product)
        and (node.scales or node.weight is None)
        and not (_moves(node.weight, moving) or _moves(node.bias, moving))
    ):
        weight = 1.0 if node.weight is None else node.see(graph.value(node.weight))
        parts = weight, 0.0 if node.bias is None else node.spread(graph.value(node.bias))
    else:
        return None
    found = [_by_channel(p, like) for p in parts]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _by_channel(p: Tensor | float, like: Tensor) -> Tensor | None:
    """(O,) what broadcasts to signals (O, H, W), if it is the same at all places."""
    t = torch.as_tensor(p).to(like)
    if t.dim() == 4 and len(t) == 1:
        t = t[0]
    if t.dim() not in (0, 3) or (t.dim() == 3 and t.shape[1:] != (1, 1)):
        return None
    return t.flatten().expand_as(like)
