"""dense.py - a dense network as a chain of layers, read off the module."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.casts import enter_casts, leave_casts
from nonsingular.network.copies import duplicate
from nonsingular.network.network import Network
from nonsingular.network.one_logit import HEAD, OneLogit
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius

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
    """The largest factor by which these widen a distance: |enter(x') - enter(x)| <= stretch |x' - x|, elementwise."""
    from_one: Tensor | None = None
    """(2, 1) for a network with one logit z: its logits are from_one z.  None: the last layer's outputs are the logits."""

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

    For a OneLogit: the graph of its inner network, without the reshaping of (B, 1) to (B,) at its end.
    Raises UnsupportedModel if torch.fx cannot follow its forward.
    """
    if isinstance(model, OneLogit):
        return unflattened(trace(model.inner)) if model.flat else trace(model.inner)
    hooks = [*model._forward_hooks.values(), *model._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage]
    if any(getattr(hook, "func", hook) not in (enter_casts, leave_casts) for hook in hooks):
        raise UnsupportedModel("the model has forward hooks, which tracing would miss; remove them, or make them part of forward")
    try:
        return _Tracer().trace(model)
    except Exception as e:
        raise UnsupportedModel(f"torch.fx cannot trace this model: {str(e).splitlines()[0]}") from e


_RESHAPED = {*_RESHAPES, "squeeze", torch.squeeze, "select", torch.select, operator.getitem, "ravel", torch.ravel}


def unflattened(graph: fx.Graph) -> fx.Graph:
    """The same graph without the reshaping at its end, from one number for each example, (B, 1), to (B,)."""
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
    if not isinstance(model, Network):
        return _chain(duplicate(model), dict(model.named_parameters()))

    def read() -> Dense:
        with model.lent() as replica:
            return _chain(replica, dict(model.named_parameters()))

    return model.once(dense_chain, read)


def _chain(replica: nn.Module, params: Mapping[str, Tensor]) -> Dense:
    """The dense network of a module that may be traced, whose parameters have the values `params`."""
    reader = _Reader(replica)
    for node in trace(replica).nodes:
        reader.read(node)
    layers, current = reader.layers, reader.current
    if not layers:
        raise UnsupportedModel("the model has no Linear layer; a dense network needs one")
    if not reader.after_linear:
        raise reader.refusal(current, "a dense network ends with a Linear layer")
    if len(set(reader.activations)) > 1:
        raise UnsupportedModel("the layers have different activations; a dense network has one")
    outer = params[layers[-1][0]].detach()
    if isinstance(replica, OneLogit) and len(outer) != 1:
        raise reader.refusal(current, f"the network has one logit, and its last Linear layer {len(outer)} outputs")
    return Dense(
        weights=tuple(params[W] for W, _ in layers),
        biases=tuple(None if b is None else params[b] for _, b in layers),
        weight_names=tuple(W for W, _ in layers),
        bias_names=tuple(b for _, b in layers),
        activation=reader.activations[0] if reader.activations else F.relu,
        params=params,
        scalings=tuple(reader.scalings),
        stretch=reader.stretch,
        from_one=outer.new_tensor(HEAD) if len(outer) == 1 else None,
    )


class _Reader:
    """Reads a traced graph node by node: `current` carries the signal, and each operation on it has one rule."""

    def __init__(self, replica: nn.Module) -> None:
        self.replica = replica
        self.names = {id(p): name for name, p in replica.named_parameters()}
        self.layers: list[tuple[str, str | None]] = []
        """Names of weight and bias."""
        self.activations: list[Activation] = []
        self.scalings: list[Activation] = []
        self.stretch = 1.0
        self.current: fx.Node | None = None
        self.after_linear = False

    def read(self, node: fx.Node) -> None:
        args = _arguments(node)
        if node.op in ("placeholder", "get_attr", "output") or _is_size(node):
            self._beside(node, args)
            return
        if (args[0] if args else None) is not self.current:
            raise self.refusal(node, "it does not follow the layer before it")
        rules = (self._linear, self._activation, self._reshape, self._scaling, self._permutation, self._dropout)
        if not any(rule(node, args) for rule in rules):
            raise self.refusal(node, "a dense network is Linear, activation, Linear, ..., Linear")
        self.current = node

    def refusal(self, node: fx.Node | None, why: str) -> UnsupportedModel:
        assert node is not None
        target: Any = type(_attribute(self.replica, node.target)) if node.op == "call_module" else node.target
        return UnsupportedModel(f"no rule for {getattr(target, '__name__', target)} at node '{node}': {why}")

    def _beside(self, node: fx.Node, args: list[Any]) -> None:
        """A node that is not an operation on the signal."""
        if node.op == "placeholder" and self.current is not None and node.users:
            raise UnsupportedModel(f"a dense network has one input; this model has another: '{node}'")
        if node.op == "placeholder" and self.current is None:
            self.current = node
        if node.op == "output" and args[0] is not self.current:
            raise UnsupportedModel(f"the model returns {args[0]}, not the logits of its last layer")

    def _parameter(self, arg: Any, node: fx.Node) -> str:
        value = _attribute(self.replica, arg.target) if isinstance(arg, fx.Node) and arg.op == "get_attr" else None
        if value is None or id(value) not in self.names:
            raise UnsupportedModel(
                f"the weight at node '{node}' is computed, not a parameter; merge it into a plain Linear first"
            )
        return self.names[id(value)]

    # each of these returns whether it is the rule for this node

    def _linear(self, node: fx.Node, args: list[Any]) -> bool:
        if node.target is not F.linear:
            return False
        if self.after_linear:
            raise self.refusal(node, "two Linear layers follow each other with no activation between them")
        bias = args[2] if len(args) > 2 else None
        self.layers.append((self._parameter(args[1], node), None if bias is None else self._parameter(bias, node)))
        self.after_linear = True
        return True

    def _activation(self, node: fx.Node, args: list[Any]) -> bool:
        if node.target not in _ACTIVATIONS or not self.after_linear:
            return False
        if node.target is F.hardtanh and tuple(args[1:3]) != (0.0, 6.0):
            raise self.refusal(node, "hardtanh is only known as ReLU6")
        self.activations.append(_ACTIVATIONS[node.target])
        self.after_linear = False
        return True

    def _reshape(self, node: fx.Node, args: list[Any]) -> bool:
        if node.target not in _RESHAPES or self.layers:
            return False
        if not _flattens(node, args):
            raise self.refusal(node, "only a flattening of all but the first dimension is known")
        self.scalings.append(_flat)
        return True

    def _scaling(self, node: fx.Node, args: list[Any]) -> bool:
        if node.target not in _SCALINGS or self.layers or (constant := _constant(self.replica, args)) is None:
            return False
        self.scalings.append(partial(_applied, node.target, (constant,)))
        self.stretch *= _stretch(node.target, constant)
        return True

    def _permutation(self, node: fx.Node, args: list[Any]) -> bool:
        if self.layers or not _permutes(node, args):
            return False
        self.scalings.append(partial(_applied, node.target, tuple(args[1:])))
        return True

    def _dropout(self, node: fx.Node, args: list[Any]) -> bool:
        return node.target is F.dropout and not args[2]


def _is_size(node: fx.Node) -> bool:
    """Whether a node reads a shape or one of its numbers."""
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
