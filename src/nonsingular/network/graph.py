"""graph.py - what a model computes, read off the module: its graph of operations, with the parameters as named inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.calling import held_at
from nonsingular.network.calls import Head
from nonsingular.network.casts import enter_casts, leave_casts
from nonsingular.network.dense import Dense
from nonsingular.network.network import Network, network_of, twin
from nonsingular.network.nodes import Node, Product, Rounded
from nonsingular.network.one_logit import unwrapped
from nonsingular.network.rounded import unrounded
from nonsingular.network.tracing import PROBES, Recorded, record
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.radius import Radius, Side, ends

POINTS = 16
"""Examples at which a graph and its module are compared with moved inputs and weights."""
KEPT = 16
"""Checked balls of weights that are remembered; none of them lies in another."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as typed nodes in the order of computation; the first is its input, the last its (K,) logits.

    params: all parameters of the module by name, detached; a tied tensor has one name and is used by several nodes.
    head: the module returns the softmax or log_softmax of these logits.
    """

    nodes: tuple[Node, ...]
    params: Mapping[str, Tensor]
    head: Head | None = None

    def value(self, parameter: str | Tensor) -> Tensor:
        """The tensor behind a parameter of a node."""
        return self.params[parameter] if isinstance(parameter, str) else parameter

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) logits."""
        return self.values(x)[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """The output (B, *shape) of every node."""
        values = [x]
        for node in self.nodes[1:]:
            z = [values[i] for i in node.inputs]
            if isinstance(node, Product):
                y = z[0] if node.weight is None else node.apply(z[0], self.value(node.weight))
                values.append(y if node.bias is None else y + node.spread(self.value(node.bias)))
            else:
                values.append(cast(Any, node).apply(*z))
        return values

    def outputs(self, x: Tensor) -> Tensor:
        """(B, K) what the module returns."""
        logits = self(x)
        return logits if self.head is None else logits.log_softmax(1) if self.head == "log_softmax" else logits.softmax(1)

    def lower_outputs(self, lower: Tensor) -> Tensor:
        """(B, K) lower margins of what the module returns, from `lower` margins of its logits, column y 0.

        log_softmax: the same.  softmax: with m_j >= l_j the margins of the logits, p_y = 1 / (1 + sum_j exp(-m_j)) grows with
        each m_j, and p_y - p_j = p_y (1 - exp(-m_j)).  For l_j >= 0 both factors are least at l.  Otherwise p_y is at most
        1 / (1 + exp(-m_j)), so where the second factor is negative the product is at least tanh(m_j / 2), which grows with m_j.
        """
        if self.head != "softmax":
            return lower
        p_y = 1 / (-lower).exp().sum(1, keepdim=True)  # column y counts 1
        return torch.where(lower >= 0, p_y * -torch.expm1(-lower), (lower / 2).tanh())


def precise(model: nn.Module, dtype: torch.dtype) -> Network:
    """The network in another floating-point type; itself, if all of it has that type.

    Casts in its forward to the type of the model's own weights, or to a wider one, become casts to `dtype`.
    Raises UnsupportedModel for TorchScript.
    """
    network = network_of(model)
    return network.once(("precise", dtype), lambda: _precise(network, dtype))


def _precise(network: Network, dtype: torch.dtype) -> Network:
    if isinstance(unwrapped(network)[0], torch.jit.ScriptModule):
        raise UnsupportedModel(
            "the model is TorchScript, whose operations cannot be recorded; give the module that it was made from"
        )
    kinds = {p.dtype for p in [*network.parameters(), *network.buffers()] if p.is_floating_point()}
    if not kinds - {dtype}:
        return network
    moved, own = twin(network.inner).to(dtype), max(kinds, key=lambda kind: torch.finfo(kind).eps)
    module, _ = unwrapped(moved)
    module.register_forward_pre_hook(partial(enter_casts, own, dtype))
    module.register_forward_hook(leave_casts, always_call=True)
    return _Cast(moved, network, own)


class _Cast(Network):
    """A network in another type.  original: the network before the cast, of the type `own`."""

    def __init__(self, inner: nn.Module, original: Network, own: torch.dtype) -> None:
        super().__init__(inner, original.told)
        self.keep(original=original, own=own)

    original: Network
    own: torch.dtype


def trace_graph(model: nn.Module, example_shape: Sequence[int]) -> Graph:
    """Reads the operations of `model` on inputs of shape (B, *example_shape); see network/operators.py for those that are known.

    The graph is compared with the model on random inputs, one at a time, and with moved weights.  Never changes `model`.
    Cost: four forward passes of PROBES examples, and about 30 microseconds an operation.
    Raises InvalidInput for BatchNorm or Dropout in train mode, UnsupportedModel, with node and operation, for what has no rule.
    """
    shape, params = tuple(example_shape), {name: p.detach() for name, p in model.named_parameters()}
    if not isinstance(model, Network):
        return _read(twin(model), shape, params)

    def read() -> Graph:
        with model.lent() as replica:
            return _read(replica, shape, params)

    return model.once(("graph", shape), read)


def small_graph(model: nn.Module, example_shape: Sequence[int], most: int) -> Graph:
    """As `trace_graph`, but UnsupportedModel, after one pass, where the values of all nodes for one example are more than `most`.

    A rule may write an operation as much larger ones (the softmax of n numbers as n^2), which suits a bound, not an attack.
    """
    network, shape = network_of(model), tuple(example_shape)

    def read() -> Graph:
        with network.lent() as replica, torch.no_grad():
            (x, _), _ = _probes(replica, shape)
            numbers = sum(torch.Size(node.shape).numel() for node in _recorded(replica, x).nodes)
        if numbers > most:
            raise UnsupportedModel(f"its operations, as their rules write them, hold {numbers:,} numbers for one example")
        return trace_graph(network, shape)

    return network.once(("graph", shape, most), read)


def _probes(replica: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, torch.Generator]:
    """(2, PROBES, *shape) random inputs, and what drew them."""
    first = next((t for t in [*replica.parameters(), *replica.buffers()] if t.is_floating_point()), torch.empty(0))
    generator = torch.Generator(first.device).manual_seed(0)
    return torch.randn(2, PROBES, *shape, generator=generator, dtype=first.dtype, device=first.device), generator


def _read(replica: nn.Module, shape: tuple[int, ...], params: Mapping[str, Tensor]) -> Graph:
    (x, other), generator = _probes(replica, shape)
    with torch.inference_mode(False), torch.no_grad():
        found = _recorded(replica, x.clone())
        graph = Graph(found.nodes, params, found.head)
    with torch.inference_mode(False), torch.no_grad(), _comparable(found.nodes):
        logits = _run(replica, x.clone())
        try:
            alone = torch.cat([graph.outputs(one) for one in x.split(1)])
        except RuntimeError as e:
            raise UnsupportedModel(f"the recorded operations do not work on one example alone: {e}") from e
        _compare(alone, logits)
        with torch.enable_grad():  # as attacks call it
            single = _run(replica, x[:1].clone()).detach()
        _compare(alone[:1], single)
        moved = {
            n: p
            + 0.1 * p.std(correction=0).nan_to_num() * torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
            for n, p in params.items()
            if p.is_floating_point()
        }
        _compare(replace(graph, params={**params, **moved}).outputs(other[:-1]), held_at(replica, moved)(other[:-1].clone()))
    return graph


def lower_outputs(model: nn.Module, x: Tensor, lower: Tensor) -> Tensor:
    """(B, K) lower margins of what `model` returns, from `lower` margins of its logits: they differ if it ends in a softmax."""
    try:
        return trace_graph(model, x.shape[1:]).lower_outputs(lower)
    except UnsupportedModel:  # a bound that needs no graph, of a dense network
        return lower


def _comparable(nodes: Sequence[Node]) -> AbstractContextManager[None]:
    """Where the outputs of graph and module are continuous, so that they differ by rounding errors alone."""
    return unrounded() if any(isinstance(node, Rounded) for node in nodes) else nullcontext()


Ours = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(weights that moved, by name, inputs (B, *input)) -> (B, K) outputs, as they were read off the module."""


def check_graph(graph: Graph, model: nn.Module, x: Tensor, box: Interval, ball: JointBall) -> None:
    """Compares a graph with its module at the examples x (B, *input) and, for POINTS of these, at a point of the ball.

    box: the box of the examples in the ball.  The weights are not moved again if they were for a ball that contains this one.
    Raises UnsupportedModel where the two differ by more than rounding.  Cost: two forward passes of the examples, two of POINTS.
    """

    def ours(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return replace(graph, params={**graph.params, **weights}).outputs(x)

    with _comparable(graph.nodes):
        _check(ours, check_graph, network_of(model), x.detach(), box, ball)


def check_chain(net: Dense, model: nn.Module | Dense, x: Tensor, ball: JointBall) -> None:
    """As `check_graph`, for the chain of a dense network."""
    if isinstance(model, Dense):
        return

    def ours(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = tuple(weights.get(n, w) for n, w in zip(net.weight_names, net.weights, strict=True))
        shifted = tuple(b if n is None else weights.get(n, b) for n, b in zip(net.bias_names, net.biases, strict=True))
        return replace(net, weights=moved, biases=shifted)(x)

    _check(ours, check_chain, network_of(model), x.detach(), ball.input_box(x.detach()), ball)


def _check(ours: Ours, kind: Hashable, still: Network, at: Tensor, box: Interval, ball: JointBall) -> None:
    """kind: which reading is checked (graph or chain); each has its own checked balls."""
    if not len(at):
        return
    generator = torch.Generator(at.device).manual_seed(len(at))
    few = torch.linspace(0, len(at) - 1, POINTS, device=at.device).long()  # with few examples, each several times
    radii = ball.radii(dict(still.named_parameters()))
    before = still.once((kind, at.shape[1:], type(ball)), list[dict[str, Radius]])
    boxes = {} if any(_lies_in(radii, wider) for wider in before) else still.weight_boxes(ball)

    def some(box: Interval) -> Tensor:
        """A point of the box: a quarter of its elements at each end, the others between."""
        first, *others = box.lo.shape or (1,)
        a, b = (
            torch.rand(shape, generator=generator, dtype=box.lo.dtype, device=box.lo.device)
            for shape in ((first, *[1] * len(others)), others)
        )
        u = (a + b).frac_().view_as(box.lo)  # each uniform in [0, 1), from few draws
        return torch.lerp(box.lo, box.hi, u.mul_(2).sub_(0.5).clamp_(0, 1))

    with torch.inference_mode(False), torch.no_grad():
        _compare(ours({}, at), still(at.clone()))
        if isinstance(still, _Cast):  # where its forward depends on the type of its inputs
            theirs = still.original(at[few].to(still.own))
            _compare(ours({}, at[few]), theirs.to(at.dtype), torch.finfo(still.own).eps ** 0.25)
        point, weights = some(Interval(box.lo[few], box.hi[few])), {n: some(moving) for n, moving in boxes.items()}
        point[0], point[-1] = box.lo[few[0]], box.hi[few[-1]]
        _compare(ours(weights, point), held_at(still, weights)(point.clone()))
    if boxes:
        before[:] = [*(narrower for narrower in before if not _lies_in(narrower, radii)), radii][-KEPT:]


def _lies_in(radii: Mapping[str, Radius], wider: Mapping[str, Radius]) -> bool:
    """Whether a box of weights lies in another one around the same weights."""

    def no_larger(a: Side, b: Side) -> bool:
        return a <= b if isinstance(a, float) and isinstance(b, float) else bool((torch.as_tensor(a) <= torch.as_tensor(b)).all())

    return all(
        name in wider and all(no_larger(a, b) for a, b in zip(ends(radius), ends(wider[name]), strict=True))
        for name, radius in radii.items()
    )


def _compare(ours: Tensor, theirs: Tensor, close: float | None = None) -> None:
    """Raises UnsupportedModel if the outputs of graph and module differ by more than `close`, relative to the largest."""
    limit = close or float(torch.finfo(theirs.dtype).eps) ** 0.5
    if ours.shape == theirs.shape:
        finite = torch.isfinite(theirs).all(1) & torch.isfinite(ours).all(1)  # an overflow does not bound anything
        ours, theirs = ours[finite], theirs[finite]
        if not len(ours):
            return
        gap = ((ours - theirs).abs() / (1 + theirs.abs().amax(1, keepdim=True))).max().item()
        if gap <= limit:
            return
    else:
        gap = float("inf")
    raise UnsupportedModel(
        "the traced operations do not give the model's outputs: they differ by "
        f"{gap:.2g} of the largest (more than {limit:.2g}, which rounding explains). Its forward may depend on the values of its "
        "inputs, on their type, on the size or the order of the batch, or on what it was called with before"
    )


def _recorded(replica: nn.Module, x: Tensor) -> Recorded:
    try:
        return record(replica, x)
    except UnsupportedModel:
        raise
    except Exception as e:  # any error of the user's forward
        raise UnsupportedModel(f"the model does not accept inputs of shape {tuple(x.shape)}: {e}") from e


def _run(model: nn.Module, x: Tensor) -> Tensor:
    try:
        y = model(x)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as e:
        raise UnsupportedModel(f"the model does not accept inputs of shape {tuple(x.shape)}: {e}") from e
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x):
        raise UnsupportedModel("the model does not return one (B, K) tensor of logits")
    return y
