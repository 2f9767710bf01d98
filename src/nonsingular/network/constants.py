"""constants.py - whether it can be said what a network computes in a type that it is deployed in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.graph import Graph, precise
from nonsingular.network.network import Network, twin
from nonsingular.network.nodes import Activation, Map, Node, Product, Sum
from nonsingular.network.precision import CLOSE, Precision
from nonsingular.network.tracing import PROBES, record


def check_deployable(network: Network, graph: Graph, shape: Sequence[int]) -> None:
    """Raises UnsupportedModel, with the node, where nothing is known of the rounding of a deployed network."""
    kind = None if network.floats is None else network.floats.deployed
    if kind is not None:
        network.once(("deployable", kind.name, tuple(shape)), lambda: _check(network, graph, kind, tuple(shape)))


def _check(network: Network, graph: Graph, kind: Precision, shape: tuple[int, ...]) -> None:
    if graph.head is not None:
        raise UnsupportedModel(
            f"no rule for the rounding of {graph.head} in {kind.name}, which can make classes equal; certify the logits under it"
        )
    for node in graph.nodes:
        if isinstance(node, Map) and node.terms is None:
            raise UnsupportedModel(f"no rule for the rounding of node '{node.name}' in {kind.name}: it computes its coefficients")
        if isinstance(node, Activation) and node.curve is not None and node.curve.rounds is None:
            raise UnsupportedModel(f"no rule for the rounding of node '{node.name}' in {kind.name}: its error is not known")
    for ours, theirs in zip(graph.nodes, _recorded(network, kind, shape, len(graph.nodes)), strict=True):
        _compare(ours, theirs, kind)


def _recorded(network: Network, kind: Precision, shape: tuple[int, ...], count: int) -> Sequence[Node]:
    """The nodes of the network in the deployed type."""
    moved: nn.Module = twin(precise(network, kind.dtype).inner)
    first = next(iter(network.parameters()), torch.empty(0))
    x = torch.randn(PROBES, *shape, generator=torch.Generator(first.device).manual_seed(0), device=first.device)
    try:
        with torch.inference_mode(False), torch.no_grad():
            nodes = record(moved, x.to(kind.dtype)).nodes
    except Exception as e:  # whatever the user's own forward, or torch, raises in that type
        raise UnsupportedModel(f"the model cannot be recorded in {kind.name}: {e}") from e
    if len(nodes) != count:
        raise UnsupportedModel(f"in {kind.name} the model calls other operations than in its own type")
    return nodes


def _compare(ours: Node, theirs: Node, kind: Precision) -> None:
    if type(ours) is not type(theirs) or ours.inputs != theirs.inputs or ours.shape != theirs.shape:
        raise UnsupportedModel(f"at node '{ours.name}' the model calls another operation in {kind.name} than in its own type")
    for a, b in zip(_constants(ours), _constants(theirs), strict=True):
        a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
        if a.shape != b.shape or not bool(((a - b).abs() <= CLOSE * kind.unit * a.abs() + kind.least).all()):
            raise UnsupportedModel(
                f"at node '{ours.name}' a constant that the forward computes is off by more than {CLOSE} roundings in "
                f"{kind.name}; compute it once and keep it in a buffer"
            )


def _constants(node: Node) -> list[Tensor | float]:
    if isinstance(node, Sum):
        return [*node.factors, node.offset]
    if isinstance(node, Product):
        return [p for p in (node.weight, node.bias) if isinstance(p, Tensor)]
    return []
