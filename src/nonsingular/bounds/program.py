"""program.py - every point of a region of a network, as rows and columns of a mixed-integer linear program.

A parameter whose elements lie in boxes C +- E, each used once, acts on a given z by the row lemma alone:

    { W' z + b' }  =  the box  C z + c  +-  (E |z| + E_b),     each row on its own, both ends attained by C + s_r E sgn(z).

So W' leaves the program: y is any point between two functions that are linear in p and n, where z = p - n, |z| = p + n and
p n = 0.  A binary a says which of the two is not 0:   0 <= p <= u a,   0 <= n <= -l (1 - a),   z in [l, u];
a hinge max(z, s z) is p - s n, so it needs no second one.  The last layer's rows y and j only add to the objective.
Big-M for input balls: Tjeng, Xiao and Tedrake, arXiv:1711.07356.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Region
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Bilinear, Map, Node, Product, Rounded, Sum
from nonsingular.threat.interval import Interval


@dataclass(frozen=True, eq=False)
class Columns:
    """Unknowns in [lo, hi], whole numbers or not."""

    lo: Tensor
    hi: Tensor
    whole: bool


@dataclass(frozen=True, eq=False)
class Rows:
    """lo <= coefficients (rows, columns) <= hi, sparse: row by row `counts` entries of `index` (the column) and `value`."""

    counts: Tensor
    index: Tensor
    value: Tensor
    lo: Tensor
    hi: Tensor


class Program:
    """The unknowns and rows that describe every point of a region of one example, and nothing else.

    A node's output is a function of the unknowns: (1 + columns, n), its constant and then its coefficients.
    Raises UnsupportedModel where the rows would allow more than the network can do, InvalidInput if it becomes too large.
    """

    def __init__(self, where: Region, boxes: Sequence[Interval]) -> None:
        refuse_relaxations(where)
        self.where, self.boxes, self.nodes = where, boxes, where.graph.nodes
        self.columns: list[Columns] = []
        self.rows: list[Rows] = []
        self.count = 0
        self._halves: dict[int, tuple[Tensor, Tensor]] = {}
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        self.values = [self._input()]
        for i, node in enumerate(self.nodes[1:], 1):
            self.values.append(self._output(i, node))
        self._low, self._high = self._ends(len(self.nodes) - 1)

    @property
    def width(self) -> float:
        """Sum of the lengths of the boxes of all unknowns."""
        return sum((c.hi - c.lo).sum().item() for c in self.columns)

    @property
    def binaries(self) -> int:
        return sum(len(c.lo) for c in self.columns if c.whole)

    def margin(self, y: int, j: int) -> Tensor:
        """(1 + columns,) the smallest logit_y - logit_j for given unknowns: rows y and j of a last product move apart."""
        return self.padded(self._low)[:, y] - self.padded(self._high)[:, j]

    def output(self, i: int, unknowns: Tensor) -> Tensor:
        """(1, *shape) the output of node i."""
        t = self.values[i]
        return (t[0] + unknowns[: len(t) - 1] @ t[1:]).view(1, *self.nodes[i].shape)

    def padded(self, t: Tensor) -> Tensor:
        """With coefficients 0 for the unknowns that came later."""
        return F.pad(t, (0, 0, 0, 1 + self.count - len(t)))

    # --- unknowns and rows

    def _new(self, chosen: Tensor, lo: Tensor, hi: Tensor, whole: bool = False) -> Tensor:
        """(1 + columns, n) a new unknown for each of the `chosen` of n elements, 0 for the others.  lo, hi: of all n."""
        at = chosen.nonzero().flatten()
        if (1 + self.count + len(at)) * len(lo) > 2 * room(lo):
            raise InvalidInput(
                f"too large for an exact bound: {self.count + len(at)} unknowns at a layer of {len(lo)}; use 'best'"
            )
        self.columns.append(Columns(lo[at], hi[at], whole))
        t = lo.new_zeros(1 + self.count + len(at), len(lo))
        t[1 + self.count + torch.arange(len(at)), at] = 1.0
        self.count += len(at)
        return t

    def _rows(self, t: Tensor, lo: float, hi: float) -> None:
        """lo <= t <= hi for each column of the function t."""
        if not t.shape[1]:
            return
        coefficients = t[1:].T
        at = coefficients.nonzero()
        counts = torch.bincount(at[:, 0], minlength=t.shape[1])
        self.rows.append(Rows(counts, at[:, 1], coefficients[at[:, 0], at[:, 1]], lo - t[0], hi - t[0]))

    # --- nodes

    def _box(self, i: int) -> tuple[Tensor, Tensor]:
        return self.boxes[i].lo[0].flatten(), self.boxes[i].hi[0].flatten()

    def _input(self) -> Tensor:
        lo, hi = self.where.x.lo[0].flatten(), self.where.x.hi[0].flatten()
        x = self._new(lo < hi, lo, hi)
        x[0] = torch.where(lo < hi, 0.0, lo)
        return x

    def _output(self, i: int, node: Node) -> Tensor:
        match node:
            case Product() if self.where.moves(node.weight) or self.where.moves(node.bias):
                # the last one's ends go into the objective
                return self._between(i) if i < len(self.nodes) - 1 else self.values[0].new_zeros(1, self._box(i)[0].numel())
            case Product():
                return self._ends(i)[0]
            case Activation():
                p, n = self.split(node.inputs[0])
                return self.padded(p) - node.slope * self.padded(n)
            case Sum() | Map():
                return self._linear(node, [self.values[k] for k in node.inputs])
            case _:
                raise AssertionError(f"no exact rule for {type(node).__name__}")

    def _linear(self, node: Sum | Map, z: Sequence[Tensor]) -> Tensor:
        """The node applied to the constant and to each unknown's coefficients, as if these were a batch of signals."""
        batch = [self.padded(t).view(-1, *self.nodes[k].shape) for t, k in zip(z, node.inputs, strict=True)]
        out = cast(Any, node).apply(*batch).flatten(1)
        if isinstance(node, Sum):  # its offset belongs to the constant alone
            out[1:] -= node.apply(*(torch.zeros_like(t[:1]) for t in batch)).flatten(1)
        return out

    def _ends(self, i: int) -> tuple[Tensor, Tensor]:
        """Lowest and highest output of node i for given unknowns; w in [a, b]:  a p - b n  <=  w (p - n)  <=  b p - a n."""
        node = self.nodes[i]
        if not isinstance(node, Product):
            return self.values[i], self.values[i]
        k = node.inputs[0]
        if node.weight is None:
            low = high = self.padded(self.values[k])
        elif not self.where.moves(node.weight):
            low = high = self._times(node, self.values[k], self.where.box(node.weight).lo)
        else:
            (p, n), w = self.split(k), self.where.box(node.weight)
            low = self._times(node, p, w.lo) - self._times(node, n, w.hi)
            high = self._times(node, p, w.hi) - self._times(node, n, w.lo)
        if node.bias is not None:
            b = self.where.box(node.bias)
            low, high = low.clone(), high.clone()
            low[0] += node.spread(b.lo).expand(node.shape).flatten()
            high[0] += node.spread(b.hi).expand(node.shape).flatten()
        return low, high

    def _times(self, node: Product, z: Tensor, w: Tensor) -> Tensor:
        return node.apply(self.padded(z).view(-1, *self.nodes[node.inputs[0]].shape), w).flatten(1)

    def _between(self, i: int) -> Tensor:
        """An unknown output between its two ends, as p - n where its sign is open.  A ReLU asks for none below 0."""
        low, high = self._ends(i)
        lo, hi = self._box(i)
        asked = (hi > 0) | (not self._only_relu(i))
        y = self._new(asked & ~((lo < 0) & (hi > 0)), lo, hi)
        p, n = self._both(i)
        y = self.padded(y) + self.padded(p) - self.padded(n)
        self._rows((y - self.padded(low))[:, asked], 0.0, torch.inf)
        self._rows((y - self.padded(high))[:, asked], -torch.inf, 0.0)
        return y

    def _only_relu(self, i: int) -> bool:
        users = [node for node in self.nodes if i in node.inputs]
        return all(isinstance(node, Activation) and node.slope == 0 for node in users)

    def _both(self, i: int) -> tuple[Tensor, Tensor]:
        """Unknowns p in [0, u] and n in [0, -l] for the elements of node i whose sign is open."""
        if i not in self._halves:
            lo, hi = self._box(i)
            open_, zero = (lo < 0) & (hi > 0), torch.zeros_like(lo)
            self._halves[i] = self._new(open_, zero, hi), self._new(open_, zero, -lo)
        return self._halves[i]

    def split(self, i: int) -> tuple[Tensor, Tensor]:
        """The positive and the negative part of node i's output, never both: one binary for each element of open sign."""
        if i not in self._parts:
            self._parts[i] = self._split(i)
        return self._parts[i]

    def _split(self, i: int) -> tuple[Tensor, Tensor]:
        node = self.nodes[i]
        if isinstance(node, Map) and node.moves_only:
            p, n = self.split(node.inputs[0])
            return self._linear(node, [p]), self._linear(node, [n])
        if isinstance(node, Activation):
            p, n = self.split(node.inputs[0])
            return p, node.slope * n
        lo, hi = self._box(i)
        open_, known = (lo < 0) & (hi > 0), i in self._halves  # known: p - n is its value already
        p, n = self._both(i)
        a = self._new(open_, torch.zeros_like(lo), torch.ones_like(lo), whole=True)
        p, n, value = self.padded(p), self.padded(n), self.padded(self.values[i])
        if not known:
            self._rows((p - n - value)[:, open_], 0.0, 0.0)
        end = n - lo * a
        end[0] += lo
        self._rows((p - hi * a)[:, open_], -torch.inf, 0.0)  # p <= u a
        self._rows(end[:, open_], -torch.inf, 0.0)  # n <= -l (1 - a)
        return torch.where(lo >= 0, value, p), torch.where((lo < 0) & (hi <= 0), -value, n)


def refuse_relaxations(where: Region) -> None:
    """Raises UnsupportedModel, with node and reason, where the program would not be exact."""
    used: dict[str, str] = {}
    for i, node in enumerate(where.graph.nodes):
        if isinstance(node, Bilinear):
            raise UnsupportedModel(f"no exact rule for node '{node.name}': it is a product of two signals; use 'best'")
        if isinstance(node, Activation) and node.form != "hinge":
            kind = "rounds to whole numbers" if isinstance(node, Rounded) else "is smooth"
            raise UnsupportedModel(
                f"no exact rule for node '{node.name}': its activation {kind}, not ReLU or LeakyReLU; use 'best'"
            )
        if not isinstance(node, Product):
            continue
        for parameter, of_weight in ((node.weight, True), (node.bias, False)):
            if not isinstance(parameter, str) or not where.moves(parameter):
                continue
            if parameter in used:
                raise UnsupportedModel(
                    f"no exact rule for '{parameter}': it moves at node '{used[parameter]}' and at node '{node.name}' together; "
                    "hold it fixed, or use 'best'"
                )
            used[parameter] = node.name
            if bool((_uses(where, i, of_weight) > 1).any()):
                raise UnsupportedModel(
                    f"no exact rule for '{parameter}': node '{node.name}' uses one moving element at several positions; "
                    "hold it fixed, or use 'best'"
                )


def _uses(where: Region, i: int, of_weight: bool) -> Tensor:
    """How often each element of the weight or bias of node i enters its output."""
    node = cast(Product, where.graph.nodes[i])
    z = where.x.lo.new_ones(1, *where.graph.nodes[node.inputs[0]].shape)
    parameter = node.weight if of_weight else node.bias
    assert parameter is not None

    def total(t: Tensor) -> Tensor:
        return (node.apply(z, t) if of_weight else node.spread(t).expand(node.shape)).sum()

    value = where.graph.value(parameter)
    return vjp(total, value)[1](value.new_ones(()))[0]
