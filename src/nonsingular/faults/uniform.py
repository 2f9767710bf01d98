"""uniform.py - weights rounded to evenly spaced levels: the effect of storing them as whole numbers of few bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import Radii, Storage, Weights, check_moves, chosen, truth, whole
from nonsingular.faults.words import Words
from nonsingular.threat.ball import Moves
from nonsingular.threat.radius import Radius, largest

SLACK = 2.0**-50
"""How much further than half a step rounding in float64 can carry a weight, in multiples of the range: see `_radius`."""


@dataclass(frozen=True)
class UniformRounding(Storage):
    """Rounding to the nearest of even levels, b = `bits`: |W' - W| <= step / 2, step = max |W| / (2^(b-1) - 1).

    bits: 2 to 16.  per_channel: each output channel (first dimension) of a tensor of two or more dimensions has its own step.
    moves: which tensors are rounded, as in JointBall.
    symmetric: False takes step = (max W - min W) / (2^b - 1) over a range that holds 0, and words from 0 to 2^b - 1, of which one
        means 0.
    w_max: weights beyond +-w_max are stored as the nearest end.  None: the range is that of the tensor.
    stochastic: to one of the two nearest levels, with the mean of the weight: |W' - W| <= step.  It draws.
    The box holds every rounding within half a step, also that of a device that rounds ties or products in another way.  Values
    are rounded to the dtype of the tensor.  A channel of zeros stays as it is.
    Source: e.g. Jacob et al., arXiv:1712.05877.  Raises InvalidInput for invalid settings, and weights that are not finite.
    """

    bits: int = 8
    per_channel: bool = False
    moves: Moves = "weights"
    symmetric: bool = True
    w_max: float | None = None
    stochastic: bool = False
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        whole("bits", self.bits, 2, 16)
        for name in ("per_channel", "symmetric", "stochastic"):
            truth(name, getattr(self, name))
        check_moves(self.moves)
        if self.w_max is not None and not 0 < self.w_max < math.inf:
            raise InvalidInput(f"w_max is {self.w_max!r}; give a number above 0, or None")

    @property
    def levels(self) -> int:
        """Steps in the range: from 0 to its end where it is symmetric (the lowest word of two's complement is not used)."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def words(self, weights: Weights, generator: Generator | None = None) -> dict[str, Words]:
        """The whole numbers that are stored, by name; int8 up to 8 bits, int16 beyond, int32 without a sign."""
        if self.stochastic and generator is None:
            raise InvalidInput("stochastic rounding draws; give a torch.Generator")
        return {name: self._words(w, generator) for name, w in chosen(weights, self.moves).items()}

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius]:
        away = {name: largest(radius) for name, radius in (within or {}).items()}
        return {name: self._radius(w, away.get(name, 0.0)) for name, w in chosen(weights, self.moves).items()}

    def _words(self, w: Tensor, generator: Generator | None) -> Words:
        lo, size = self._range(w, 0.0)
        per_step = torch.where(size > 0, size, 1.0)
        at = w.double() * self.levels / per_step
        word = at.round() if generator is None or not self.stochastic else _either(at, generator)
        if self.symmetric:
            kind, zero = (torch.int8 if self.bits <= 8 else torch.int16), 0
            word = word.clamp(-self.levels, self.levels)
        else:
            kind, zero = torch.int32, (-lo * self.levels / per_step).round()
            word = (word + zero).clamp(0, self.levels)
        return Words(word.to(kind), self.bits, size, self.levels, zero if isinstance(zero, int) else zero.long(), self.symmetric)

    def _range(self, w: Tensor, away: float) -> tuple[Tensor, Tensor]:
        """(lowest value, what all levels are worth) in float64: of the tensor, or of each channel in a shape that broadcasts.

        away: how far weights may be from `w`; the range is then the largest that these may have.
        """
        if not w.numel():
            return w.new_zeros((), dtype=torch.float64), w.new_zeros((), dtype=torch.float64)
        dims = tuple(range(1, w.dim())) if self.per_channel and w.dim() > 1 else tuple(range(w.dim()))
        keep = self.per_channel and w.dim() > 1
        most = math.inf if self.w_max is None else self.w_max
        lo, hi = (w.double().amin(dims, keepdim=keep) - away).clamp(-most, 0), (w.double().amax(dims, keepdim=keep) + away)
        hi = hi.clamp(0, most)
        return lo, torch.maximum(-lo, hi) if self.symmetric else hi - lo

    def _radius(self, w: Tensor, away: float) -> Radius:
        """A step or half of one, what rounding in float64 adds to it, and how far weights are beyond the range.

        With u = 2^-53 and S = top / levels: t = fl(fl(W levels) / top) has |t S - W| <= 2u |W|, q = round(t) has |q - t| <= 1/2,
        and v = fl(fl(q top) / levels) has |v - q S| <= 2u |q S|, or 2^-1075 where it is subnormal.  So |v - W| <= S/2 +
        4u top (1 + 4u) and that.  SLACK is 8u; two steps to the next number cover the subnormal ones.  Rounding v to fewer bits
        is monotone: it does not leave a box whose ends are numbers of that dtype.
        Without symmetry, top is the range, rounded by u, and both ends of it are within half a step of a word, since
        round(lo / S) + zero = 0 and the words that belong to lo and hi are less than levels + 1 apart.
        """
        _, top = self._range(w, away)
        radius = top / self.levels / (1 if self.stochastic else 2) + SLACK * top
        if self.w_max is not None and w.numel():
            radius = radius + ((w.double().abs().max() + away) * (1 + SLACK) - self.w_max).clamp(min=0)
        for _ in range(2):
            radius = torch.nextafter(radius, radius.new_tensor(torch.inf))
        radius = torch.where(top > 0, radius, 0.0)
        return radius if radius.dim() else radius.item()


def _either(at: Tensor, generator: Generator) -> Tensor:
    """The whole number below or above, with the mean `at`."""
    u = torch.rand(at.shape, generator=generator, dtype=at.dtype, device=generator.device).to(at.device)
    return torch.where(u < at - at.floor(), at.floor() + 1, at.floor())
