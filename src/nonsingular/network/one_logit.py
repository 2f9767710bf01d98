"""one_logit.py - a network with one logit z for two classes, seen as the classifier with the logits (0, z)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import reduce
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = ((0.0,), (1.0,))
"""(2, 1) the fixed matrix that makes the logits (0, z) of (z,)."""


class Adapter(nn.Module):
    """A module seen in another way.  Parameters, buffers and modules are those of `inner`, under its own names; it adds none.

    inner: used, not copied.
    """

    inner: nn.Module
    _SHARED = ("_parameters", "_buffers", "_modules")

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        # the same mappings, so that a swap in one shows in both
        self.keep(inner=inner, training=inner.training, **{held: getattr(inner, held) for held in self._SHARED})

    def keep(self, **values: Any) -> None:
        """Sets attributes of the adapter itself: not submodules, and without a clash with modules of these names in `inner`."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(self.inner(x))

    def seen(self, out: Tensor) -> Tensor:
        """The output of the adapter from the output of `inner`."""
        return out

    def train(self, mode: bool = True) -> Self:
        self.inner.train(mode)
        self.keep(training=mode)
        return self


def unwrapped(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The module inside all adapters, and what they make of its output.  There its names cannot clash with those of adapters."""
    seen: list[Callable[[Tensor], Tensor]] = []
    while isinstance(model, Adapter):
        seen.append(model.seen)
        model = model.inner
    return model, lambda out: reduce(lambda y, see: see(y), reversed(seen), out)


class OneLogit(Adapter):
    """`inner`: (B, *input) -> (B, 1) or (B,), seen as (B, 2) logits (0, z): class 1 is ahead by z, and softmax gives sigmoid(z).

    flat: whether `inner` returns (B,).
    """

    flat: bool

    def __init__(self, inner: nn.Module, *, flat: bool) -> None:
        super().__init__(inner)
        self.keep(flat=flat)

    def seen(self, out: Tensor) -> Tensor:
        z = out.reshape(-1, 1)
        return F.linear(z, torch.tensor(HEAD, dtype=z.dtype, device=z.device))

    def __deepcopy__(self, memo: dict[int, Any]) -> OneLogit:
        return OneLogit(copy.deepcopy(self.inner, memo), flat=self.flat)


def flat_of(model: nn.Module) -> bool | None:
    """Whether a model with one logit returns (B,), not (B, 1); None for any other model."""
    while isinstance(model, Adapter):
        if isinstance(model, OneLogit):
            return model.flat
        model = model.inner
    return None
