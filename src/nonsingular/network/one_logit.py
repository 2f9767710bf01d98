"""one_logit.py - a network with one logit z for two classes, seen as the classifier with the logits (0, z)."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = ((0.0,), (1.0,))
"""(2, 1) the fixed matrix that makes the logits (0, z) of (z,)."""


class OneLogit(nn.Module):
    """`inner`: (B, *input) -> (B, 1) or (B,), seen as (B, 2) logits (0, z): class 1 is ahead by z, and softmax gives sigmoid(z).

    Parameters, buffers and modules are those of `inner`, under its own names; the adapter has none.  inner: used, not copied.
    flat: whether `inner` returns (B,).
    """

    inner: nn.Module
    flat: bool

    def __init__(self, inner: nn.Module, *, flat: bool) -> None:
        super().__init__()
        object.__setattr__(self, "inner", inner)  # not as a submodule: names stay those of `inner`
        for held in ("_parameters", "_buffers", "_modules"):
            object.__setattr__(self, held, getattr(inner, held))  # the same mappings, so that what is swapped in one is in both
        self.flat, self.training = flat, inner.training

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x).reshape(-1, 1)
        return F.linear(z, torch.tensor(HEAD, dtype=z.dtype, device=z.device))

    def train(self, mode: bool = True) -> Self:
        self.inner.train(mode)
        return super().train(mode)

    def __deepcopy__(self, memo: dict[int, Any]) -> OneLogit:
        return OneLogit(copy.deepcopy(self.inner, memo), flat=self.flat)
