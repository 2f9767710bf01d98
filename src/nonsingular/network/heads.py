"""heads.py - the entry of every network: computed weights become parameters, one output for two classes becomes
logits (B, 2)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.calling import recording
from nonsingular.network.copies import check_module, effective, parametrised
from nonsingular.network.dense import trace
from nonsingular.network.network import Network, twin
from nonsingular.network.one_logit import Adapter, OneLogit
from nonsingular.threat.ball import JointBall

LOOKED_AT = 64
"""Examples, and as many far away from these, that distinguish a logit from a probability."""
FAR = 100.0
"""How far away: in multiples of the largest |x|."""
SIGMOIDS = {torch.sigmoid, F.sigmoid, "sigmoid", torch.special.expit}
_TAIL = {"squeeze", "flatten", "view", "reshape", "select", "ravel", torch.squeeze, torch.flatten, torch.reshape, torch.select,
         torch.ravel, operator.getitem}  # fmt: skip
"""What may reshape the one output of each example after a sigmoid."""


def classifier(model: nn.Module, x: Tensor, ball: JointBall | None = None) -> Network:
    """The network of a module, for questions about examples like `x` (B, *input); a Network is returned as it is.

    Weights that parametrisations compute (weight norm, spectral norm, pruning, ...) are parameters of the network returned, under
    their names: a device stores these, and radii move them.  A ball whose eps_w names the raw parameters keeps those.  A module
    that returns one number for each example is seen as a classifier of two classes (one_logit.py).  A sigmoid at the end is left
    out, where the module or its graph shows it: the logit under it counts.
    Raises InvalidInput for a model that is not a module, cannot be copied, is in train mode with BatchNorm or Dropout, or returns
    probabilities of one class without a sigmoid that can be seen.  `check_inputs` reports other faults of its outputs.
    Cost: a copy, and a pass of two examples.
    """
    if isinstance(model, Network):
        return model
    check_module(model)
    with torch.inference_mode(False):
        told = told_of_weights(model, ball)
        still = twin(model if moves_raw(model, ball) else effective(model))
        return Network(_seen(still, still, x), tuple(told))


def two_classes(model: nn.Module, x: Tensor) -> nn.Module:
    """`model` itself, or an adapter around it where it returns one number for each example: not a copy, for training."""
    try:
        still = twin(model)
    except (InvalidInput, UnsupportedModel):  # in train mode, or cannot be copied: reported where the model is used
        return model
    return _seen(model, still, x)


def _seen(model: nn.Module, still: nn.Module, x: Tensor) -> nn.Module:
    """A network with one logit as a classifier of two classes, any other as it is.  still: a copy to run."""
    if isinstance(model, Adapter) or not x.dim() or not len(x):
        return model
    shape = _shape(still, torch.cat([x[:1], x[:1]]))
    if shape not in ((2, 1), (2,)):
        return model
    flat, some = len(shape) == 1, x[:LOOKED_AT]
    if not _probabilities(still, some):
        return OneLogit(model, flat=flat)
    inner = _under_sigmoid(model)
    if inner is None or not _same(still, inner, some):
        raise InvalidInput(
            "the model returns one number for each example, always in [0, 1]: a probability of class 1? An attack needs the "
            "logit; return what goes into the sigmoid, or torch.logit of it"
        )
    return OneLogit(inner.train(model.training), flat=flat)


def moves_raw(model: nn.Module, ball: JointBall | None) -> bool:
    """Whether a ball names parameters from which weights are computed."""
    if ball is None or not isinstance(ball.eps_w, Mapping):
        return False
    return bool(set(ball.eps_w) & set(dict(model.named_parameters())) - set(dict(effective(model).named_parameters())))


def told_of_weights(model: nn.Module, ball: JointBall | None) -> list[str]:
    """Notes about weights that are computed from parameters."""
    computed = parametrised(model)
    if not computed:
        return []
    which = ", ".join(f"'{name}' ({kind})" for name, kind in list(computed.items())[:3]) + (", ..." if len(computed) > 3 else "")
    if moves_raw(model, ball):
        return [f"radii move the raw parameters from which {which} are computed, not these weights themselves"]
    return [
        f"computed weights are moved as what they come to, as a device stores them: {which}; name the raw parameters in eps_w to "
        "move these instead"
    ]


def _shape(still: nn.Module, two: Tensor) -> tuple[int, ...] | None:
    """The shape that the model returns for two examples; None where it fails or returns no tensor."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            out = still(two.clone())
    except Exception:  # any error of the user's forward: check_inputs reports it
        return None
    return tuple(out.shape) if isinstance(out, Tensor) else None


def _probabilities(still: nn.Module, x: Tensor) -> bool:
    """Whether all outputs lie in [0, 1]: for the examples, and for inputs far away on both sides, where a logit would not."""
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(x.shape, generator=generator).to(x) * (FAR * x.abs().max().clamp(min=1.0))
    with torch.no_grad():
        near = still(x.clone())
        try:
            far = torch.cat([still(away), still(-away)])
        except Exception:  # the user's forward may refuse inputs outside its domain
            far = near
    return bool(((near >= 0) & (near <= 1)).all() & ((far >= 0) & (far <= 1)).all())


def _same(still: nn.Module, inner: nn.Module, x: Tensor) -> bool:
    """Whether the model is the sigmoid of `inner`."""
    with torch.no_grad():
        return torch.allclose(still(x.clone()), inner(x.clone()).sigmoid(), rtol=1e-3, atol=1e-4)


def _under_sigmoid(model: nn.Module) -> nn.Module | None:
    """The network without the sigmoid at its end, its parameters under their own names; None if no sigmoid can be seen."""
    if isinstance(model, nn.Sequential) and len(model) and type(model).forward is nn.Sequential.forward:
        return _without_last(model)
    try:
        with recording():
            copy = twin(model)
            graph = trace(copy)
    except UnsupportedModel:
        return None
    (out,) = (node for node in graph.nodes if node.op == "output")
    node: Any = out.args[0]
    while isinstance(node, fx.Node) and node.target in _TAIL:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or node.target not in SIGMOIDS:
        return None
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)
    found = fx.GraphModule(copy, graph)
    _keep_unused(found, copy)
    return found


def _keep_unused(found: nn.Module, model: nn.Module) -> None:
    """Gives `found` the parameters that the graph of `model` does not use, so that all names exist."""
    held = dict(found.named_parameters())
    for name, p in model.named_parameters():
        if name not in held:
            *path, own = name.split(".")
            at = found
            for part in path:
                if part not in at._modules:  # pyright: ignore[reportPrivateUsage]
                    at.add_module(part, nn.Module())
                at = at.get_submodule(part)
            at.register_parameter(own, p)


def _without_last(model: nn.Sequential) -> nn.Module | None:
    """A Sequential of the same modules under the same names without the sigmoid at the end, also within its last Sequential."""
    *names, last = model._modules  # pyright: ignore[reportPrivateUsage]
    kept, end = nn.Sequential(), model._modules[last]  # pyright: ignore[reportPrivateUsage]
    for name in names:
        kept.add_module(name, model._modules[name])  # pyright: ignore[reportPrivateUsage]
    if isinstance(end, nn.Sequential) and len(end):
        inner = _without_last(end)
        if inner is None:
            return None
        kept.add_module(last, inner)
        return kept
    if isinstance(end, nn.Flatten | nn.Identity | nn.Unflatten) and names:
        inner = _without_last(kept)
        if inner is not None:
            inner.add_module(last, end)
        return inner
    return kept if isinstance(end, nn.Sigmoid) else None
