"""words.py - what a device stores for its weights, bit by bit, and which of these bits may flip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

W = TypeVar("W", bound="Stored")


@dataclass(frozen=True, order=True)
class Flip:
    """One flipped bit: of the word at `index` (of the flat tensor) of the parameter `name`; bit 0 is the least significant."""

    name: str
    index: int
    bit: int


@dataclass(frozen=True, eq=False)
class Stored(ABC):
    """One tensor as words of `bits` bits."""

    word: Tensor
    bits: int

    @abstractmethod
    def values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The values of the words, rounded to `dtype`."""

    def pattern(self) -> Tensor:
        """The stored bits as whole numbers from 0 to 2^bits - 1, int64; bit 0 is the least significant."""
        return self.word.long() & (2**self.bits - 1)

    @abstractmethod
    def holding(self: W, pattern: Tensor) -> W:
        """The same format with these bits."""

    @property
    @abstractmethod
    def blank(self) -> Tensor | int:
        """The pattern whose value is 0."""


@dataclass(frozen=True, eq=False)
class Words(Stored):
    """Whole numbers: value = (word - zero) * largest / levels.  Two's complement, or without a sign where `signed` is False.

    word: whole numbers, in the shape of the tensor.  largest: float64, what `levels` steps are worth; of the whole tensor, or of
    each channel in a shape that broadcasts.  zero: the word of the value 0.
    """

    largest: Tensor
    levels: int
    zero: Tensor | int = 0
    signed: bool = True

    @property
    def step(self) -> Tensor:
        """The distance of two neighbouring levels, in the shape of `largest`."""
        return self.largest / self.levels

    def values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return ((self.word.double() - self.zero) * self.largest / self.levels).to(dtype)  # not times step, which may underflow

    def holding(self, pattern: Tensor) -> Words:
        top = 2 ** (self.bits - 1)
        word = (pattern ^ top) - top if self.signed else pattern  # two's complement: the top bit counts -2^(b-1)
        return replace(self, word=word.to(self.word.dtype))

    @property
    def blank(self) -> Tensor | int:
        return self.zero


@dataclass(frozen=True, eq=False)
class FloatWords(Stored):
    """Numbers in floating point, such as bfloat16.  word: in that type."""

    def values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.word.float().to(dtype) if self.bits < 32 else self.word.to(dtype)  # every short type is exact in float32

    def pattern(self) -> Tensor:
        return self.word.contiguous().view(_WHOLE[self.bits]).long() & (2**self.bits - 1)

    def holding(self, pattern: Tensor) -> FloatWords:
        top = 2 ** (self.bits - 1)
        signed = pattern if self.bits == 8 else (pattern ^ top) - top
        return replace(self, word=signed.to(_WHOLE[self.bits]).view(self.word.dtype))

    @property
    def blank(self) -> int:
        return 0


_WHOLE = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


@dataclass(frozen=True, eq=False)
class Flips:
    """Every set of at most `most` flipped bits of these words, by name of the tensor."""

    words: Mapping[str, Words]
    most: int
