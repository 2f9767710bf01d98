"""radius.py - how far a tensor may move: one number, one for each element, or a pair of these."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from nonsingular.errors import InvalidInput

Side = float | Tensor
"""How far one end of a box is from its centre: one number for all of a tensor, or a tensor that broadcasts to its shape."""
Radius = Side | tuple[Side, Side]
"""How far a tensor moves either way; a pair (below, above) is the box [W - below, W + above].

For a kernel of shape (C, D, H, W), shape (C, 1, 1, 1) gives each output channel its own radius, the full shape each element.
For inputs of shape (C, H, W), shape (C, 1, 1) gives each channel its own, and a mask times a radius moves a part of the pixels.
"""


def ends(radius: Radius) -> tuple[Side, Side]:
    """(below, above): the distances of the two ends of the box; one object twice for a symmetric box."""
    return radius if isinstance(radius, tuple) else (radius, radius)


def largest(radius: Radius) -> float:
    """The largest distance of an end: the radius of the smallest uniform ball around the box."""
    return max(side.max().item() if isinstance(side, Tensor) else side for side in ends(radius))


def told(radius: Radius) -> Any:
    """A radius as JSON: a number, or the shape, the largest value and a hash of a tensor."""
    if isinstance(radius, tuple):
        return {"below": told(radius[0]), "above": told(radius[1])}
    if isinstance(radius, Tensor):
        values = radius.detach().cpu().double().contiguous().numpy()
        return {"shape": list(radius.shape), "largest": largest(radius), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    return radius


def checked_radius(name: str, radius: Any) -> Radius:
    """A copy of a radius in its simplest form.  Raises InvalidInput for anything but a radius."""
    if not isinstance(radius, tuple):
        return _checked_side(name, radius)
    if len(radius) != 2:
        raise InvalidInput(f"{name} is a tuple of {len(radius)}; a pair is (below, above)")
    below, above = (_checked_side(f"{name}[{i}]", side) for i, side in enumerate(radius))
    if isinstance(below, Tensor) and isinstance(above, Tensor):
        try:
            torch.broadcast_shapes(below.shape, above.shape)
        except RuntimeError:
            raise InvalidInput(
                f"{name} is a pair of shapes {tuple(below.shape)} and {tuple(above.shape)}, which do not fit together"
            ) from None
    return below if comparable(below) == comparable(above) else (below, above)


def _checked_side(name: str, side: Any) -> Side:
    if not isinstance(side, Tensor) and getattr(side, "ndim", 0) and hasattr(side, "__array__"):
        try:
            side = torch.as_tensor(side)
        except (TypeError, ValueError, RuntimeError):
            raise InvalidInput(f"{name} is an array of {getattr(side, 'dtype', 'objects')}; give real numbers") from None
    if isinstance(side, Tensor) and side.dim():
        if not side.numel() or side.is_complex():
            raise InvalidInput(
                f"{name} is a tensor of shape {tuple(side.shape)} and {side.dtype}; give real numbers, one or more"
            )
        with torch.inference_mode(False):
            side = side.detach().to("cpu", torch.float64)
            bad = side[~(torch.isfinite(side) & (side >= 0))]
            _checked_number(name, bad[0].item() if len(bad) else 0.0)
            return side.abs().contiguous()  # a copy; without -0
    try:
        number = float(side)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} is {side!r}; give a number, a tensor, or a pair (below, above) of these") from None
    _checked_number(name, number)
    return number


def _checked_number(name: str, radius: float) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise InvalidInput(f"{name} is {radius}; a radius must be a finite number that is 0 or larger")


def check_shape(name: str, radius: Radius, shape: torch.Size) -> None:
    for side in ends(radius):
        if isinstance(side, Tensor) and not broadcasts(side, tuple(shape)):
            raise InvalidInput(
                f"eps_w['{name}'] has shape {tuple(side.shape)}, which does not broadcast to the parameter's shape "
                f"{tuple(shape)}; give that shape, or 1 in the dimensions that share a radius"
            )


def broadcasts(side: Tensor, shape: tuple[int, ...]) -> bool:
    own = tuple(side.shape)
    return len(own) <= len(shape) and all(a in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False))


def times(radius: Radius, factor: float) -> Radius:
    if isinstance(radius, tuple):
        return radius[0] * factor, radius[1] * factor
    return radius * factor


def comparable(side: Side) -> Any:
    """A value that hashes, equal for equal sides."""
    return (tuple(side.shape), side.numpy().tobytes()) if isinstance(side, Tensor) else side
