"""graph_unknowns.py - the unknowns of a network whose operations are known: the inputs, scalars of output channels, elements.

- A dense layer moves by a scalar per neuron, as in neuron_unknowns.py; the last layer of the network is at its best end.
- A kernel serves many positions z(p), so that no scalar attains all that its elements can do.  Its elements are unknowns; but
  first the search goes over one scalar s_o per output channel, which moves them all by s_o E sgn(mean_p z).  After a ReLU these
  signs are all 1, and y(p) = C z(p) + s_o E sum_i z_i(p): one pass costs what it costs where only the inputs move.
- What else moves, such as a bias, a kernel of groups or a tensor of several layers, is moved element by element.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.attacks.search.apart import product, shift, sums_of_windows
from nonsingular.attacks.search.folds import Fold, folds
from nonsingular.attacks.search.unknowns import Space, leaky, leaky_relu, of_channels, scaled
from nonsingular.network.derivatives import of_linear
from nonsingular.network.graph import Graph, small_graph
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Parameter, Product
from nonsingular.network.row_lemma import centred, of_each
from nonsingular.network.rules.affine import per_channel
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import Radius, Side

Moved = Callable[[int, Product, Tensor], Tensor]
"""(number of a node, the node, its input (N, *input)) -> (N, *shape)."""


@dataclass(frozen=True, eq=False)
class Row:
    """One scalar for each output channel of a product: y = C z + c + s (E |z| + e), or its form for several positions.

    E, e: half the widths of the boxes of weight and bias, numbers or of their shapes.  scale: (channels,) what y and the reach
    are multiplied by, if that is part of C and c.
    """

    node: Product
    C: Tensor
    c: Tensor | None
    E: Side
    e: Side
    scale: Tensor | None = None

    def folded(self, fold: Fold) -> Row:
        """With what comes after it."""
        c = fold.offset if self.c is None else self.node.spread(self.c).flatten() * fold.scale + fold.offset
        node = replace(self.node, spread=partial(per_channel, dims=3))
        return replace(self, node=node, C=fold.kernel(self.C), c=c, scale=fold.scale)

    def symmetric(self, params: Mapping[str, Tensor]) -> bool:
        """Whether s = 0 is the network itself."""
        pairs = ((self.node.weight, self.C), (self.node.bias, self.c))
        return all(t is params[name] for name, t in pairs if isinstance(name, str))

    def middle(self, z: Tensor) -> Tensor:
        """C z + c."""
        y = self.node.apply(z, self.C)
        return y if self.c is None else y + self.node.spread(self.c)

    def signs(self, z: Tensor) -> Tensor:
        """(N, channels of the input) the signs of the elements of the weight; constants for the gradient."""
        z = z.detach()
        if not self.node.dense:
            z = z.flatten(2).mean(2) if self.node.kernel else z.flatten(1, -2).mean(1)
        return z.sign()

    def reach(self, z: Tensor) -> Tensor:
        """(N, *shape or 1s) how far s = 1 moves the output."""
        if self.node.dense:
            size = z.abs()
            far = F.linear(size, self.E) if isinstance(self.E, Tensor) else self.E * size.sum(1, keepdim=True)
            return far + self.e
        signs, kernel = self.signs(z), self.node.kernel
        if kernel is None:
            far = torch.einsum("n...i,ni->n...", z, signs)[..., None]
        else:
            seen = torch.bmm(signs[:, None], z.flatten(2))  # (N, 1, positions)
            far = sums_of_windows(seen.unflatten(2, z.shape[2:]), kernel)
        return self.E * far + self.e

    def __call__(self, z: Tensor, s: Tensor) -> Tensor:
        """(N, *shape) for s (N, channels of the output)."""
        y, reach = self.middle(z), self.reach(z)
        s = s if self.scale is None else s * self.scale
        if self.node.kernel is None:
            return y + s.view(len(s), *[1] * (y.dim() - 2), -1) * reach
        return torch.baddbmm(y.flatten(2), s[:, :, None], reach.flatten(2)).view_as(y)

    def along(self, z: Tensor, s: Tensor) -> Tensor:
        """(N, *weight) in [-1, 1]: where in its box the weight is."""
        signs, kernel = self.signs(z), self.node.kernel
        if kernel is None:
            return torch.bmm(s[:, :, None], signs[:, None])
        apart = torch.bmm(s[:, :, None], signs[:, None])
        return apart[..., None, None].expand(-1, -1, -1, *kernel.size)

    def moved(self, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights (N, *weight) and biases (N, *bias)."""
        return self.C + self.E * self.along(z, s), None if self.c is None else self.c + self.e * s


@dataclass(frozen=True, eq=False)
class GraphSpace(Space):
    """Unknowns: the scalars of `rows`, by the numbers of their nodes, without the last layer's; then all of `elements`.

    channels: rows that move in place of elements where the search goes over few unknowns (`coarse`); their biases move with them.
    boxes: of all tensors that move.  folds: what margins take as a part of the convolution before it.
    fine: the space that this is the coarse one of.
    """

    graph: Graph
    rows: Mapping[int, Row]
    channels: Mapping[int, Row]
    elements: Mapping[str, Interval]
    boxes: Mapping[str, Interval]
    folds: Mapping[int, Fold]
    fine: GraphSpace | None = None

    # --- the columns of unknowns

    def _free(self, number: int) -> bool:
        """Whether the scalars of a row are unknown: those of the last layer are at their best ends."""
        return number + 1 < len(self.graph.nodes)

    def _columns(self) -> tuple[dict[int, slice], dict[str, slice]]:
        """Those of each row, and of each tensor, counted after the inputs."""
        at, rows, elements = 0, dict[int, slice](), dict[str, slice]()
        for number in (n for n in self.rows if self._free(n)):
            rows[number] = slice(at, at := at + len(self.rows[number].C))
        for name, box in self.elements.items():
            elements[name] = slice(at, at := at + box.lo.numel())
        return rows, elements

    def _apart(self, w: Tensor, *, folded: bool = False) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
        """(N, channels) the scalars by the numbers of the nodes, and (N, *shape) the elements by name.

        Elements may leave their boxes by rounding.  folded: kernels are multiplied by what follows them.
        """
        rows, elements = self._columns()
        parts = iter(w.split([at.stop - at.start for at in (*rows.values(), *elements.values())], 1))  # its gradient is one copy
        scalars, placed = {number: next(parts) for number in rows}, dict[str, Tensor]()
        for number in self.rows.keys() - rows.keys():
            y = self.y.repeat(len(w) // max(1, len(self.y)))
            scalars[number] = w.new_ones(len(w), len(self.rows[number].C)).scatter_(1, y[:, None], -1.0)
        for name in elements:
            middle, half = (self._folded if folded else self._boxes)[name]
            placed[name] = torch.addcmul(middle, half, next(parts).reshape(-1, *half.shape))
        return scalars, placed

    @cached_property
    def _boxes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The centre and half the width of the box of each tensor of elements."""
        return {name: ((box.lo + box.hi) / 2, (box.hi - box.lo) / 2) for name, box in self.elements.items()}

    @cached_property
    def _folded(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The same of kernels multiplied by what follows them."""
        found = dict(self._boxes)
        for number, fold in self.folds.items():
            if (name := cast(Product, self.graph.nodes[number]).weight) in found:
                middle, half = found[cast(str, name)]
                found[cast(str, name)] = fold.kernel(middle), fold.kernel(half)
        return found

    @cached_property
    def _fixed(self) -> dict[int, Product]:
        """The convolutions that margins take with what follows them: kernels that do not move hold it."""
        found = dict[int, Product]()
        for number, fold in self.folds.items():
            node = cast(Product, self.graph.nodes[number])
            bias = fold.offset
            if node.bias is not None:
                bias = node.spread(self.graph.value(node.bias)).flatten() * fold.scale + bias
            still = not isinstance(node.weight, str) or node.weight not in self.elements
            weight = fold.kernel(self.graph.value(cast(Any, node.weight))) if still else node.weight
            found[number] = replace(node, weight=weight, bias=bias, spread=partial(per_channel, dims=3))
        return found

    @cached_property
    def _quick(self) -> tuple[dict[int, Row], set[int]]:
        """The rows with what follows them, and the numbers of the nodes that have nothing left to do."""
        rows = {n: row.folded(self.folds[n]) if n in self.folds else row for n, row in self.rows.items()}
        return rows, {n for fold in self.folds.values() for n in fold.after}

    # --- the network

    @cached_property
    def _last(self) -> list[int]:
        """For each node the number of the last one that asks for it."""
        last = list(range(len(self.graph.nodes)))
        for number, node in enumerate(self.graph.nodes):
            for i in node.inputs:
                last[i] = number
        return last

    def _run(self, x: Tensor, moved: Moved, done: Collection[int] = ()) -> Tensor:
        """done: nodes that hand on their input."""
        values: list[Tensor | None] = [x]
        for number, node in enumerate(self.graph.nodes[1:], 1):
            z = [cast(Tensor, values[i]) for i in node.inputs]
            if number in done:
                values.append(z[0])
            else:
                values.append(moved(number, node, z[0]) if isinstance(node, Product) else cast(Any, node).apply(*z))
            for i in node.inputs:
                if self._last[i] == number:
                    values[i] = None
        return cast(Tensor, values[-1])

    def _product(self, node: Product, z: Tensor, each: Mapping[str, Tensor]) -> Tensor:
        """A product with the tensors of `each` (N, *shape) in the place of the network's."""

        def held(p: str | Tensor) -> tuple[Tensor, bool]:
            return (each[p], True) if isinstance(p, str) and p in each else (self.graph.value(p), False)

        y = z if node.weight is None else product(node, z, *held(node.weight))
        return y if node.bias is None else y + shift(node, *held(node.bias))

    def logits(self, x: Tensor, w: Tensor) -> Tensor:
        scalars, placed = self._apart(w, folded=True)
        rows, done = self._quick

        def moved(number: int, node: Product, z: Tensor) -> Tensor:
            if number in rows:
                return rows[number](z, scalars[number])
            return self._product(self._fixed.get(number, node), z, placed)

        return self._run(x, moved, done)

    def weights(self, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        scalars, placed = self._apart(w)
        found = {name: self.boxes[name].project_(t) for name, t in placed.items()}

        def moved(number: int, node: Product, z: Tensor) -> Tensor:
            if number in self.rows:
                for name, t in zip((node.weight, node.bias), self.rows[number].moved(z, scalars[number]), strict=True):
                    if isinstance(name, str) and name in self.boxes and t is not None:
                        found[name] = self.boxes[name].project_(t.contiguous())
            return self._product(node, z, found)

        self._run(x, moved)
        return {name: found[name] for name in self.boxes}

    def unknowns_of(self, point: Perturbation) -> Tensor:
        n, params = len(point.x), self.graph.params
        each = {name: of_each(point, params, name) for name in self.boxes}
        shifts = {number: point.x.new_zeros(n, len(row.C)) for number, row in self.rows.items() if self._free(number)}
        away = [number for number in shifts if point.weights or not self.rows[number].symmetric(params)]

        def moved(number: int, node: Product, z: Tensor) -> Tensor:
            y = self._product(node, z, {name: t for name, t in each.items() if name in point.weights})
            if number in away:
                reach = self.rows[number].reach(z)
                shifts[number] = torch.where(reach > 0, (y - self.rows[number].middle(z)) / reach, 0.0)
            return y

        if away:
            self._run(point.x, moved)
        parts = [
            scaled(each[name][..., None].flatten(1), box.lo.flatten(), box.hi.flatten()) for name, box in self.elements.items()
        ]
        return torch.cat([point.x.new_zeros(n, 0), *shifts.values(), *parts], 1)

    def slope(self, v: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """An element without a derivative has LEAK times the sum of its output channel's."""
        value, g = super().slope(v, loss)
        of_channels(g[..., self.free :], self._columns()[1], self.elements)
        return value, g

    # --- few unknowns

    @property
    def row(self) -> int:
        return max(self.origin.shape[1], sum(torch.Size(node.shape).numel() for node in self.graph.nodes) // 4)

    def coarse(self) -> GraphSpace:
        if not self.channels:
            return self
        inside = {name for row in self.channels.values() for name in (row.node.weight, row.node.bias)}
        few = replace(
            self, rows=dict(sorted({**self.rows, **self.channels}.items())), channels={},
            elements={name: box for name, box in self.elements.items() if name not in inside}, fine=self,
        )  # fmt: skip
        return few.placed(self.x)

    def refined(self, v: Tensor) -> Tensor:
        fine = self.fine
        if fine is None:
            return v
        flat = v.flatten(0, 1)
        w, found, (few, own), (rows, elements) = flat[:, self.free :], dict[str, Tensor](), self._columns(), fine._columns()
        scalars, placed = self._apart(w)

        def moved(number: int, node: Product, z: Tensor) -> Tensor:
            if number not in self.rows:
                return self._product(node, z, placed)
            if number not in fine.rows:
                for name, t in ((node.weight, self.rows[number].along(z, scalars[number])), (node.bias, scalars[number])):
                    if isinstance(name, str):
                        found[name] = t.flatten(1)
            return self.rows[number](z, scalars[number])

        self._run(self.inputs(v).flatten(0, 1), moved)
        parts = [w[:, few[number]] for number in rows]
        parts += [found[name] if name in found else w[:, own[name]] for name in elements]
        return torch.cat([flat[:, : self.free], *parts], 1).view(*v.shape[:2], -1)

    def placed(self, x: Tensor) -> GraphSpace:
        """The same with the origin and the groups of its unknowns."""
        channels = [1] * sum(len(row.C) for number, row in self.rows.items() if self._free(number))
        for box in self.elements.values():
            outer = len(box.lo) if box.lo.dim() else 1
            channels += [box.lo.numel() // outer] * outer
        sizes = torch.tensor(channels, dtype=torch.long)
        groups = torch.cat([torch.full((self.free,), -1), torch.arange(len(sizes)).repeat_interleave(sizes)]).int().to(x.device)
        return replace(self, groups=groups, origin=self.at(Perturbation(x, scope="sample")))


def graph_space(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> GraphSpace:
    """The space of a network whose operations are known.  Raises UnsupportedModel as `small_graph` does: what a pass holds for an
    example must fit into the budget of memory.
    """
    graph = small_graph(model, x.shape[1:], room(x))
    nodes = tuple(replace(n, apply=_leaky(n)) if isinstance(n, Activation) else n for n in graph.nodes)
    graph = replace(graph, nodes=nodes)
    params = dict(model.named_parameters())
    boxes, radii = ball.weight_boxes(params), ball.radii(params)
    products = {number: node for number, node in enumerate(nodes) if isinstance(node, Product)}
    uses = Counter[Parameter | None](p for node in products.values() for p in (node.weight, node.bias) if p in boxes)
    alone = {n: node for n, node in products.items() if uses[node.weight] < 2 and uses[node.bias] < 2}
    rows, channels = dict[int, Row](), dict[int, Row]()
    for number, node in alone.items():
        row = _row(node, graph, radii)
        if row is not None and node.dense:
            rows[number] = row
        elif row is not None and isinstance(row.E, float) and isinstance(row.e, float) and row.symmetric(graph.params):
            channels[number] = row
    after = {n: fold for n, fold in folds(graph, boxes).items() if n in alone}
    whole = {name for row in rows.values() for name in (row.node.weight, row.node.bias)}
    space = GraphSpace(
        x, ball.input_box(x), y, x.new_zeros(len(x), 0), x[0].numel() if ball.moves_inputs and len(x) else 0,
        torch.zeros(0, dtype=torch.long), graph, rows, channels,
        {name: box for name, box in boxes.items() if name not in whole}, boxes, after,
    )  # fmt: skip
    return space.placed(x)


def _leaky(node: Activation) -> Callable[[Tensor], Tensor]:
    return leaky_relu if node.form == "hinge" and not node.slope else leaky(node.apply)


def _row(node: Product, graph: Graph, radii: Mapping[str, Radius]) -> Row | None:
    """The scalars of a product; None where it has none: each output channel must see its own row of the weight alone."""
    known = node.dense or node.derivatives is of_linear or (node.kernel is not None and node.kernel.groups == 1)
    if not known or not isinstance(node.weight, str) or node.weight not in radii:
        return None
    C, E = centred(graph.params[node.weight], radii[node.weight])
    if node.bias is None:
        return Row(node, C, None, E, 0.0)
    bias = graph.value(node.bias)
    if not isinstance(node.bias, str) or node.bias not in radii:
        return Row(node, C, bias, E, 0.0)
    numbers = torch.arange(bias.numel(), device=bias.device)
    if bias.shape != C.shape[:1] or not torch.equal(node.spread(numbers).flatten(), numbers):
        return None
    c, e = centred(bias, radii[node.bias])
    return Row(node, C, c, E, e)
