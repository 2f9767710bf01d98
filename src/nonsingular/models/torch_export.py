"""torch_export.py - a file of torch.export (.pt2) as a module that attacks and bounds can use.

The file is data, but torch reads it in ways in which a crafted one could run code: torch_archive.py looks through it, and torch
reads what that makes of it.  The graph is then written again in the functions that operators.py knows, with the parameters under
their own names.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import operator
import os
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.models.exported_words import Words
from nonsingular.models.fx_writer import module_of
from nonsingular.models.torch_archive import AGAIN, checked_archive

LARGEST = 2**32
"""Bytes of an activation that are allocated to try a graph, and of its input an eighth of that."""


def load_exported(path: Path) -> nn.Module:
    """The module in a .pt2 file, in eval mode: (B, *input) -> (B, K), differentiable, with its parameters as nn.Parameter.

    A graph exported for one batch size is used where it gives the same outputs for examples in other batches.
    Raises InvalidInput for a damaged file, one that could run code, several inputs, train mode, or a batch size that cannot be
    changed.  Operations without a counterpart among those of operators.py stay as they are: attacks work, bounds refuse them.
    """
    program = _read(path)
    try:
        with redirect_stderr(io.StringIO()):  # an fx.GraphModule prints its own tracebacks
            unlifted = _unlifted(program)
            module = _rewritten(unlifted, path)
            _try(module, unlifted, path)
    except InvalidInput:
        raise
    except Exception as e:  # a graph that no export writes
        raise InvalidInput(f"{path} cannot be run ({type(e).__name__}: {_first_line(e)}); {AGAIN}") from e
    return module


def _unlifted(program: Any) -> fx.GraphModule:
    try:
        return program.module(check_guards=False)
    except TypeError:  # older versions of torch know no such argument
        return program.module()


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [""])[0]


def _read(path: Path) -> Any:
    export: Any = importlib.import_module("torch.export")
    archive = checked_archive(path)
    try:
        with _tensors_only(), _quiet():
            return export.load(archive)
    except Exception as e:  # whatever the reader of a newer or older torch makes of it
        raise InvalidInput(
            f"{path} cannot be read by torch {torch.__version__} ({type(e).__name__}: {_first_line(e)}); "
            "export it again with this version"
        ) from e


@contextmanager
def _tensors_only() -> Generator[None]:
    """torch.load reads tensors and nothing else, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _quiet() -> Generator[None]:
    """torch logs what it cannot read, with a traceback; ours is one line."""
    log = logging.getLogger("torch.export")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(before)


# --- in functions that are known --------------------------------------------------------------------------------------------


def _batch_norm(  # the arguments of the aten operation, by position
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, *_: Any
) -> tuple[Any, ...]:
    return F.batch_norm, (x, mean, var, weight, bias, training, momentum, eps)


def _convolution(name: str) -> Callable[..., tuple[Any, ...]]:
    return lambda *args: (getattr(torch, name), args)


def _pooling(f: Any) -> Callable[..., tuple[Any, ...]]:
    """(x, kernel, stride, ...): an empty stride is the kernel."""

    def rewrite(x: Any, kernel: Any, stride: Any = (), *rest: Any) -> tuple[Any, ...]:
        return f, (x, kernel, stride or kernel, *rest)

    return rewrite


def _max_pooling(f: Any) -> Callable[..., tuple[Any, ...]]:
    def rewrite(x: Any, kernel: Any, stride: Any = (), *rest: Any) -> tuple[Any, ...]:
        names = ("padding", "dilation", "ceil_mode")
        return f, (x, kernel, stride or kernel), dict(zip(names, rest, strict=False))

    return rewrite


def _sizes(x: Any, sizes: Any) -> tuple[Any, ...]:
    return "reshape", (x, *sizes)


def _size(x: Any, dim: int) -> tuple[Any, ...]:
    return "size", (x, dim)


def _turned(x: Any) -> tuple[Any, ...]:
    return torch.transpose, (x, 0, 1)


def _only(f: Any) -> Callable[..., tuple[Any, ...]]:
    """The function of the first argument, without those that say how its memory is laid out."""

    def rewrite(x: Any, *_: Any) -> tuple[Any, ...]:
        return f, (x,)

    return rewrite


def _same(f: Any) -> Callable[..., tuple[Any, ...]]:
    return lambda *args: (f, args)


def _padding(x: Any, pad: Any, value: float = 0.0) -> tuple[Any, ...]:
    return F.pad, (x, pad, "constant", value)


_REWRITES: dict[str, Callable[..., tuple[Any, ...]]] = {
    **{name: _convolution(name) for name in ("conv1d", "conv2d", "conv3d")},
    **{f"conv_transpose{n}d": _same(getattr(torch, f"conv_transpose{n}d")) for n in (1, 2, 3)},
    **{f"max_pool{n}d": _max_pooling(getattr(F, f"max_pool{n}d")) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _pooling(getattr(F, f"avg_pool{n}d")) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _same(getattr(F, f"adaptive_avg_pool{n}d")) for n in (1, 2, 3)},
    "linear": _same(F.linear), "batch_norm": _batch_norm, "relu": _same(F.relu), "relu_": _same(F.relu), "relu6": _same(F.relu6),
    "leaky_relu": _same(F.leaky_relu), "sigmoid": _same(torch.sigmoid), "tanh": _same(torch.tanh), "silu": _same(F.silu),
    "elu": _same(F.elu), "gelu": _same(F.gelu), "selu": _same(F.selu), "celu": _same(F.celu), "softplus": _same(F.softplus),
    "hardtanh": _same(F.hardtanh), "hardtanh_": _same(F.hardtanh), "hardswish": _same(F.hardswish),
    "hardsigmoid": _same(F.hardsigmoid), "clamp": _same(torch.clamp), "log_sigmoid": _same(F.logsigmoid),
    "dropout": _same(F.dropout), "feature_dropout": _same(F.dropout2d), "flatten": _same(torch.flatten),
    "view": _sizes, "reshape": _sizes, "_unsafe_view": _sizes, "permute": _same(torch.permute),
    "transpose": _same(torch.transpose), "movedim": _same(torch.movedim), "t": _turned,
    "squeeze": _same(torch.squeeze), "unsqueeze": _same(torch.unsqueeze), "unflatten": _same(torch.unflatten),
    "contiguous": _only("contiguous"), "clone": _only(torch.clone),
    "cat": _same(torch.cat), "concat": _same(torch.cat), "stack": _same(torch.stack), "mean": _same(torch.mean),
    "sum": _same(torch.sum), "amax": _same(torch.amax), "abs": _same(torch.abs), "neg": _same(operator.neg),
    "add": _same(operator.add), "add_": _same(operator.add), "sub": _same(operator.sub), "sub_": _same(operator.sub),
    "mul": _same(operator.mul), "mul_": _same(operator.mul), "div": _same(operator.truediv), "div_": _same(operator.truediv),
    "maximum": _same(torch.maximum), "minimum": _same(torch.minimum), "pad": _same(F.pad), "constant_pad_nd": _padding,
    "pixel_shuffle": _same(F.pixel_shuffle), "pixel_unshuffle": _same(F.pixel_unshuffle),
    "sym_size": _size,
}  # fmt: skip
"""An aten operation -> (function or method, arguments[, keywords]).  In-place forms may be replaced: an exported graph is
functional, and the last use of what they overwrite."""


def _rewritten(unlifted: fx.GraphModule, path: Path) -> nn.Module:
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    words = Words(unlifted, graph, path)
    inputs = [n for n in unlifted.graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        raise InvalidInput(f"{path} takes {len(inputs)} inputs ({', '.join(map(str, inputs))}); export a model of one input")
    for node in unlifted.graph.nodes:
        if node.op == "call_module" or (node.op == "get_attr" and not node.users):
            if node.users:
                raise UnsupportedModel(f"{path} calls the module '{node.target}', which cannot be used; {AGAIN}")
            continue  # guards on shapes
        name = _namespaced(node, "aten")
        if node.op == "output":
            (value,) = node.args
            if isinstance(value, list | tuple):
                if len(value) != 1:
                    raise InvalidInput(f"{path} returns {len(value)} values; export a model that returns its logits alone")
                (value,) = value
            if not isinstance(value, fx.Node):
                raise InvalidInput(f"{path} returns {value}; export a model that returns its logits")
            graph.output(env[value])
        elif (on_words := _namespaced(node, "quantized_decomposed")) != "":
            env[node] = words.write(on_words, node, env)
        elif name in _REWRITES:
            new = _rewrite(name, node, env, graph)
            if new is None:
                new = graph.node_copy(node, lambda n: env[n])
            env[node] = new
        elif re.match(r"(batch_norm|native_batch_norm|_native_batch_norm)", name) or node.target == "copy_":
            raise InvalidInput(f"{path} updates BatchNorm statistics: it was exported in train mode; {AGAIN}")
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    for node in reversed(graph.nodes):  # words and steps that became a weight
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    _check_eval(graph, path)
    return module_of(unlifted, graph, "Exported")


def _namespaced(node: fx.Node, space: str) -> str:
    """ "conv2d" for torch.ops.aten.conv2d.default; "" for anything else."""
    target = str(node.target)
    return target.split(".")[1] if node.op == "call_function" and target.startswith(f"{space}.") else ""


def _rewrite(name: str, node: fx.Node, env: dict[fx.Node, fx.Node], graph: fx.Graph) -> fx.Node | None:
    """The node in a known function; None where its arguments have another form than the one that is known."""
    args = fx.map_arg(node.args, lambda n: env[n])
    kwargs: dict[str, Any] = dict(fx.map_arg(node.kwargs, lambda n: env[n]))
    if name in ("clone", "contiguous"):
        kwargs = {}
    try:
        target, new_args, *more = _REWRITES[name](*args)
    except TypeError:
        return None
    kwargs = {**kwargs, **(more[0] if more else {})}
    if target in (operator.add, operator.sub, operator.mul, operator.truediv) and (kwargs or len(new_args) != 2):
        return None
    call: Any = graph.call_method if isinstance(target, str) else graph.call_function
    return call(target, new_args, kwargs)


def _check_eval(graph: fx.Graph, path: Path) -> None:
    for node in graph.nodes:
        mode = {F.batch_norm: 5, F.dropout: 2, F.dropout2d: 2}.get(node.target)
        if mode is not None and len(node.args) > mode and node.args[mode]:
            raise InvalidInput(f"{path} was exported in train mode ('{node}' is {node.target.__name__}); {AGAIN}")


# --- does it do what the file does ------------------------------------------------------------------------------------------


def _try(module: nn.Module, unlifted: fx.GraphModule, path: Path) -> None:
    """Runs both on random inputs, where the shape is known.  Raises InvalidInput if the batch size is fixed in the graph."""
    (placeholder,) = (n for n in unlifted.graph.nodes if n.op == "placeholder")
    example = placeholder.meta.get("val")
    if not isinstance(example, Tensor):
        return
    shape: list[Any] = list(example.shape)  # of numbers and symbols
    if not all(isinstance(s, int) for s in shape[1:]):
        return
    if not shape or not example.is_floating_point():
        raise InvalidInput(f"{path} takes {example.dtype} inputs of shape {tuple(example.shape)}; export a model of float inputs")
    static = isinstance(shape[0], int)
    batch: int = shape[0] if static else 3
    _check_memory(unlifted, [batch, *shape[1:]], example.dtype, path)
    x = torch.randn(batch, *shape[1:], generator=torch.Generator().manual_seed(0), dtype=example.dtype)
    with torch.no_grad():
        want = unlifted(x)
        if not _close(module(x), want):
            raise UnsupportedModel(f"{path} read into modules gives other outputs than the file itself; please report it")
        if static and not _any_batch(module, x, want):
            raise InvalidInput(f"{path} was exported for batches of exactly {batch}, and its graph needs it; {AGAIN}")


class _Sized(fx.Interpreter):
    """Runs a graph on tensors without memory, and stops at one that is too large."""

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        for t in found if isinstance(found, list | tuple) else (found,):
            if isinstance(t, Tensor) and t.numel() * t.element_size() > LARGEST:
                raise InvalidInput(f"'{n}' makes a tensor of shape {tuple(t.shape)}")
        return found


def _check_memory(unlifted: fx.GraphModule, shape: list[int], dtype: torch.dtype, path: Path) -> None:
    """Raises InvalidInput if the graph would allocate a tensor of more than LARGEST bytes for its own example."""
    if math.prod(shape) * dtype.itemsize > LARGEST // 8:
        raise InvalidInput(
            f"{path} was exported with an example of shape {tuple(shape)}; at most {LARGEST // 8 // 2**20} MiB are tried: {AGAIN}"
        )
    fake: Any = importlib.import_module("torch._subclasses.fake_tensor")
    try:
        with fake.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            _Sized(unlifted, garbage_collect_values=True).run(torch.empty(shape, dtype=dtype))
    except InvalidInput as e:
        raise InvalidInput(f"{path}: {_first_line(e)}, and at most {LARGEST // 2**30} GiB are tried; {AGAIN}") from None
    except Exception:  # an operation that needs its values: it is tried with them
        return


def _any_batch(module: nn.Module, x: Tensor, want: Tensor) -> bool:
    """Whether an example has the same outputs in a larger batch and alone."""
    try:
        more, alone = module(torch.cat([x, x[:1]])), module(x[:1])
    except RuntimeError:
        return False
    return _close(more, torch.cat([want, want[:1]])) and _close(alone, want[:1])


def _close(found: Tensor, want: Tensor) -> bool:
    """Equal but for rounding."""
    scale = want.nan_to_num(0, 0, 0).abs().amax() + 1
    return found.shape == want.shape and torch.allclose(found / scale, want / scale, rtol=1e-3, atol=1e-4, equal_nan=True)
