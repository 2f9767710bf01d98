"""exported_words.py - quantised layers in a file of torch.export: its operations `quantized_decomposed`, as torchao writes them.

Whole numbers are held in floats, so that gradients pass straight through the rounding; steps and order are those of torch.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.rounded import rounded

Env = dict[fx.Node, fx.Node]


class Words:
    """Writes the operations on words of one file.  root: the module that holds its constants, which gets the weights."""

    def __init__(self, root: fx.GraphModule, graph: fx.Graph, path: Path) -> None:
        self.root, self.graph, self.path = root, graph, path

    def write(self, name: str, node: fx.Node, env: Env) -> fx.Node:
        z, scale, zero, *rest = node.args
        if name.startswith("dequantize"):
            real = self._constant(z)
            return self._to_real(env[z], scale, zero) if real is None else self._weight(real, node)  # type: ignore[index]
        if not name.endswith("per_tensor") or not isinstance(scale, float) or not isinstance(zero, int):
            raise self._refused(node, "only a signal with one step and one zero point, both constant, is known")
        low, high, kind = rest
        if not isinstance(kind, torch.dtype) or kind.is_floating_point:
            raise self._refused(node, f"its words are {kind}, not whole numbers")
        call = self.graph.call_function
        t = call(operator.mul, (env[z], 1.0 / scale))  # type: ignore[index]
        r = call(rounded, (call(torch.clamp, (t, low - zero, high - zero)),))  # type: ignore[operator]
        return r if zero == 0 else call(operator.add, (r, zero))

    def _to_real(self, q: fx.Node, scale: Any, zero: Any) -> fx.Node:
        if not isinstance(scale, float) or not isinstance(zero, int):
            raise self._refused(q, "only a signal with one step and one zero point, both constant, is known")
        shifted = q if zero == 0 else self.graph.call_function(operator.sub, (q, zero))
        return self.graph.call_function(operator.mul, (shifted, scale))

    def _weight(self, words: Tensor, node: fx.Node) -> fx.Node:
        """Constant words as a parameter: step times word."""
        made: Any = node.target
        args = [self._constant(a) if isinstance(a, fx.Node) else a for a in node.args[1:]]
        if any(a is None for a in args):
            raise self._refused(node, "its steps are computed")
        with torch.no_grad():
            real = made(words, *args, **node.kwargs)
        source: Any = node.args[0]
        name = str(source.target).replace(".", "_").strip("_") or "weight"
        while hasattr(self.root, name):
            name += "_"
        self.root.register_parameter(name, nn.Parameter(real.float()))
        return self.graph.get_attr(name)

    def _constant(self, value: Any) -> Tensor | None:
        """The tensor that a node reads; None for anything else."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        place: Any = self.root
        for part in str(value.target).split("."):
            place = getattr(place, part)
        return place if isinstance(place, Tensor) else None

    def _refused(self, node: fx.Node, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"no rule for '{node}' of {self.path}: {why}")
