"""words.py - the whole numbers that a device stores for its weights, and which of their bits may flip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Words:
    """One tensor as whole numbers of `bits` bits, two's complement: value = word * largest / levels.

    word: whole numbers, in the shape of the tensor.  largest: float64, the |value| of the largest level; of the whole tensor, or
    of each channel in a shape that broadcasts.  levels: how many steps lie between 0 and `largest`.
    """

    word: Tensor
    largest: Tensor
    levels: int
    bits: int

    @property
    def step(self) -> Tensor:
        """The distance of two neighbouring levels, in the shape of `largest`."""
        return self.largest / self.levels

    def values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The values of the words, rounded to `dtype`."""
        return (self.word.double() * self.largest / self.levels).to(dtype)  # not word * step, which may underflow


@dataclass(frozen=True, eq=False)
class Flips:
    """Every set of at most `most` flipped bits of these words, by name of the tensor."""

    words: Mapping[str, Words]
    most: int
