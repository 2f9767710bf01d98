"""windows.py - ONNX operators on the positions of images and sequences: pooling, resizing, padding, sampling.

Averages and resizing act on each dimension alone, and linearly: what torch has no function for is a product with a matrix along
each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.models.onnx_rules.layers import edges, padded, spatial
from nonsingular.models.onnx_rules.scope import LIMIT, Node, flat_pads, pairs


def _small(out: int, size: int) -> None:
    if out * size > LIMIT:
        raise ValueError(f"a line of {size} becomes one of {out}")


def along(node: Node, x: Any, dim: int, matrix: Tensor) -> Any:
    """x with every line along `dim` multiplied by `matrix` (out, in)."""
    rank = len(node.scope.shape(x))
    moved = x if dim == rank - 1 else node.call(torch.transpose, x, dim, -1)
    y = node.call(F.linear, moved, matrix)
    return y if dim == rank - 1 else node.call(torch.transpose, y, dim, -1)


# --- pooling ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """Pooling along one dimension of `size` elements, with `begin` of padding before and `end` after them."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    def windows(self, ceil: bool) -> int:
        """How many windows there are; with `ceil`, one that starts in the padding after the end is none."""
        room = self.size + self.begin + self.end - self.dilation * (self.kernel - 1) - 1
        n = (-(-room // self.stride) if ceil else room // self.stride) + 1
        return n - 1 if ceil and (n - 1) * self.stride >= self.size + self.begin else n

    def averages(self, ceil: bool, include: bool) -> Tensor:
        """(windows, size): each row averages a window; over padding too, but not beyond it, where it counts."""
        windows, size = self.windows(ceil), self.size
        _small(windows, size)
        rows = torch.zeros(windows, size)
        for i, row in enumerate(rows):
            at = [i * self.stride - self.begin + self.dilation * j for j in range(self.kernel)]
            inside = [p for p in at if 0 <= p < size]
            row[inside] = 1 / max(1, sum(p < size + self.end for p in at) if include else len(inside))
        return rows


def _geometry(node: Node) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, padding before and after."""
    kernel = list(node.get("kernel_shape"))
    n = len(kernel)
    begin, end = edges(node, kernel, *spatial(node, n))
    return kernel, list(node.get("strides") or [1] * n), list(node.get("dilations") or [1] * n), list(begin), list(end)


def _lines(node: Node) -> list[_Line]:
    """The dimensions that are pooled.  Raises UnsupportedModel for sizes that the file does not have."""
    kernel, strides, dilations, begin, end = _geometry(node)
    sizes, opens = spatial(node, len(kernel))
    if any(opens):
        raise node.refuse("ceil_mode, dilations and one-sided padding need sizes that the file does not have")
    return [_Line(*given) for given in zip(sizes, kernel, strides, dilations, begin, end, strict=True)]


def _max_pool(node: Node) -> Any:
    x = node.tensor()
    if any(node.outputs[1:]) and node.scope.users.get(node.outputs[1]):
        raise node.refuse("indices of largest elements are not known")
    kernel, strides, dilations, begin, end = _geometry(node)
    n, ceil = len(kernel), bool(node.get("ceil_mode", 0))
    if begin != end or any(2 * b > k for b, k in zip(begin, kernel, strict=True)):
        if ceil:
            end = [e + s - 1 for e, s in zip(end, strides, strict=True)]
            given = [_Line(*g) for g in zip(spatial(node, n)[0], kernel, strides, dilations, begin, end, strict=True)]
            if any(replace(line, end=line.end - line.stride + 1).windows(True) != line.windows(False) for line in given):
                raise node.refuse("ceil_mode with these pads is not known")
        x, begin, ceil = padded(node, x, begin, end, -math.inf), [0] * n, False
    f = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    return node.call(f, x, kernel, strides, padding=begin, dilation=dilations, ceil_mode=ceil)


def _avg_pool(node: Node) -> Any:
    x, include = node.tensor(), bool(node.get("count_include_pad", 0))
    kernel, strides, dilations, begin, end = _geometry(node)
    n, ceil = len(kernel), bool(node.get("ceil_mode", 0))
    plain = not ceil and set(dilations) == {1} and all(2 * b <= k for b, k in zip(begin, kernel, strict=True))
    if plain and (begin == end or include):
        if begin != end:
            x, begin = padded(node, x, begin, end), [0] * n
        f = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
        return node.call(f, x, kernel, strides, begin, False, include)
    for d, line in enumerate(_lines(node)):
        x = along(node, x, 2 + d, line.averages(ceil, include))
    return x


def _global(node: Node) -> Any:
    x, dims = node.tensor(), list(range(2, node.rank()))
    if node.op == "GlobalLpPool":
        return node.call(torch.linalg.vector_norm, x, node.get("p", 2), dims, True)
    return node.call(torch.mean if node.op == "GlobalAveragePool" else torch.amax, x, dims, True)


def _lp_pool(node: Node) -> Any:
    p, ceil = node.get("p", 2), bool(node.get("ceil_mode", 0))
    x = node.call(torch.pow, node.call(torch.abs, node.tensor()), p)
    for d, line in enumerate(_lines(node)):
        x = along(node, x, 2 + d, (line.averages(ceil, False) > 0).float())
    return node.call(torch.pow, x, 1 / p)


# --- resizing ---------------------------------------------------------------------------------------------------------------


def _resize(node: Node) -> Any:
    x, rank = node.tensor(), node.rank()
    axes = [a % rank for a in node.get("axes", range(rank))]
    scales, wanted = _scales(node)
    sizes: list[int] = [node.scope.shape(x)[a] for a in axes]
    opens = [node.scope.is_open(x, a) for a in axes]
    if wanted:
        wanted = [n if o else w for w, n, o in zip(wanted, sizes, opens, strict=True)]  # a batch stays what it is
        scales = _kept_ratio(node, [w / n for w, n in zip(wanted, sizes, strict=True)])
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            wanted = [math.floor(s * n + 0.5) for s, n in zip(scales, sizes, strict=True)]
    if scales is None or len(scales) != len(axes):
        raise node.refuse(f"it has {0 if scales is None else len(scales)} scales for {len(axes)} dimensions")
    fast = _repeated(node, x, scales, axes)
    if fast is not None:
        return fast
    roi = node.constant(1) if node.op == "Resize" and node.scope.opset >= 11 else None
    for i, (axis, scale, size) in enumerate(zip(axes, scales, sizes, strict=True)):
        out = wanted[i] if wanted else math.floor(size * scale)
        way = node.get("coordinate_transformation_mode", "half_pixel")
        crop = (0.0, 1.0) if roi is None or not roi.numel() else (float(roi[i]), float(roi[i + len(axes)]))
        if scale == 1 and out == size and (way != "tf_crop_and_resize" or crop == (0, 1)):
            continue
        if opens[i]:
            raise node.refuse("it resizes sizes that the file does not have")
        x = along(node, x, axis, _resized(node, _Scaled(size, out, scale, crop)))
    return x


def _scales(node: Node) -> tuple[list[float] | None, list[int] | None]:
    """Factors, or wanted sizes, for each axis."""
    if node.op == "Upsample":
        found = node.constant(1)
        return (node.get("scales") if found is None else found.tolist()), None
    old = node.scope.opset < 11
    scales = node.constant(1 if old else 2)
    given = None if scales is None or not scales.numel() else scales.tolist()
    wanted = None if old or given else node.sizes(3)
    if wanted is None:
        return given, None
    x, rank = node.tensor(), node.rank()
    axes = [a % rank for a in node.get("axes", range(rank))]
    known = [v if isinstance(v, int) else -1 for v in wanted]
    if any(v < 0 and not node.scope.is_open(x, a) for v, a in zip(known, axes, strict=True)):
        raise node.refuse("it resizes to sizes that the file does not have")
    return None, known


def _kept_ratio(node: Node, scales: list[float]) -> list[float]:
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    return scales if policy == "stretch" else [(min if policy == "not_larger" else max)(scales)] * len(scales)


def _repeated(node: Node, x: Any, scales: Sequence[float], axes: Sequence[int]) -> Any:
    """Each pixel repeated a whole number of times, as most networks upsample; None for anything else."""
    way = (node.get("coordinate_transformation_mode", "half_pixel"), node.get("nearest_mode", "round_prefer_floor"))
    simple = (
        node.op == "Upsample" or node.scope.opset < 11 or way in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"))
    )
    factors = dict(zip(axes, scales, strict=True))
    rank = node.rank()
    last = [factors.get(a, 1.0) for a in range(2, rank)]
    if (
        node.get("mode", "nearest") != "nearest"
        or not simple
        or any(factors.get(a, 1.0) != 1 for a in (0, 1))
        or rank not in (3, 4, 5)
    ):
        return None
    if any(s != int(s) or s < 1 for s in last):
        return None
    return node.call(F.interpolate, x, scale_factor=[float(s) for s in last], mode="nearest")


@dataclass(frozen=True)
class _Scaled:
    """Resizing along one dimension, from `size` elements to `out`.  crop: the part that is kept, in [0, 1]."""

    size: int
    out: int
    scale: float
    crop: tuple[float, float]


def _resized(node: Node, line: _Scaled) -> Tensor:
    """(out, size): the weights of each output position, by the formulas of the ONNX operator."""
    size, out = line.size, line.out
    _small(out, size)
    old = node.op == "Upsample" or node.scope.opset < 11
    mode = node.get("mode", "nearest")
    way = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    rows = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        at = _position(node, way, i, line)
        if way == "tf_crop_and_resize" and not 0 <= at <= size - 1:
            if node.get("extrapolation_value", 0.0):
                raise node.refuse("an extrapolation value other than 0 is not known")
            continue
        if mode == "nearest":
            rows[i, min(max(_nearest("floor" if old else node.get("nearest_mode", "round_prefer_floor"), at), 0), size - 1)] = 1
            continue
        _interpolate(node, rows[i], at, min(line.scale, 1.0) if node.get("antialias", 0) else 1.0, mode)
    return rows.float()


def _position(node: Node, way: str, i: int, line: _Scaled) -> float:
    """Where output position i lies in the input."""
    size, out, scale = line.size, line.out, line.scale
    if way == "asymmetric":
        return i / scale
    if way == "half_pixel" or (way == "pytorch_half_pixel" and scale * size > 1):
        return (i + 0.5) / scale - 0.5
    if way == "half_pixel_symmetric":
        return size / 2 * (1 - out / (scale * size)) + (i + 0.5) / scale - 0.5
    if way == "align_corners":
        return i * (size - 1) / (out - 1) if out > 1 else 0.0
    if way == "tf_crop_and_resize":
        start, end = line.crop
        whole = size - 1
        return start * whole + i * (end - start) * whole / (out - 1) if out > 1 else 0.5 * (start + end) * whole
    if way == "pytorch_half_pixel":
        return 0.0
    raise node.refuse(f"the coordinate transformation '{way}' is not known")


def _nearest(rounding: str, at: float) -> int:
    if rounding == "floor":
        return math.floor(at)
    if rounding == "ceil":
        return math.ceil(at)
    return math.floor(at + 0.5) if rounding == "round_prefer_ceil" else math.ceil(at - 0.5)


def _interpolate(node: Node, row: Tensor, at: float, shrink: float, mode: str) -> None:
    """Adds the weights of the elements around `at` to `row`; shrink < 1 widens them, against aliasing."""
    reach = {"linear": 1, "cubic": 2}.get(mode)
    if reach is None:
        raise node.refuse(f"the mode '{mode}' is not known")
    a = node.get("cubic_coeff_a", -0.75)
    width = reach / shrink
    near = range(math.floor(at - width) + 1, math.ceil(at + width))
    weights = [_tent((p - at) * shrink) if mode == "linear" else _cubic((p - at) * shrink, a) for p in near]
    size = len(row)
    if node.get("exclude_outside", 0):
        weights = [w if 0 <= p < size else 0.0 for p, w in zip(near, weights, strict=True)]
    total = sum(weights)
    for p, w in zip(near, weights, strict=True):
        row[min(max(p, 0), size - 1)] += w / total


def _tent(d: float) -> float:
    return max(0.0, 1 - abs(d))


def _cubic(d: float, a: float) -> float:
    d = abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


# --- padding, sampling ------------------------------------------------------------------------------------------------------


def _pad(node: Node) -> Any:
    x, rank, mode = node.tensor(), node.rank(), node.get("mode", "constant")
    given, value = node.numbers(1, "pads"), node.constant(2)
    if given is None:  # opset 1
        given = node.get("paddings")
    axes = node.numbers(3) if node.has(3) else list(range(rank))
    assert given is not None
    assert axes is not None
    pads = [(0, 0)] * rank
    for axis, pair in zip(axes, pairs(given), strict=True):
        pads[axis % rank] = pair
    moved = [d for d in range(rank) if pads[d] != (0, 0)]
    if not moved:
        return x
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None or not value.numel() else value.reshape(()).item()
        return node.call(F.pad, x, flat_pads(pads[moved[0] :]), "constant", fill)
    torch_mode = {"reflect": "reflect", "edge": "replicate"}.get(mode)
    if torch_mode and rank in (3, 4, 5) and moved[0] >= 2 and all(v >= 0 for pair in pads for v in pair):
        return node.call(F.pad, x, flat_pads(pads[2:]), torch_mode)
    for d in moved:
        if node.scope.is_open(x, d):
            raise node.refuse("it pads a size that the file does not have")
        at = torch.tensor(
            [_source(node, mode, i, node.scope.shape(x)[d]) for i in range(-pads[d][0], node.scope.shape(x)[d] + pads[d][1])]
        )
        x = node.call(torch.index_select, x, d, at)
    return x


def _source(node: Node, mode: str, i: int, size: int) -> int:
    """Which element stands at position i, outside 0..size too."""
    if mode == "edge":
        return min(max(i, 0), size - 1)
    if mode == "wrap":
        return i % size
    if mode != "reflect":
        raise node.refuse(f"the mode '{mode}' is not known")
    turn = max(1, 2 * (size - 1))
    return min(i % turn, turn - i % turn)


def _grid_sample(node: Node) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    corners = bool(node.get("align_corners", 0))
    return node.call(F.grid_sample, node.tensor(), node.tensor(1), mode, node.get("padding_mode", "zeros"), corners)


WINDOWS: dict[str, Callable[[Node], Any]] = {
    "MaxPool": _max_pool, "AveragePool": _avg_pool, "LpPool": _lp_pool,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global),
    **dict.fromkeys(("Resize", "Upsample"), _resize), "Pad": _pad, "GridSample": _grid_sample,
}  # fmt: skip
"""ONNX operator -> how it is written."""
