"""graph.py - what a model computes, read off the module: its logits at a perturbation, its graph of operations with the
parameters as named inputs, and the chain of layers of a dense network.

Nothing here, and nothing that uses it, writes into the user's module.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.calling import aliases, duplicate, logits_of_each, outputs, products, twin
from nonsingular.network.memory import halving
from nonsingular.network.one_logit import HEAD, OneLogit
from nonsingular.network.operators import Head, Node, Product
from nonsingular.network.passes import count
from nonsingular.network.tracing import PROBES, Casts, Recorded, record
from nonsingular.threat.ball import Interval, JointBall, Perturbation, Radius


@contextmanager
def recording() -> Generator[None]:
    """Gradients on, whatever mode the caller is in (`no_grad`, `inference_mode`)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def threads(n: int) -> Generator[None]:
    """So many threads of torch while it lasts.  Raises InvalidInput below 1."""
    if n < 1:
        raise InvalidInput(f"threads is {n}; give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def logits_at(model: nn.Module, point: Perturbation, chunk: int = 1024) -> Tensor:
    """(B, K) logits of `model` at a perturbed input with the perturbed weights written out: verdicts are taken from these."""
    moving = twin(model)
    own = point.scope == "sample" and bool(point.weights)
    if not own:
        params = dict(moving.named_parameters())
        with torch.no_grad():
            for name, w in point.weights.items():
                params[name].copy_(w)
    each = logits_of_each(moving)

    def run(size: int) -> Tensor:
        count(forward=len(point.x))
        if not own:  # a copy: the model's first operation may work in place
            return torch.cat([outputs(moving, part.clone()) for part in point.x.split(size)])
        parts = (slice(i, i + size) for i in range(0, max(1, len(point.x)), size))
        return torch.cat([each({n: w[at] for n, w in point.weights.items()}, point.x[at]) for at in parts])

    with torch.no_grad(), products("highest"):
        return halving(run, chunk)


# --- dense networks -------------------------------------------------------------------------------------------------------

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Dense:
    """A network z -> rho(W^k z + b^k), k = 1..L, without rho on the last layer.

    The first z is the input, flat, after fixed scalings if the model begins with some.
    Weights and biases are the model's own tensors, not copies.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    weight_names: tuple[str, ...]
    bias_names: tuple[str | None, ...]
    activation: Activation
    params: Mapping[str, Tensor]
    """All parameters of the module, by name."""
    scalings: tuple[Activation, ...] = ()
    """What is done to the input before the first layer: fixed elementwise affine maps, as (x - mean) / std, and flattening."""
    stretch: float = 1.0
    """How much these widen a distance at most: |enter(x') - enter(x)| <= stretch |x' - x|, elementwise."""
    from_one: Tensor | None = None
    """(2, 1) of a network with one logit z: its logits are from_one z.  None: the last layer's outputs are the logits."""

    def enter(self, x: Tensor) -> Tensor:
        """(B, d) what the first layer sees of the inputs (B, *input)."""
        for scaling in self.scalings:
            x = scaling(x)
        return x.flatten(1)

    def __call__(self, x: Tensor) -> Tensor:
        z = self.enter(x)
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z = self.activation(F.linear(z, W, b))
        return self.out(F.linear(z, self.weights[-1], self.biases[-1]))

    def out(self, z: Tensor) -> Tensor:
        """(B, K) logits of the last layer's outputs."""
        return z if self.from_one is None else F.linear(z, self.from_one)

    @property
    def classes(self) -> int:
        """K."""
        return len(self.weights[-1] if self.from_one is None else self.from_one)

    def worst_outputs(self, y: Tensor) -> Tensor:
        """(B, d_L) of the last layer's outputs, the direction, 1 or -1, that lowers all margins of y at once."""
        W = self.weights[-1]
        if self.from_one is None:
            return W.new_ones(len(y), len(W)).scatter_(1, y[:, None], -1.0)
        return (self.from_one.sum(0) - 2 * self.from_one[y]).sign()  # the margin of y is (row y - the other) z

    def widened(self, distance: Tensor) -> Tensor:
        """(B, d) how far apart the first layer sees two inputs that are apart by `distance` (B, *input) >= 0, elementwise."""
        for scaling in self.scalings:
            if not (isinstance(scaling, partial) and scaling.args[0] in _OFFSETS):
                distance = scaling(distance).abs()
        return distance.flatten(1)

    def radii(self, ball: JointBall) -> tuple[list[Radius], list[Radius]]:
        """Radius of each layer's weight and of each layer's bias; 0.0 for what does not move."""
        r = ball.radii(self.params)
        return [r.get(n, 0.0) for n in self.weight_names], [r.get(n, 0.0) if n else 0.0 for n in self.bias_names]


# Non-negative, monotone and 1-Lipschitz: what Theorem 1 asks of rho.
_ACTIVATIONS: dict[Any, Activation] = {
    F.relu: F.relu, torch.relu: F.relu, "relu": F.relu, F.relu6: F.relu6, F.hardtanh: F.relu6,
    torch.sigmoid: torch.sigmoid, F.sigmoid: torch.sigmoid, "sigmoid": torch.sigmoid,
}  # fmt: skip
_RESHAPES = {torch.flatten, "flatten", "view", "reshape", torch.reshape}
_OFFSETS = {operator.add, operator.sub}
_SCALINGS = {*_OFFSETS, operator.mul, operator.truediv}


class _Tracer(fx.Tracer):
    """Traces through every module, so that module and functional forms give the same nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._NormBase)  # pyright: ignore[reportPrivateUsage]  # branches on its input


def trace(model: nn.Module) -> fx.Graph:
    """The graph of `model` without leaf modules.  Tracing runs the model's own Python: give it a copy.

    Of a OneLogit it is that of its inner network, without what makes (B,) of its (B, 1) at the end.
    Raises UnsupportedModel if torch.fx cannot follow its forward.
    """
    if isinstance(model, OneLogit):
        return unflattened(trace(model.inner)) if model.flat else trace(model.inner)
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage]
    if any(getattr(hook, "func", hook) not in (_enter_casts, _leave_casts) for hook in hooks):
        raise UnsupportedModel("the model has forward hooks, which tracing would miss; remove them, or make them part of forward")
    try:
        return _Tracer().trace(model)
    except Exception as e:
        raise UnsupportedModel(f"torch.fx cannot trace this model: {str(e).splitlines()[0]}") from e


_RESHAPED = {*_RESHAPES, "squeeze", torch.squeeze, "select", torch.select, operator.getitem, "ravel", torch.ravel}


def unflattened(graph: fx.Graph) -> fx.Graph:
    """The same without the reshaping at its end, which turns one number of each example, (B, 1), into (B,)."""
    (out,) = (node for node in graph.nodes if node.op == "output")
    (value,) = out.args
    while isinstance(value, fx.Node) and value.target in _RESHAPED and isinstance(value.args[0], fx.Node):
        value = value.args[0]
    last, out.args = out.args[0], (value,)
    while last is not value and not last.users:
        before = last.args[0]
        graph.erase_node(last)
        last = before
    return graph


def dense_chain(model: nn.Module | Dense) -> Dense:
    """Reads a network of dense layers with one activation between them off `model`; a Dense is returned as it is.

    Flatten, Identity and Dropout in eval mode are allowed on the way, and before the first layer sums, differences, products and
    quotients with numbers and buffers (`Normalized`).  Costs one trace (milliseconds): keep the result in a loop.
    Raises UnsupportedModel, which names the node and the operation, for anything else.
    """
    if isinstance(model, Dense):
        return model
    params = dict(model.named_parameters())
    replica = duplicate(model)
    names = {id(p): name for name, p in replica.named_parameters()}
    layers: list[tuple[str, str | None]] = []
    """Names of weight and bias."""
    activations: list[Activation] = []
    scalings: list[Activation] = []
    stretch = 1.0
    current: fx.Node | None = None  # the node that carries the signal
    after_linear = False

    def parameter(arg: Any, node: fx.Node) -> str:
        value = _attribute(replica, arg.target) if isinstance(arg, fx.Node) and arg.op == "get_attr" else None
        if value is None or id(value) not in names:
            raise UnsupportedModel(
                f"the weight at node '{node}' is computed, not a parameter; merge it into a plain Linear first"
            )
        return names[id(value)]

    def refusal(node: fx.Node | None, why: str) -> UnsupportedModel:
        assert node is not None
        target: Any = type(_attribute(replica, node.target)) if node.op == "call_module" else node.target
        return UnsupportedModel(f"no rule for {getattr(target, '__name__', target)} at node '{node}': {why}")

    for node in trace(replica).nodes:
        args = _arguments(node)
        if node.op in ("placeholder", "get_attr", "output") or _is_size(node):
            if node.op == "placeholder" and current is not None and node.users:
                raise UnsupportedModel(f"a dense network has one input; this model has another: '{node}'")
            if node.op == "placeholder" and current is None:
                current = node
            if node.op == "output" and args[0] is not current:
                raise UnsupportedModel(f"the model returns {args[0]}, not the logits of its last layer")
            continue
        if (args[0] if args else None) is not current:
            raise refusal(node, "it does not follow the layer before it")
        if node.target is F.linear:
            if after_linear:
                raise refusal(node, "two Linear layers follow each other with no activation between them")
            bias = args[2] if len(args) > 2 else None
            layers.append((parameter(args[1], node), None if bias is None else parameter(bias, node)))
            after_linear = True
        elif node.target in _ACTIVATIONS and after_linear:
            if node.target is F.hardtanh and tuple(args[1:3]) != (0.0, 6.0):
                raise refusal(node, "hardtanh is only known as ReLU6")
            activations.append(_ACTIVATIONS[node.target])
            after_linear = False
        elif node.target in _RESHAPES and not layers:
            if not _flattens(node, args):
                raise refusal(node, "only a flattening of all but the first dimension is known")
            scalings.append(_flat)
        elif node.target in _SCALINGS and not layers and (constant := _constant(replica, args)) is not None:
            scalings.append(partial(_applied, node.target, (constant,)))
            stretch *= _stretch(node.target, constant)
        elif not layers and _permutes(node, args):
            scalings.append(partial(_applied, node.target, tuple(args[1:])))
        elif node.target is F.dropout and not args[2]:
            pass
        else:
            raise refusal(node, "a dense network is Linear, activation, Linear, ..., Linear")
        current = node
    if not layers:
        raise UnsupportedModel("the model has no Linear layer; a dense network needs one")
    if not after_linear:
        raise refusal(current, "a dense network ends with a Linear layer")
    if len(set(activations)) > 1:
        raise UnsupportedModel("the layers have different activations; a dense network has one")
    outer = params[layers[-1][0]].detach()
    if isinstance(model, OneLogit) and len(outer) != 1:
        raise refusal(current, f"the network has one logit, and its last Linear layer {len(outer)} outputs")
    return Dense(
        weights=tuple(params[W] for W, _ in layers),
        biases=tuple(None if b is None else params[b] for _, b in layers),
        weight_names=tuple(W for W, _ in layers),
        bias_names=tuple(b for _, b in layers),
        activation=activations[0] if activations else F.relu,
        params=params,
        scalings=tuple(scalings),
        stretch=stretch,
        from_one=outer.new_tensor(HEAD) if len(outer) == 1 else None,
    )


def _is_size(node: fx.Node) -> bool:
    """Whether a node reads a shape, or a number of one."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op != "placeholder" and _is_size(source)
    return node.target in ("size", "dim", len) or (node.target is getattr and node.args[1] in ("shape", "ndim"))


def _constant(replica: nn.Module, args: list[Any]) -> Tensor | float | None:
    """The second operand, if it is a number or a buffer."""
    if len(args) != 2:
        return None
    value = _attribute(replica, args[1].target) if isinstance(args[1], fx.Node) and args[1].op == "get_attr" else args[1]
    if isinstance(value, nn.Parameter | bool) or not isinstance(value, Tensor | int | float):
        return None
    return value


def _permutes(node: fx.Node, args: list[Any]) -> bool:
    """Whether a node moves dimensions other than the batch, as `Normalized` does to bring channels to the end."""
    if node.kwargs or len(args) < 2:
        return False
    if node.target in ("transpose", torch.transpose):
        return all(isinstance(dim, int) and (dim == -1 or dim >= 1) for dim in args[1:])
    order: Any = args[1] if len(args) == 2 else args[1:]
    return node.target in ("permute", torch.permute) and isinstance(order, list | tuple) and order[0] == 0


def _applied(operation: Any, rest: tuple[Any, ...], x: Tensor) -> Tensor:
    return getattr(x, operation)(*rest) if isinstance(operation, str) else operation(x, *rest)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _stretch(apply: Any, constant: Tensor | float) -> float:
    """The largest factor of z -> apply(z, constant)."""
    size = torch.as_tensor(constant).abs()
    return float(size.amax()) if apply is operator.mul else float((1 / size).amax()) if apply is operator.truediv else 1.0


def _arguments(node: fx.Node) -> list[Any]:
    """Positional arguments, with keywords put in their places."""
    order = {
        F.linear: ("input", "weight", "bias"),
        F.dropout: ("input", "p", "training"),
        F.hardtanh: ("input", "min_val", "max_val"),
    }
    names = order.get(node.target, ("input",))  # type: ignore[arg-type]
    return [*node.args, *(node.kwargs[k] for k in names[len(node.args) :] if k in node.kwargs)]


def _attribute(model: nn.Module, path: Any) -> Any:
    for part in str(path).split("."):
        model = getattr(model, part)
    return model


def _flattens(node: fx.Node, args: list[Any]) -> bool:
    """Whether a reshaping node turns (B, ...) into (B, d)."""
    if node.target in (torch.flatten, "flatten"):
        start, end = [*args[1:], *([0, -1][len(args) - 1 :])]
        return (node.kwargs.get("start_dim", start), node.kwargs.get("end_dim", end)) == (1, -1)
    sizes: Any = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    if len(sizes) != 2:
        return False
    keeps_batch = isinstance(sizes[0], fx.Node) and sizes[1] == -1  # x.view(x.shape[0], -1)
    return keeps_batch or (sizes[0] == -1 and isinstance(sizes[1], int) and sizes[1] > 0)  # x.view(-1, 784)


# --- any network whose operations are known -------------------------------------------------------------------------------

POINTS = 16
"""Examples at which a graph and its module are compared with moved inputs and weights."""


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
        values = [x]
        for node in self.nodes[1:]:
            z = [values[i] for i in node.inputs]
            if isinstance(node, Product):
                y = z[0] if node.weight is None else node.apply(z[0], self.value(node.weight))
                values.append(y if node.bias is None else y + node.spread(self.value(node.bias)))
            else:
                values.append(cast(Any, node).apply(*z))
        return values[-1]

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


@dataclass(frozen=True, eq=False)
class _Kept:
    """Of a copy that nobody changes: its graphs by input shape, and what it was copied from, in that one's own type."""

    graphs: dict[tuple[int, ...], Graph]
    original: nn.Module | None
    dtype: torch.dtype


_KEPT: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def precise(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A `twin` in another floating-point type, of which nothing may be changed: its graph is read once.

    Casts in its forward to the type of the model's own weights, or to a wider one, become casts to `dtype`.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel(
            "the model is TorchScript, whose operations cannot be recorded; give the module that it was made from"
        )
    kinds = {p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()}
    moved, original, own = twin(model).to(dtype), None, dtype
    if kinds - {dtype}:
        original, own = twin(model), max(kinds, key=lambda kind: torch.finfo(kind).eps)
        moved.register_forward_pre_hook(partial(_enter_casts, own, dtype))
        moved.register_forward_hook(_leave_casts, always_call=True)
    _KEPT[moved] = _Kept({}, original, own)
    return moved


_ACTIVE: list[Casts] = []


def _enter_casts(own: torch.dtype, dtype: torch.dtype, module: nn.Module, args: Any) -> None:
    _ACTIVE.append(Casts(own, dtype))
    _ACTIVE[-1].__enter__()


def _leave_casts(module: nn.Module, args: Any, result: Any) -> None:
    _ACTIVE.pop().__exit__(None, None, None)


def trace_graph(model: nn.Module, example_shape: Sequence[int]) -> Graph:
    """Reads the operations of `model` on inputs of shape (B, *example_shape); see network/operators.py for those that are known.

    The graph is compared with the model on random inputs, one at a time, and with moved weights.  Never changes `model`.
    Cost: four forward passes of PROBES examples, and about 30 microseconds an operation.
    Raises InvalidInput for BatchNorm or Dropout in train mode, UnsupportedModel, with node and operation, for what has no rule.
    """
    shape = tuple(example_shape)
    kept = _KEPT.get(model)
    if kept is not None and shape in kept.graphs:
        return kept.graphs[shape]
    replica = twin(model)
    params = {name: p.detach() for name, p in model.named_parameters()}
    first = next((t for t in [*params.values(), *replica.buffers()] if t.is_floating_point()), torch.empty(0))
    generator = torch.Generator(first.device).manual_seed(0)
    x, other = torch.randn(2, PROBES, *shape, generator=generator, dtype=first.dtype, device=first.device)
    with torch.inference_mode(False), torch.no_grad():
        found = _recorded(replica, x.clone())
        logits = _run(replica, x.clone())
        graph = Graph(found.nodes, params, found.head)
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
        _compare(replace(graph, params={**params, **moved}).outputs(other[:-1]), _moved(replica, moved, other[:-1]))
    if kept is not None:
        kept.graphs[shape] = graph
    return graph


def lower_outputs(model: nn.Module, x: Tensor, lower: Tensor) -> Tensor:
    """(B, K) lower margins of what `model` returns, from `lower` margins of its logits: they differ if it ends in a softmax."""
    try:
        return trace_graph(model, x.shape[1:]).lower_outputs(lower)
    except UnsupportedModel:  # a bound that needs no graph, of a dense network
        return lower


def check_graph(graph: Graph, model: nn.Module, x: Interval, boxes: Mapping[str, Interval], at: Tensor) -> None:
    """Compares a graph with its module at the examples `at` (B, *input) and, for POINTS of these, at points of their ball.

    x: their input boxes.  boxes: of the parameters that move.  The points: corners of all boxes, and points within.
    Raises UnsupportedModel where they differ by more than rounding.  Cost: two forward passes of the examples, four of POINTS.
    """

    def ours(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return replace(graph, params={**graph.params, **weights}).outputs(x)

    _check(ours, model, x, boxes, at)


def check_chain(net: Dense, model: nn.Module | Dense, x: Tensor, ball: JointBall) -> None:
    """As `check_graph`, for the chain of a dense network and the examples x (B, *input) of a ball."""
    if isinstance(model, Dense):
        return

    def ours(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = tuple(weights.get(n, w) for n, w in zip(net.weight_names, net.weights, strict=True))
        shifted = tuple(b if n is None else weights.get(n, b) for n, b in zip(net.bias_names, net.biases, strict=True))
        return replace(net, weights=moved, biases=shifted)(x)

    _check(ours, model, ball.input_box(x.detach()), ball.weight_boxes(net.params), x.detach())


def _check(
    ours: Callable[[Mapping[str, Tensor], Tensor], Tensor],
    model: nn.Module,
    x: Interval,
    boxes: Mapping[str, Interval],
    at: Tensor,
) -> None:
    if not len(at):
        return
    kept = _KEPT.get(model)
    still = twin(model) if kept is None else model
    generator = torch.Generator(at.device).manual_seed(len(at))
    few = torch.linspace(0, len(at) - 1, POINTS, device=at.device).long()  # of few examples each several times

    def some(box: Interval, corner: bool) -> Tensor:
        u = torch.rand(box.lo.shape, generator=generator, dtype=box.lo.dtype, device=box.lo.device)
        return torch.where(u < 0.5, box.lo, box.hi) if corner else torch.lerp(box.lo, box.hi, u)

    with torch.inference_mode(False), torch.no_grad():
        _compare(ours({}, at), still(at.clone()))
        if kept is not None and kept.original is not None:  # where its forward depends on the type of its inputs
            theirs = kept.original(at[few].to(kept.dtype))
            _compare(ours({}, at[few]), theirs.to(at.dtype), torch.finfo(kept.dtype).eps ** 0.25)
        for corner in (True, False):
            point = some(Interval(x.lo[few], x.hi[few]), corner)
            if corner:
                point[0], point[-1] = x.lo[few[0]], x.hi[few[-1]]
            weights = {n: some(box, corner) for n, box in boxes.items()}
            _compare(ours(weights, point), _moved(still, weights, point))


def _moved(replica: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(B, K) the module's own outputs with other weights, all examples at once."""
    moved = {place: weights[name] for place, name in aliases(replica).items() if name in weights}
    return functional_call(replica, moved, (x.clone(),), tie_weights=False)


def _compare(ours: Tensor, theirs: Tensor, close: float | None = None) -> None:
    """Raises UnsupportedModel if a graph's outputs are not its module's, but for rounding: `close`, relative to the largest."""
    limit = close or float(torch.finfo(theirs.dtype).eps) ** 0.5
    if ours.shape == theirs.shape:
        finite = torch.isfinite(theirs).all(1) & torch.isfinite(ours).all(1)  # what overflows is no bound
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
    except Exception as e:  # whatever the user's own forward raises
        raise UnsupportedModel(f"the model does not accept inputs of shape {tuple(x.shape)}: {e}") from e


def _run(model: nn.Module, x: Tensor) -> Tensor:
    try:
        y = model(x)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as e:
        raise UnsupportedModel(f"the model does not accept inputs of shape {tuple(x.shape)}: {e}") from e
    if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x):
        raise UnsupportedModel("the model does not return one (B, K) tensor of logits")
    return y
