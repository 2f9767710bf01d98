"""rounded.py - rounding to whole numbers, and products of these, each as one call that graphs of torch.fx and recordings see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from nonsingular.network.vocabulary import name_of

_F = TypeVar("_F", bound=Callable[..., Any])


def one_call(f: _F) -> _F:
    """A function that torch.fx and recordings take as one call, as they do functions of torch."""

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) or hasattr(v, "__torch_function__"))
        if has_torch_function(tensors):
            return handle_torch_function(call, tensors, *args, **kwargs)
        return f(*args, **kwargs)

    return cast(_F, call)


@one_call
def rounded(z: Tensor) -> Tensor:
    """The nearest whole number of each element, of two the even one.  Its gradient is that of z: straight through.

    r - z is exact, as r / 2 <= z <= 2 r or r = 0, and so is z + (r - z).  Source: Bengio et al., arXiv:1308.3432.
    """
    return z + (z.round() - z).detach()


Walk = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation and groups of a convolution."""


@one_call  # its weight in two forms: torch.fx records them as arguments
def integer_product(z: Tensor, weight: Tensor, words: Tensor, step: Tensor, bias: Tensor | None, walk: Walk | None) -> Tensor:
    """A product of whole numbers z (N, ...) with `words` (out, ...) plus `bias` (out,): linear, or a convolution as `walk` says.

    weight: step * words, exactly, or moved away from there; what it moved, in steps, is added to the words.  step: (out or 1,).
    Summed in float64, where sums of products of words of 8 bits are exact up to 2^37 of them, and rounded once at the end.
    """
    spread = step.double().view(-1, *[1] * (weight.dim() - 1))
    moved = weight.double() - words.double() * spread
    w, b = words.double() + moved / spread, None if bias is None else bias.double()
    if walk is None:
        return F.linear(z.double(), w, b).to(z.dtype)
    f = (torch.conv1d, torch.conv2d, torch.conv3d)[weight.dim() - 3]
    return f(z.double(), w, b, *walk).to(z.dtype)


@one_call
def linear_among(input: Tensor, weight: Tensor, bias: Tensor | None, others: int) -> Tensor:
    """F.linear, whose terms are added up together with `others` more: a gate of a recurrent layer."""
    return F.linear(input, weight, bias)


@one_call
def toward(n: Tensor, z: Tensor, h: Tensor | None) -> Tensor:
    """n + z (h - n), in that form or as (1 - z) n + z h.  h: None for 0."""
    return n - z * n if h is None else n + z * (h - n)


@one_call
def fused(z: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """factor * z + offset, rounded once: a fused multiply-add."""
    return (z.double() * factor.double() + offset.double()).to(z.dtype)


def faked(
    z: Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int, *, rounding: Callable[[Tensor], Tensor] = rounded
) -> Tensor:  # fmt: skip
    """`torch.fake_quantize_per_tensor_affine`, in any precision."""
    return (rounding(torch.clamp(z / scale + zero_point, quant_min, quant_max)) - zero_point) * scale


def faked_by_channel(
    z: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int, *,
    rounding: Callable[[Tensor], Tensor] = rounded,
) -> Tensor:  # fmt: skip
    """`torch.fake_quantize_per_channel_affine`, in any precision."""
    spread = [-1 if d == axis % z.dim() else 1 for d in range(z.dim())]
    return faked(z, scale.view(spread), zero_point.view(spread), quant_min, quant_max, rounding=rounding)


FAKED: dict[str, Callable[..., Tensor]] = {
    "fake_quantize_per_tensor_affine": faked,
    "fake_quantize_per_channel_affine": faked_by_channel,
}
"""Functions of torch that compute in float32 alone, by name, and the same in any precision."""


def _as_it_is(z: Tensor, **kwargs: Any) -> Tensor:
    return z


_WITHOUT: dict[Any, Callable[..., Tensor]] = {
    rounded: _as_it_is,
    "round": _as_it_is,
    **{name: functools.partial(f, rounding=_as_it_is) for name, f in FAKED.items()},
}


class _Unrounded(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        f = _WITHOUT.get(func) or _WITHOUT.get(name_of(func)) or func
        return f(*args, **(kwargs or {}))


@contextmanager
def unrounded() -> Generator[None]:
    """Inside, nothing is rounded to whole numbers: networks are continuous, and two ways to compute one agree up to precision.

    Where a sum lies next to a tie, its last bit decides which way it is rounded, and outputs then differ by whole steps.
    """
    with _Unrounded():
        yield
