"""fx_writer.py - a network written node by node, as a graph of torch.fx, then a plain module: what readers of files return."""

from __future__ import annotations

import keyword
import re
from typing import Any

from torch import Tensor, fx, nn

from nonsingular.untrusted import SHADOWS


def module_of(root: nn.Module, graph: fx.Graph, name: str) -> nn.Module:
    """A module that computes `graph`, in eval mode, with the parameters and buffers of `root` that it uses under their names.

    Unlike an fx.GraphModule it prints nothing when an input does not fit.
    """
    compiled = fx.GraphModule(root, graph)
    forward: Any = type(compiled).forward
    module: nn.Module = type(name, (nn.Module,), {"forward": forward})()
    for key, parameter in compiled._parameters.items():  # pyright: ignore[reportPrivateUsage]
        module.register_parameter(key, parameter)
    for key, buffer in compiled._buffers.items():  # pyright: ignore[reportPrivateUsage]
        module.register_buffer(key, buffer)
    for key, child in compiled._modules.items():  # pyright: ignore[reportPrivateUsage]
        module.add_module(key, child)
    return module.eval()


def is_taken(name: str) -> bool:
    """Whether a word of a path is one that nn.Module, Python or generated code needs: "forward", "_buffers", "lambda", "self"."""
    own = vars(nn.Module())
    return any(hasattr(nn.Module, w) or w in own or keyword.iskeyword(w) or w in SHADOWS for w in name.split("."))


class Writer:
    """A graph under construction, and the tensors that it uses, by their names in the file that is read."""

    def __init__(self) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.sources: dict[str, tuple[str, int]] = {}
        """The copies of a constant -> its name, and how often it was transposed on the way."""
        self._made: dict[tuple[str, str], fx.Node] = {}
        """(name, form) -> its get_attr node: a weight that is used twice is one parameter."""
        self._taken: set[str] = set()

    def finish(self, output: fx.Node, name: str) -> nn.Module:
        """The module, in eval mode; what does not reach the output is left out."""
        self.graph.output(output)
        self.graph.eliminate_dead_code()
        return module_of(self.root, self.graph, name)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        write: Any = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        return write(target, args, kwargs)

    def parameter(self, name: str, value: Tensor, form: str = "") -> fx.Node:
        """A tensor that may move, under the legal form of its name; in another form it is another parameter."""
        return self._attribute(self.sources.get(name, (name, 0))[0], nn.Parameter(value.detach().float().contiguous()), form)

    def matrix(self, name: str, value: Tensor, turned: bool, factor: float = 1.0) -> fx.Node:
        """The weight (out, in) of F.linear from a matrix, or from its transpose."""
        turns = self.sources.get(name, (name, 0))[1] + (not turned)
        return self.parameter(name, factor * (value if turned else value.T), f"matrix {turns % 2} {factor}")

    def buffer(self, name: str, value: Tensor, form: str = "fixed") -> fx.Node | float:
        """A tensor that never moves; a number where it is one."""
        if value.dim() == 0:
            return value.item()
        value = value.detach().contiguous()
        return self._attribute(name, value.float() if value.is_floating_point() else value, form)

    def _attribute(self, name: str, value: Tensor, form: str) -> fx.Node:
        if (name, form) not in self._made:
            path = self._legal(name)
            *parents, last = path.split(".")
            place = self.root
            for parent in parents:
                if parent not in place._modules:  # pyright: ignore[reportPrivateUsage]
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            if isinstance(value, nn.Parameter):
                place.register_parameter(last, value)
            else:
                place.register_buffer(last, value)
            self._made[name, form] = self.graph.get_attr(path)
        return self._made[name, form]

    def _legal(self, name: str) -> str:
        """`name` as attributes of modules: letters, digits, _ and dots, never that of something else."""
        parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".")]
        parts = [re.sub(r"^_{2,}", "_", part)[:255] for part in parts]  # Python's own names begin with two
        path = ".".join(part + "_" if is_taken(part) else part for part in parts if part) or "w"
        clash = [t for t in self._taken if t == path or t.startswith(path + ".") or path.startswith(t + ".")]
        if clash:
            path = path.replace(".", "_")
            path += next(f"_{i}" for i in range(1, len(self._taken) + 2) if f"{path}_{i}" not in self._taken)
        self._taken.add(path)
        return path
