"""shapes.py - ONNX operators that move, choose or repeat elements, and arithmetic on sizes that the input decides."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from nonsingular.models.onnx_rules.elementwise import KINDS
from nonsingular.models.onnx_rules.functions import one_hot, put_along, put_points, steps, take, take_along, take_points
from nonsingular.models.onnx_rules.scope import LIMIT, Node, Size, Sizes, product

# --- shapes -----------------------------------------------------------------------------------------------------------------


def _reshape(node: Node) -> Any:
    x, sizes, scope = node.tensor(), node.sizes(1, "shape"), node.scope
    assert sizes is not None
    shape = scope.shape(x)
    if 0 in sizes and not (node.get("allowzero", 0) or (len(sizes) > len(shape) and 0 in sizes[len(shape) :])):
        dims = scope.dims(x)
        sizes = [dims[i] if s == 0 else s for i, s in enumerate(sizes)]
    if not isinstance(x, fx.Node):
        return node.call("reshape", x, sizes)
    if scope.fixed is not None and sizes and not any(isinstance(s, Size) for s in sizes):
        sizes = _any_batch(node, x, sizes)
    if sizes and isinstance(sizes[0], Size) and sizes[0].node.target == "size" and scope.batch and -1 in sizes:
        sizes = [scope.batch if _is_batch(node, sizes[0]) else sizes[0], *sizes[1:]]
    if len(sizes) == 2 and _keeps_batch(node, x, *sizes):
        return node.call(torch.flatten, x, 1)
    return node.call("reshape", x, *sizes)


def _keeps_batch(node: Node, x: fx.Node, first: Any, last: Any) -> bool:
    """Whether these sizes are (batch, everything else) of the signal."""
    scope = node.scope
    shape = scope.shape(x)
    rest = -1 if any(scope.is_open(x, d) for d in range(1, len(shape))) else product(shape[1:])
    if isinstance(first, Size):
        return scope.seen[first.node] == tuple(v.shape[0] for v in scope.seen[x]) and last in (-1, rest)
    return first == -1 and last == rest != -1


def _is_batch(node: Node, size: Any) -> bool:
    batch = node.scope.batch
    return batch is not None and node.scope.seen[size.node] == node.scope.seen[batch.node]


def _any_batch(node: Node, x: fx.Node, sizes: Sizes) -> Sizes:
    """Sizes that a file wrote for its own batch, for any: the first is the batch, or what it is a factor of."""
    scope = node.scope
    if sizes[0] == scope.fixed and scope.batch is not None:
        return [scope.batch, *sizes[1:]]
    if -1 not in sizes and scope.is_open(x, 0):
        return [-1, *sizes[1:]]
    return sizes


def _flatten(node: Node) -> Any:
    x, rank = node.tensor(), node.rank()
    axis = node.get("axis", 1)
    axis = axis % rank if axis < 0 else axis
    if axis == 1 and rank > 1:
        return node.call(torch.flatten, x, 1)
    dims = node.scope.dims(x)
    first, rest = dims[:axis], dims[axis:]
    if any(isinstance(d, Size) for d in rest):
        return node.call("reshape", x, product(first), -1)
    return node.call("reshape", x, -1 if any(isinstance(d, Size) for d in first) else product(first), product(rest))


def _transpose(node: Node) -> Any:
    return node.call(torch.permute, node.tensor(), list(node.get("perm") or range(node.rank())[::-1]))


def _squeeze(node: Node) -> Any:
    x, axes = node.tensor(), node.numbers(1, "axes")
    if axes is None:
        shape = node.scope.shape(x)
        axes = [d for d, n in enumerate(shape) if n == 1 and not node.scope.is_open(x, d)]
        if not axes:
            return x
    return node.call(torch.squeeze, x, axes[0] if len(axes) == 1 else tuple(axes))


def _unsqueeze(node: Node) -> Any:
    x = node.tensor()
    axes, rank = node.numbers(1, "axes") or [], node.rank()
    for axis in sorted(a % (rank + len(axes)) for a in axes) if len(axes) > 1 else axes:
        x = node.call(torch.unsqueeze, x, axis)
    return x


def _concat(node: Node) -> Any:
    parts = [node.tensor(i) for i in range(len(node.inputs)) if node.has(i)]
    return _joined(node, parts, node.get("axis", 1))


def _joined(node: Node, parts: list[Any], axis: int) -> Any:
    """Constants of one example are those of every one, beside signals that have the batch first."""
    first = next((p for p in parts if node.scope.is_open(p, 0)), None)
    if first is not None and axis % len(node.scope.shape(first)):
        batch = node.scope.dims(first)[0]
        parts = [
            node.call("expand", p, batch, *[-1] * (p.dim() - 1)) if isinstance(p, Tensor) and p.shape[0] == 1 else p
            for p in parts
        ]
    return node.call(torch.cat, parts, axis)


def _expand(node: Node) -> Any:
    x, sizes, scope = node.tensor(), node.sizes(1), node.scope
    assert sizes is not None
    own = scope.shape(x)
    rank = max(len(own), len(sizes))
    own, sizes = (1,) * (rank - len(own)) + own, cast("Sizes", [1] * (rank - len(sizes))) + sizes
    if scope.fixed is not None and scope.is_open(x, 0) and rank == node.rank() and sizes[0] == scope.fixed:
        sizes[0] = 1
    missing = rank - node.rank()
    wanted = [s if s != 1 else (1 if d < missing else -1) for d, s in enumerate(sizes)]
    return node.call("expand", x, *wanted)


def _tile(node: Node) -> Any:
    sizes = node.sizes(1)
    assert sizes is not None
    return node.call("repeat", node.tensor(), *sizes)


def _depth_to_space(node: Node) -> Any:
    x, block = node.tensor(), node.get("blocksize")
    b, c, h, w = node.scope.dims(x)
    if node.get("mode", "DCR") == "CRD":
        return node.call(F.pixel_shuffle, x, block)
    if not isinstance(c, int):
        raise node.refuse("its channels are not known")
    split = node.call("reshape", x, b, block, block, c // block**2, h, w)
    moved = node.call(torch.permute, split, [0, 3, 4, 1, 5, 2])
    return node.call("reshape", moved, b, c // block**2, h * block, w * block)


def _space_to_depth(node: Node) -> Any:
    x, block = node.tensor(), node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        return node.call(F.pixel_unshuffle, x, block)
    b, c, h, w = node.scope.dims(x)
    split = node.call("reshape", x, b, c, h // block, block, w // block, block)
    moved = node.call(torch.permute, split, [0, 3, 5, 1, 2, 4])
    return node.call("reshape", moved, b, c * block**2, h // block, w // block)


# --- parts ------------------------------------------------------------------------------------------------------------------


def _slice(node: Node) -> Any:
    x, rank = node.tensor(), node.rank()
    starts, ends, axes, steps = node.sizes(1, "starts"), node.sizes(2, "ends"), node.numbers(3, "axes"), node.numbers(4)
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else [a % rank for a in axes]
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        x = _slice_one(node, x, axis, slice(start, end, step))
    return x


def _slice_one(node: Node, x: Any, axis: int, at: slice) -> Any:
    scope = node.scope
    size, is_open = scope.shape(x)[axis], scope.is_open(x, axis)
    whole = (slice(None),) * axis
    if any(isinstance(v, Size) for v in (at.start, at.stop)):
        if (at.step or 1) < 0:
            raise node.refuse("it goes backwards from a size that the file does not have")
        return node.call(operator.getitem, x, (*whole, at))
    if is_open:
        if at.step < 0:
            if at.step == -1 and at.start in (-1,) and at.stop < -(2**30):
                return node.call(torch.flip, x, [axis])
            raise node.refuse("it goes backwards through a size that the file does not have")
        all_of_it = (at.start, at.step) == (0, 1) and (at.stop >= 2**31 - 1 or (axis == 0 and at.stop == scope.fixed))
        return x if all_of_it else node.call(operator.getitem, x, (*whole, at))
    chosen = range(size)[at]
    if chosen == range(size):
        return x
    if at.step > 0:
        return node.call(operator.getitem, x, (*whole, at))
    part = node.call(operator.getitem, x, (*whole, slice(chosen[-1], chosen[0] + 1, -at.step))) if len(chosen) else None
    return node.call(operator.getitem, x, (*whole, slice(0, 0))) if part is None else node.call(torch.flip, part, [axis])


def _split(node: Node) -> Any:
    x, axis, parts = node.tensor(), node.get("axis", 0) % node.rank(), len(node.outputs)
    sizes = node.numbers(1, "split")
    if not sizes:
        size = node.scope.shape(x)[axis]
        if node.scope.is_open(x, axis):
            raise node.refuse("it splits a size that the file does not have")
        each = -(-size // parts) if node.scope.opset >= 18 else size // parts
        sizes = [min(each, size - i * each) for i in range(parts)]
    return tuple(_pieces(node, x, axis, sizes))


def _pieces(node: Node, x: Any, axis: int, sizes: Sequence[int]) -> list[Any]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        node.call(operator.getitem, x, (*(slice(None),) * axis, slice(a, a + n, None)))
        for a, n in zip(starts, sizes, strict=True)
    ]


def _split_to_sequence(node: Node) -> Any:
    x, axis = node.tensor(), node.get("axis", 0) % node.rank()
    if node.scope.is_open(x, axis):
        raise node.refuse("it splits a size that the file does not have")
    size, given = node.scope.shape(x)[axis], node.constant(1)
    if given is not None and given.dim():
        sizes = given.tolist()
    else:
        each = 1 if given is None else max(1, int(given))
        sizes = [min(each, size - at) for at in range(0, size, each)]
    parts = _pieces(node, x, axis, sizes)
    keeps = given is not None or node.get("keepdims", 1)
    return parts if keeps else [node.call(torch.squeeze, p, axis) for p in parts]


def _sequence(node: Node) -> list[Any]:
    value = node.value(0)
    if not isinstance(value, list):
        raise node.refuse("its input is not a sequence")
    return value


def _sequence_at(node: Node) -> Any:
    (at,) = node.numbers(1) or [0]
    return _sequence(node)[at]


def _sequence_construct(node: Node) -> Any:
    return [node.tensor(i) for i in range(len(node.inputs))]


def _concat_sequence(node: Node) -> Any:
    if node.get("new_axis", 0):
        return node.call(torch.stack, _sequence(node), node.get("axis"))
    return _joined(node, _sequence(node), node.get("axis"))


def _gather(node: Node) -> Any:
    x, at, axis = node.tensor(0), node.tensor(1), node.get("axis", 0) % node.rank()
    if isinstance(x, fx.Node) and isinstance(at, Tensor):
        at = at.long()
        if at.dim() == 0:
            return node.call(operator.getitem, x, (*(slice(None),) * axis, int(at)))
        if at.dim() == 1 and not node.scope.is_open(x, axis):
            at = at % node.scope.shape(x)[axis]
            if at.numel() and torch.equal(at, torch.arange(int(at[0]), int(at[0]) + len(at))):  # neighbours: a slice
                part = slice(int(at[0]), int(at[0]) + len(at), None)
                return node.call(operator.getitem, x, (*(slice(None),) * axis, part))
            return node.call(torch.index_select, x, axis, at)
    return node.call(take, x, at, axis)


def _gather_elements(node: Node) -> Any:
    return node.call(take_along, node.tensor(0), _index(node, 1), node.get("axis", 0))


def _gather_points(node: Node) -> Any:
    return node.call(take_points, node.tensor(0), _index(node, 1), node.get("batch_dims", 0))


def _scatter_elements(node: Node) -> Any:
    how = node.get("reduction", "none")
    return node.call(put_along, node.tensor(0), _index(node, 1), node.tensor(2), node.get("axis", 0), how)


def _scatter_points(node: Node) -> Any:
    return node.call(put_points, node.tensor(0), _index(node, 1), node.tensor(2), node.get("reduction", "none"))


def _index(node: Node, i: int) -> Any:
    at = node.tensor(i)
    return at.long() if isinstance(at, Tensor) else at


def _top_k(node: Node) -> Any:
    x, k = node.tensor(), node.numbers(1, "k")
    (count,) = [k] if isinstance(k, int) else (k or [1])
    found = node.call(torch.topk, x, count, node.get("axis", -1), bool(node.get("largest", 1)))
    return tuple(node.call(operator.getitem, found, i) for i in (0, 1))


def _arg(node: Node) -> Any:
    x, axis, keep = node.tensor(), node.get("axis", 0), bool(node.get("keepdims", 1))
    if node.get("select_last_index", 0):
        raise node.refuse("the last of equal elements is not known")
    return node.call(torch.argmax if node.op == "ArgMax" else torch.argmin, x, axis, keep)


def _trilu(node: Node) -> Any:
    (k,) = node.numbers(1) or [0]
    return node.call(torch.triu if node.get("upper", 1) else torch.tril, node.tensor(), k)


def _nonzero(node: Node) -> Any:
    x = node.constant(0)
    assert x is not None
    return torch.nonzero(x).T.contiguous()


# --- made from sizes --------------------------------------------------------------------------------------------------------


def _constant_of_shape(node: Node) -> Any:
    sizes, value = node.sizes(0), node.get("value")
    assert sizes is not None
    fill = torch.zeros(1) if value is None else constant_of(node.scope.onnx.numpy_helper.to_array(value))
    if not any(isinstance(s, Size) for s in sizes):
        return node.call(torch.full, tuple(sizes), fill.item(), dtype=fill.dtype)
    kind = {} if fill.is_floating_point() else {"dtype": fill.dtype}
    return node.call("new_full", node.scope.source, sizes, fill.item(), **kind)


def _range(node: Node) -> Any:
    given = [node.value(i) for i in range(3)]
    plain = [v.item() if isinstance(v, Tensor) else v.reshape(-1)[0] if isinstance(v, numpy.ndarray) else v for v in given]
    if any(isinstance(v, fx.Node) for v in plain):
        raise node.refuse("its ends are computed from the values of the input")
    if not any(isinstance(v, Size) for v in plain):
        return node.call(torch.arange, *plain, dtype=given[0].dtype)
    return node.call(steps, node.scope.source, *plain)


def _eye_like(node: Node) -> Any:
    rows, columns = node.scope.shape(node.tensor())
    kind = KINDS.get(node.scope.onnx.TensorProto.DataType.Name(node.get("dtype") or 1), torch.float32)
    if rows * columns > LIMIT or node.scope.is_open(node.tensor(), 0):
        raise node.refuse("its sizes are not known, or too large")
    return torch.ones(rows, columns).tril(node.get("k", 0)).triu(node.get("k", 0)).to(kind)


def _one_hot(node: Node) -> Any:
    (depth,) = node.numbers(1) or [0]
    values = node.constant(2)
    assert values is not None
    off, on = values.tolist()
    like = node.scope.source if node.moves and values.is_floating_point() else values
    return node.call(one_hot, node.tensor(), depth, off, on, node.get("axis", -1), like)


def _constant(node: Node) -> Any:
    for name, value in node.attributes.items():
        if name == "value":
            return constant_of(node.scope.onnx.numpy_helper.to_array(value))
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    raise node.refuse("it is sparse, or text")


def constant_of(array: Any) -> Tensor:
    """A tensor of float32, of whole numbers or of bool.  Raises TypeError for text and complex numbers."""
    array = numpy.asarray(array)
    if array.dtype.kind in "biu":
        kind = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(array.dtype.name, array.dtype.name)
        return torch.from_numpy(array.astype(kind))
    if array.dtype.kind in "OSUc":
        raise TypeError(f"a constant holds {array.dtype} values")
    with numpy.errstate(over="ignore"):
        return torch.from_numpy(array.astype(numpy.float32))


def _shape(node: Node) -> Any:
    value = node.value(0)
    dims = list(value.shape) if isinstance(value, numpy.ndarray) else node.scope.dims(node.tensor())
    return numpy.array(dims, dtype=object)[node.get("start", 0) : node.get("end")]


def _size(node: Node) -> Any:
    return numpy.array(product(node.scope.dims(node.tensor())), dtype=object)


SHAPES: dict[str, Callable[[Node], Any]] = {
    "Reshape": _reshape, "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Concat": _concat, "Expand": _expand, "Tile": _tile, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
    "Slice": _slice, "Split": _split, "SplitToSequence": _split_to_sequence, "SequenceAt": _sequence_at,
    "SequenceConstruct": _sequence_construct, "ConcatFromSequence": _concat_sequence,
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_points,
    **dict.fromkeys(("ScatterElements", "Scatter"), _scatter_elements), "ScatterND": _scatter_points,
    "TopK": _top_k, **dict.fromkeys(("ArgMax", "ArgMin"), _arg), "Trilu": _trilu, "NonZero": _nonzero,
    "ConstantOfShape": _constant_of_shape, "Range": _range, "EyeLike": _eye_like, "OneHot": _one_hot, "Constant": _constant,
    "Shape": _shape, "Size": _size,
}  # fmt: skip
"""ONNX operator -> how it is written."""
