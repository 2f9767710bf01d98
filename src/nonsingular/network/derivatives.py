"""derivatives.py - the derivatives of A apply(z, w) of the common products, written out.

Differentiating `apply` gives the same, with a forward pass that is thrown away and, for a weight per function, one call each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Kernel:
    """How a convolution in two dimensions, or pooling, walks over its input."""

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives of A apply(z, w), bilinear.  N functions A (N, *shape), or S for each of B examples (S, B, *shape)."""

    z: Callable[[Tensor, Tensor], Tensor]
    """(A, w) -> (N, *input)."""
    z_each: Callable[[Tensor, Tensor], Tensor]
    """(A, one weight for each function (N, *w)) -> (N, *input)."""
    z_ones: Callable[[Tensor], Tensor]
    """z(A, w) for a w of ones; dimensions along which it is constant may be 1."""
    w: Callable[[Tensor, Tensor], Tensor]
    """(A (S, B, *shape), z (B, *input)) -> (S, B, *w)."""


def by_differentiation(apply: Callable[[Tensor, Tensor], Tensor], z_shape: tuple[int, ...], w: Tensor) -> Derivatives:
    """The derivatives of any product.  w: a tensor of the weight's shape."""

    def pulled(f: Callable[[Tensor], Tensor], at: Tensor, A: Tensor) -> Tensor:
        return vjp(f, at)[1](A)[0]

    def of_z(A: Tensor, w: Tensor) -> Tensor:
        return pulled(partial(_swapped, apply, w), A.new_zeros(1, *[1] * len(z_shape)).expand(len(A), *z_shape), A)

    def z_of_one(A: Tensor, w: Tensor) -> Tensor:
        return of_z(A[None], w)[0]

    def w_of_one(A: Tensor, z: Tensor) -> Tensor:
        return pulled(partial(apply, z[None]), w, A[None])

    def of_w(A: Tensor, z: Tensor) -> Tensor:
        found = vmap(w_of_one)(A.flatten(0, 1), z.expand(len(A), *z.shape).flatten(0, 1))
        return found.view(*A.shape[:2], *w.shape)

    return Derivatives(of_z, vmap(z_of_one), lambda A: of_z(A, torch.ones_like(w)), of_w)


def _swapped(apply: Callable[[Tensor, Tensor], Tensor], w: Tensor, z: Tensor) -> Tensor:
    return apply(z, w)


def of_convolution(
    w_shape: tuple[int, ...], *, z_shape: tuple[int, ...], stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Derivatives | None:
    """The derivatives of a convolution in two dimensions with numbers for padding; None for others."""
    if len(z_shape) != 3 or isinstance(padding, str):
        return None
    stride, padding, dilation = ([v] * 2 if isinstance(v, int) else list(v) for v in (stride, padding, dilation))

    straight = stride == dilation == [1, 1] and all(p < k for k, p in zip(w_shape[2:], padding, strict=True))

    def of_z(A: Tensor, w: Tensor, groups: int = groups) -> Tensor:
        if straight and groups == 1:  # the convolution with the kernel turned round, which is quicker
            turned = w.flip(2, 3).transpose(0, 1)
            return torch.conv2d(A, turned, None, padding=[k - 1 - p for k, p in zip(w_shape[2:], padding, strict=True)])
        like = A.new_empty(1).expand(len(A), w.shape[1] * groups, *z_shape[1:])  # only its shape is read
        settings = (stride, padding, dilation, False, [0, 0], groups, [True, False, False])
        return torch.ops.aten.convolution_backward(A, like, w, None, *settings)[0]

    def each(A: Tensor, w: Tensor) -> Tensor:
        """One convolution with as many groups as there are functions."""
        return of_z(A.flatten(0, 1)[None], w.flatten(0, 1), len(A) * groups).view(len(A), *z_shape)

    def ones(A: Tensor) -> Tensor:
        if groups > 1:
            return of_z(A, A.new_ones(w_shape))
        return of_z(A.sum(1, keepdim=True), A.new_ones(1, 1, *w_shape[2:]))

    def of_w(A: Tensor, z: Tensor) -> Tensor:
        """Each output position times the patch of z that it sees, summed over positions."""
        patches = F.unfold(z, w_shape[2:], dilation, padding, stride).unflatten(1, (groups, -1))  # (B, groups, patch, positions)
        A = A.flatten(3).unflatten(2, (groups, -1))
        return torch.einsum("sbgop,bgqp->sbgoq", A, patches).reshape(*A.shape[:2], *w_shape)

    return Derivatives(of_z, each, ones, of_w)


def of_windows(parts: Sequence[Tensor], kernel: Kernel) -> Tensor:
    """Coefficients of all that windows hold, from those of their elements: parts (..., h, w), one for each element of a window.

    Windows of h x w outputs reach (h - 1) stride + dilation (size - 1) + 1 rows, and so many columns.
    """
    walks = zip(parts[0].shape[-2:], kernel.stride, kernel.dilation, kernel.size, strict=True)
    spans = [((n - 1) * s + 1, s, d, (n - 1) * s + d * (k - 1) + 1) for n, s, d, k in walks]
    apart = kernel.stride == kernel.size and kernel.dilation == (1, 1)
    found = (parts[0].new_empty if apart else parts[0].new_zeros)(*parts[0].shape[:-2], *(span[-1] for span in spans))
    (high, s, d, _), (wide, t, e, _) = spans
    elements = itertools.product(range(kernel.size[0]), range(kernel.size[1]))
    for part, (row, column) in zip(parts, elements, strict=True):
        at = found[..., d * row : d * row + high : s, e * column : e * column + wide : t]
        if apart:
            at.copy_(part)
        else:
            at.add_(part)
    return found


def fitted(A: Tensor, shape: Sequence[int], kernel: Kernel) -> Tensor:
    """Coefficients of all that the windows of a whole signal hold, as those of its input (..., H, W): without the padding."""
    ends = [(-p, n + p - found) for found, n, p in zip(A.shape[-2:], shape[-2:], kernel.padding, strict=True)]
    return F.pad(A, [*ends[1], *ends[0]]) if any(any(e) for e in ends) else A


def of_linear(w_shape: tuple[int, ...]) -> Derivatives:
    """The derivatives of F.linear at any number of positions."""
    return Derivatives(
        z=lambda A, w: A @ w,
        z_each=lambda A, w: (A.flatten(1, -2) @ w).view(*A.shape[:-1], w.shape[-1]),
        z_ones=lambda A: A.sum(-1, keepdim=True),
        w=lambda A, z: torch.einsum("sbpo,bpi->sboi", A.flatten(2, -2), z.flatten(1, -2)),
    )


def of_matmul(w_shape: tuple[int, ...]) -> Derivatives:
    """The derivatives of z @ w with a matrix w, at any number of positions."""
    return Derivatives(
        z=lambda A, w: A @ w.mT,
        z_each=lambda A, w: torch.einsum("n...o,nio->n...i", A, w),
        z_ones=lambda A: A.sum(-1, keepdim=True),
        w=lambda A, z: torch.einsum("sb...o,b...i->sbio", A, z),
    )


def of_scale(w_shape: tuple[int, ...], *, spread: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Derivatives | None:
    """The derivatives of z * spread(w) of the shape of z.

    None if w has a batch dimension too, or is a part of its parameter, or in another order.
    """
    if len(w_shape) > len(shape):
        return None

    numbers = torch.arange(torch.Size(w_shape).numel())
    seen = spread(numbers.view(w_shape))
    if not torch.equal(seen.flatten(), numbers):
        return None
    kept = seen.shape  # 1 where w is spread
    kept = (*[1] * (len(shape) - len(kept)), *kept)
    dims = "cdefghij"[: len(shape)]
    sums = f"sb{dims},b{dims}->sb{''.join(d for d, n in zip(dims, kept, strict=True) if n > 1)}"

    def of_w(A: Tensor, z: Tensor) -> Tensor:
        return torch.einsum(sums, A, z).view(*A.shape[:2], *w_shape)

    def whole(w: Tensor) -> Tensor:
        return spread(w).expand(shape)

    return Derivatives(
        z=lambda A, w: A * spread(w),
        z_each=lambda A, w: A * vmap(whole)(w),
        z_ones=lambda A: A,
        w=of_w,
    )
