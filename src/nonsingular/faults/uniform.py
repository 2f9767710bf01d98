"""uniform.py - weights rounded to evenly spaced levels: the effect of storing them as whole numbers of few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Generator, Tensor

from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import Fault, Radii, Weights, chosen
from nonsingular.faults.words import Words
from nonsingular.threat.ball import Moves
from nonsingular.threat.radius import Radius, largest

SLACK = 2.0**-50
"""How much further than half a step rounding in float64 can carry a weight, in multiples of the largest: see `_radius`."""


@dataclass(frozen=True)
class UniformRounding(Fault):
    """Rounding to the nearest of even levels, b = `bits`: |W' - W| <= step / 2, step = max |W| / (2^(b-1) - 1).

    bits: 2 to 16.  per_channel: each output channel (first dimension) of a tensor of two or more dimensions has its own step.
    moves: which tensors are rounded, as in JointBall.
    The box holds every rounding within half a step, also that of a device that rounds ties or products in another way.  Values
    are rounded to the dtype of the tensor.  A channel of zeros stays as it is.
    Source: e.g. Jacob et al., arXiv:1712.05877.  Raises InvalidInput for invalid settings, and weights that are not finite.
    """

    bits: int = 8
    per_channel: bool = False
    moves: Moves = "weights"
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 16:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"bits is {self.bits!r}; give a whole number from 2 to 16")
        if not isinstance(self.per_channel, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"per_channel is {self.per_channel!r}; give True or False")
        if self.moves not in get_args(Moves):
            raise InvalidInput(f"moves is {self.moves!r}; choose one of {', '.join(get_args(Moves))}")

    @property
    def levels(self) -> int:
        """Levels above 0, and as many below: the lowest word of two's complement is not used."""
        return 2 ** (self.bits - 1) - 1

    def words(self, weights: Weights) -> dict[str, Words]:
        """The whole numbers that are stored, by name; int8 up to 8 bits, int16 beyond."""
        return {name: self._words(w) for name, w in chosen(weights, self.moves).items()}

    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        return {name: words.values(weights[name].dtype) for name, words in self.words(weights).items()}

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius]:
        away = within or {}
        return {
            name: _radius(self._largest(w) + largest(away.get(name, 0.0)), self.levels)
            for name, w in chosen(weights, self.moves).items()
        }

    def _words(self, w: Tensor) -> Words:
        top = self._largest(w)
        word = (w.double() * self.levels / torch.where(top > 0, top, 1.0)).round()  # at most levels, for |W| <= top
        return Words(word.to(torch.int8 if self.bits <= 8 else torch.int16), top, self.levels, self.bits)

    def _largest(self, w: Tensor) -> Tensor:
        """max |W| in float64: of the tensor, or of each channel in a shape that broadcasts."""
        size = w.double().abs()
        if not w.numel():
            return size.new_zeros(())
        return size.amax(tuple(range(1, w.dim())), keepdim=True) if self.per_channel and w.dim() > 1 else size.max()


def _radius(top: Tensor, levels: int) -> Radius:
    """Half a step and what rounding in float64 adds to it.

    With u = 2^-53 and S = top / levels: t = fl(fl(W levels) / top) has |t S - W| <= 2u |W|, q = round(t) has |q - t| <= 1/2, and
    v = fl(fl(q top) / levels) has |v - q S| <= 2u |q S|, or 2^-1075 where it is subnormal.  So |v - W| <= S/2 + 4u top (1 + 4u)
    and that.  SLACK is 8u; two steps to the next number cover the subnormal ones.  Rounding v to fewer bits is monotone: it does
    not leave a box whose ends are numbers of that dtype.
    """
    radius = top / levels / 2 + SLACK * top
    for _ in range(2):
        radius = torch.nextafter(radius, radius.new_tensor(torch.inf))
    radius = torch.where(top > 0, radius, 0.0)
    return radius if radius.dim() else radius.item()
