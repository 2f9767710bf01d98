"""graph.py - what a model computes, read off the module: its perturbable copy, and the chain of layers of a dense network.

Nothing here, and nothing that uses it, writes into the user's module.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.threat import JointBall, Perturbation


@contextmanager
def recording() -> Generator[None]:
    """Gradients on, whatever mode the caller is in (`no_grad`, `inference_mode`)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def duplicate(model: nn.Module) -> nn.Module:
    """A copy of `model`.  Raises UnsupportedModel if copy.deepcopy refuses it."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as e:
        raise UnsupportedModel(
            f"the model cannot be copied ({e}); make computed weights permanent (e.g. prune.remove) first"
        ) from e


def twin(model: nn.Module) -> nn.Module:
    """A copy of `model` that attacks may move; its parameters ask for no gradient.

    Raises InvalidInput in train mode if the model has BatchNorm or Dropout (its output would depend on the batch or on chance),
    and if the model cannot be copied.
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]
            raise InvalidInput(f"the model is in train mode and has {type(module).__name__} at '{name}'; call model.eval() first")
    return duplicate(model).requires_grad_(False)


def aliases(model: nn.Module) -> dict[str, str]:
    """Every place of a parameter -> its name in `named_parameters()`.  Tied weights have several places and one name."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{path}.{key}" if path else key: names[id(p)]
        for path, module in model.named_modules()
        for key, p in module._parameters.items()  # pyright: ignore[reportPrivateUsage]
        if p is not None
    }


def per_sample_logits(copy_of_model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """(weights of one example, one input) -> (K,) logits, fit for `vmap`.  Takes a `twin`."""
    places = aliases(copy_of_model)

    def logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        moved = {place: weights[name] for place, name in places.items() if name in weights}
        # places are listed one by one, so functional_call must not tie them again: with a submodule under two names it
        # would not restore the weights (torch 2.13)
        return functional_call(copy_of_model, moved, (x[None],), tie_weights=False)[0]

    return logits


def logits_at(model: nn.Module, point: Perturbation, chunk: int = 1024) -> Tensor:
    """(B, K) logits of `model` at a perturbed input with the perturbed weights written out in full."""
    moving = twin(model)
    with torch.no_grad():
        if point.scope == "sample" and point.weights:
            return vmap(per_sample_logits(moving), randomness="different")(dict(point.weights), point.x)
        params = dict(moving.named_parameters())
        for name, w in point.weights.items():
            params[name].copy_(w)
        return torch.cat([moving(part.clone()) for part in point.x.split(chunk)])  # its first operation may work in place


# --- dense networks -------------------------------------------------------------------------------------------------------

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Dense:
    """A network z -> rho(W^k z + b^k), k = 1..L, without rho on the last layer.  Tensors are the model's own, not copies."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    weight_names: tuple[str, ...]
    bias_names: tuple[str | None, ...]
    activation: Activation
    params: Mapping[str, Tensor]
    """All parameters of the module, by name."""

    def __call__(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            z = self.activation(F.linear(z, W, b))
        return F.linear(z, self.weights[-1], self.biases[-1])

    def radii(self, ball: JointBall) -> tuple[list[float], list[float]]:
        """Radius of each layer's weight and of each layer's bias."""
        r = ball.radii(self.params)
        return [r.get(n, 0.0) for n in self.weight_names], [r.get(n, 0.0) if n else 0.0 for n in self.bias_names]


# Non-negative, monotone and 1-Lipschitz: what Theorem 1 asks of rho.
_ACTIVATIONS: dict[Any, Activation] = {
    F.relu: F.relu, torch.relu: F.relu, "relu": F.relu, F.relu6: F.relu6, F.hardtanh: F.relu6,
    torch.sigmoid: torch.sigmoid, F.sigmoid: torch.sigmoid, "sigmoid": torch.sigmoid,
}  # fmt: skip
_RESHAPES = {torch.flatten, "flatten", "view", "reshape", torch.reshape}
_SIZES = {"size", getattr, len, operator.getitem}


class _Tracer(fx.Tracer):
    """Traces through every module, so that module and functional forms give the same nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.modules.batchnorm._NormBase)  # pyright: ignore[reportPrivateUsage]  # branches on its input


def trace(model: nn.Module) -> fx.Graph:
    """The graph of `model` without leaf modules.  Tracing runs the model's own Python: give it a copy.

    Raises UnsupportedModel if torch.fx cannot follow its forward.
    """
    if model._forward_hooks or model._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
        raise UnsupportedModel("the model has forward hooks, which tracing would miss; remove them, or make them part of forward")
    try:
        return _Tracer().trace(model)
    except Exception as e:
        raise UnsupportedModel(f"torch.fx cannot trace this model: {str(e).splitlines()[0]}") from e


def dense_chain(model: nn.Module | Dense) -> Dense:
    """Reads a network of dense layers with one activation between them off `model`; a Dense is returned as it is.

    Flatten, Identity and Dropout in eval mode are allowed on the way.  Costs one trace (milliseconds): keep the result in a loop.
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
        if node.op in ("placeholder", "get_attr", "output") or node.target in _SIZES:
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
    return Dense(
        weights=tuple(params[W] for W, _ in layers),
        biases=tuple(None if b is None else params[b] for _, b in layers),
        weight_names=tuple(W for W, _ in layers),
        bias_names=tuple(b for _, b in layers),
        activation=activations[0] if activations else F.relu,
        params=params,
    )


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
