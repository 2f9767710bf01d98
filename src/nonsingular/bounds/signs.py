"""signs.py - parts of regions: which signs of neurons each fixes, and how it was bounded so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """N parts.  example, other: (N,) whose margin over which class.  sign, slope, multiplier: (N, neurons).  low: (N,)."""

    example: Tensor
    other: Tensor
    sign: Tensor
    slope: Tensor
    multiplier: Tensor
    low: Tensor

    def __getitem__(self, at: Tensor) -> Parts:
        return Parts(*(getattr(self, f.name)[at] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.low)

    def signed(self, neuron: Tensor, sign: int) -> Parts:
        """The same parts with one more sign fixed in each.  neuron: (N,)."""
        return replace(self, sign=self.sign.scatter(1, neuron[:, None], sign))

    @staticmethod
    def join(parts: Sequence[Parts]) -> Parts:
        return Parts(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Parts)))
