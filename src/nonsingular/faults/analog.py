"""analog.py - weights as conductances of phase-change or resistive memory: programming noise, drift, read noise.

Each weight is a pair of devices: W = (G+ - G-) max|W| / g_max, of which one is programmed to |W| g_max / max|W|, the other to 0.
Parameters are in microsiemens and seconds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import Fault, Weights, check_moves, chosen, truth
from nonsingular.threat.ball import Moves


class _Pairs(Fault):
    """A fault of conductance pairs, drawn for each device alone."""

    g_max: float
    moves: Moves

    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        if generator is None:
            raise InvalidInput(f"the fault '{self.name}' draws; give a torch.Generator")
        found: dict[str, Tensor] = {}
        for name, w in chosen(weights, self.moves).items():
            top = w.double().abs().max() if w.numel() else w.new_zeros((), dtype=torch.float64)
            if not top > 0:  # nothing is programmed
                found[name] = w.clone()
                continue
            target = w.double() / top * self.g_max
            pair = [self.device(side, generator) for side in (target.clamp(min=0), (-target).clamp(min=0))]
            now, programmed = (plus - minus for plus, minus in zip(*pair, strict=True))
            found[name] = (now * self.gain(programmed, now) * top / self.g_max).to(w.dtype)
        return found

    @abstractmethod
    def device(self, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """(conductance when it is used, conductance as it was programmed) in microsiemens, both >= 0."""

    def gain(self, programmed: Tensor, now: Tensor) -> Tensor | float:
        """What the outputs of the array are multiplied with."""
        return 1.0


def _noise(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device=generator.device).to(like.device)


@dataclass(frozen=True)
class PhaseChange(_Pairs):
    """Phase-change memory `seconds` after it was programmed and first read.

    With r = G / g_max: programming adds Gaussian noise of 0.26348 + 1.9650 r - 1.1731 r^2 microsiemens (for g_max = 25, in
    proportion for others).  Drift multiplies by ((t + 20 s) / 20 s)^-nu, nu Gaussian for each device with mean -0.0155 ln r +
    0.0244 within [0.049, 0.1] and standard deviation -0.0125 ln r - 0.0059 within [0.008, 0.045].  Read noise is 1 / f: relative
    standard deviation q sqrt(ln((t + 20 s + t_r) / 2 t_r)), q = 0.0088 / r^0.65 <= 0.2, t_r = 250 ns.  Conductances stay >= 0.
    seconds: 0 or more.  g_max: in microsiemens.  compensated: each tensor is scaled so that the mean |W| is that when it was
        programmed: a global compensation of drift.  reads: with read noise.  moves: as in JointBall.
    Gaussian noise has no bound, so there is no box.  Draws need a generator.
    Source: the model of Joshi et al., arXiv:1906.03138, and Nandakumar et al., ICECS 2019, with the numbers of IBM's aihwkit.
    """

    seconds: float = 0.0
    g_max: float = 25.0
    compensated: bool = True
    reads: bool = True
    moves: Moves = "weights"
    name: ClassVar[str] = "pcm"

    T0: ClassVar[float] = 20.0
    T_READ: ClassVar[float] = 250e-9
    REFERENCE: ClassVar[float] = 25.0

    def __post_init__(self) -> None:
        if not (0 <= self.seconds < math.inf and 0 < self.g_max < math.inf):
            raise InvalidInput(f"seconds is {self.seconds!r} and g_max {self.g_max!r}; give 0 or more, and more than 0")
        truth("compensated", self.compensated)
        truth("reads", self.reads)
        check_moves(self.moves)

    def device(self, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        r = target / self.g_max
        sigma = (0.26348 + 1.9650 * r - 1.1731 * r**2) * self.g_max / self.REFERENCE
        programmed = (target + sigma * _noise(target, generator)).clamp(min=0)
        log_r = r.clamp(min=1e-7).log()
        nu = (-0.0155 * log_r + 0.0244).clamp(0.049, 0.1)
        nu = (nu + (-0.0125 * log_r - 0.0059).clamp(0.008, 0.045) * _noise(target, generator)).abs()
        age = self.seconds + self.T0
        now = programmed * (age / self.T0) ** -nu
        if self.reads:
            q = (0.0088 / ((programmed / self.g_max) ** 0.65).clamp(min=1e-3)).clamp(max=0.2)
            relative = q * math.sqrt(math.log((age + self.T_READ) / (2 * self.T_READ)))
            now = (now * (1 + relative * _noise(target, generator))).clamp(min=0)
        return now, programmed

    def gain(self, programmed: Tensor, now: Tensor) -> Tensor | float:
        if not self.compensated:
            return 1.0
        size = now.abs().mean()
        return programmed.abs().mean() / size if bool(size > 0) else 1.0


RERAM: dict[float, tuple[float, ...]] = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    86_400.0: (0.701, 22.086, -50.773, 47.095, -16.458),
    172_800.0: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Seconds after programming -> coefficients of r^0, r^1, ... of the standard deviation in microsiemens, for g_max = 40."""


@dataclass(frozen=True)
class ReRAM(_Pairs):
    """Resistive memory 1 second, 1 day or 2 days after it was programmed: Gaussian noise that depends on the conductance.

    The standard deviation is a polynomial in G / g_max, fitted to measurements at these times (table RERAM): microsiemens for
    g_max = 40, in proportion for others; 0 where the fit is below 0.  Conductances stay >= 0.
    seconds: 1, 86400 or 172800.  g_max: in microsiemens.  moves: as in JointBall.
    No drift of the mean and no separate read noise, for which that source has no numbers.  There is no box.
    Source: Wan et al., Nature 608 (2022), doi:10.1038/s41586-022-04992-8, with the fit of IBM's aihwkit.
    """

    seconds: float = 86_400.0
    g_max: float = 40.0
    moves: Moves = "weights"
    name: ClassVar[str] = "reram"

    REFERENCE: ClassVar[float] = 40.0

    def __post_init__(self) -> None:
        if self.seconds not in RERAM or not 0 < self.g_max < math.inf:
            times = ", ".join(f"{t:g}" for t in RERAM)
            raise InvalidInput(f"seconds is {self.seconds!r} and g_max {self.g_max!r}; give {times}, and more than 0")
        check_moves(self.moves)

    def device(self, target: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        r = target / self.g_max
        sigma = sum((c * r**k for k, c in enumerate(RERAM[self.seconds])), torch.zeros_like(r)).clamp(min=0)
        now = (target + sigma * self.g_max / self.REFERENCE * _noise(target, generator)).clamp(min=0)
        return now, now
