"""apart.py - the products of a graph where each example has weights of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.network.derivatives import Kernel
from nonsingular.network.nodes import Product

NARROW = 4
"""Input channels up to which a convolution is quicker as a product with the patches of its input."""


def product(node: Product, z: Tensor, w: Tensor | None, own: bool) -> Tensor:
    """(N, *shape) apply(z, w) at z (N, *input).  own: w is (N, *weight), one for each row; else all rows share it."""
    if w is None:
        return z
    if not own or not len(z):
        return node.apply(z, w if not own else w.new_zeros(w.shape[1:]))
    if node.kernel is not None:
        return _convolution(node.kernel, z, w)
    if node.dense:
        return torch.bmm(w, z[:, :, None])[:, :, 0]

    def alone(one: Tensor, w: Tensor) -> Tensor:
        return node.apply(one[None], w)[0]

    return vmap(alone)(z, w)


def shift(node: Product, b: Tensor, own: bool) -> Tensor:
    """What is added to the product, for biases b (N, *bias) or one b that all rows share; it broadcasts to (N, *shape)."""
    if not own or not len(b):
        return node.spread(b if not own else b.new_zeros(b.shape[1:]))
    found = vmap(node.spread)(b)
    return found.view(len(b), *[1] * (len(node.shape) + 1 - found.dim()), *found.shape[1:])


def sums_of_windows(z: Tensor, kernel: Kernel) -> Tensor:
    """(N, C, ...) the sum of what each window of a kernel sees of its own channel of z (N, C, H, W)."""
    if kernel.size == kernel.stride == (1, 1) and not any(kernel.padding):
        return z
    if kernel.dilation != (1, 1):
        ones = z.new_ones(z.shape[1], 1, *kernel.size)
        return torch.conv2d(z, ones, None, kernel.stride, kernel.padding, kernel.dilation, z.shape[1])
    (top, left), edges = kernel.padding, any(kernel.padding)
    z = F.pad(z, (left, left, top, top)) if edges else z
    return F.avg_pool2d(z, kernel.size, kernel.stride, divisor_override=1)


def _convolution(kernel: Kernel, z: Tensor, w: Tensor) -> Tensor:
    """One convolution with as many groups as there are rows; or, of few channels, one product of matrices a row."""
    if kernel.groups == 1 and z.shape[1] <= NARROW:
        patches = F.unfold(z, kernel.size, kernel.dilation, kernel.padding, kernel.stride)
        spans = zip(z.shape[2:], kernel.size, kernel.stride, kernel.padding, kernel.dilation, strict=True)
        return torch.bmm(w.flatten(2), patches).unflatten(2, [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans])
    together = z.reshape(1, -1, *z.shape[2:])
    groups = kernel.groups * len(z)
    found = torch.conv2d(together, w.flatten(0, 1), None, kernel.stride, kernel.padding, kernel.dilation, groups)
    return found.view(len(z), -1, *found.shape[2:])
