"""points.py - from unknowns of the program of program.py to a point of the ball, run through the network in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import vjp  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.bounds.interval import Region
from nonsingular.bounds.program import Program
from nonsingular.network.nodes import Parameter, Product
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval


@dataclass(frozen=True, eq=False)
class Point:
    """One input and the weights that moved, as stored, and every node's output there, in float64."""

    x: Tensor
    weights: dict[str, Tensor]
    outputs: list[Tensor]


def stored(where: Region, model: nn.Module, x: Tensor, ball: JointBall) -> Region:
    """The ball as `Perturbation.check` sees it: boxes rounded in the dtypes of the data and of the model."""
    boxes = ball.weight_boxes(dict(model.named_parameters()))
    return Region(where.graph, _cpu(ball.input_box(x)), {name: _cpu(box) for name, box in boxes.items()})


def _cpu(box: Interval) -> Interval:
    return Interval(box.lo.cpu(), box.hi.cpu())


def _rounded(t: Tensor, box: Interval, stored: Interval) -> Tensor:
    """`t` in the dtype of `stored`: inside the box where that dtype has a number there, and inside `stored` in any case."""
    near = t.to(stored.lo.dtype, copy=True)
    inf = torch.full_like(near, torch.inf)
    near = torch.where(near.double() > box.hi, near.nextafter(-inf), near)
    near = torch.where(near.double() < box.lo, near.nextafter(inf), near)
    return stored.project_(near)


def replay(where: Region, stored: Region, x: Tensor, moved: Callable[[int, Tensor], Mapping[str, Tensor]]) -> Point:
    """Runs the network at x, with the weights moved(node number, its input), everything rounded into its box first."""
    x = _rounded(x, where.x, stored.x)
    outputs, weights = [x.double()], dict[str, Tensor]()
    for i, node in enumerate(where.graph.nodes[1:], 1):
        z = [outputs[k] for k in node.inputs]
        if not isinstance(node, Product):
            outputs.append(cast(Any, node).apply(*z))
            continue
        for name, w in moved(i, z[0]).items():
            weights[name] = _rounded(w, where.boxes[name], stored.boxes[name])
        y = z[0] if node.weight is None else node.apply(z[0], _value(where, node.weight, weights))
        outputs.append(y if node.bias is None else y + node.spread(_value(where, node.bias, weights)))
    return Point(x, weights, outputs)


def _value(where: Region, parameter: Parameter, weights: Mapping[str, Tensor]) -> Tensor:
    moved = weights.get(parameter) if isinstance(parameter, str) else None
    return where.graph.value(parameter) if moved is None else moved.double()


def realised(program: Program, stored: Region, unknowns: Tensor, y: int, j: int) -> Point:
    """The input and the weights that these unknowns stand for: rows shifted to their outputs, in the last layer y down, j up."""
    where, last = program.where, len(program.nodes) - 1

    def moved(i: int, z: Tensor) -> dict[str, Tensor]:
        node = cast(Product, program.nodes[i])
        if not (where.moves(node.weight) or where.moves(node.bias)):
            return {}
        if i < last:
            return _shifted(where, node, z, program.output(i, unknowns))
        far = torch.zeros(1, *node.shape, dtype=z.dtype)
        far[0, y], far[0, j] = -torch.inf, torch.inf
        return _shifted(where, node, z, far, torch.isfinite(far))

    return replay(where, stored, program.output(0, unknowns), moved)


def _shifted(where: Region, node: Product, z: Tensor, target: Tensor, free: Tensor | None = None) -> dict[str, Tensor]:
    """The weight and the bias of a product, as far as they move, that take its output at z as near to `target` as they can.

    s in [-1, 1] is how far each row goes, in its reach; 0 where `free`.  Each element of the weight meets one z and one row:
    derivatives tell which.
    """
    point = torch.zeros_like(target)
    middle, reach = z if node.weight is None else point, point
    w = b = None
    if node.weight is not None:
        w = where.box(node.weight)
        middle, reach = node.apply(z, _centre(w)), node.apply(z.abs(), _radius(w))
    if node.bias is not None:
        b = where.box(node.bias)
        middle, reach = middle + node.spread(_centre(b)), reach + node.spread(_radius(b))
    s = torch.where(reach > 0, (target - middle) / torch.where(reach > 0, reach, 1.0), 0.0).clamp(-1, 1)
    if free is not None:
        s = torch.where(free, 0.0, s)
    found: dict[str, Tensor] = {}
    if w is not None and isinstance(node.weight, str) and where.moves(node.weight):
        sign = vjp(partial(node.apply, z), w.lo)[1](torch.ones_like(s))[0].sign()
        row = vjp(partial(node.apply, torch.ones_like(z)), w.lo)[1](s)[0]
        found[node.weight] = _centre(w) + row * sign * _radius(w)
    if b is not None and isinstance(node.bias, str) and where.moves(node.bias):

        def bias(t: Tensor) -> Tensor:
            return node.spread(t).expand(s.shape)

        row = vjp(bias, b.lo)[1](s)[0]
        found[node.bias] = _centre(b) + row * _radius(b)
    return found


def _centre(box: Interval) -> Tensor:
    return (box.lo + box.hi) / 2


def _radius(box: Interval) -> Tensor:
    return (box.hi - box.lo) / 2
