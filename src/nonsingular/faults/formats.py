"""formats.py - weights in fixed point and in floating point of few bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import Radii, Storage, Weights, check_moves, chosen, whole
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import FloatWords, Words
from nonsingular.threat.ball import Moves
from nonsingular.threat.radius import Radius, largest

FORMATS = r"u?int([2-9]|1[0-6])(-per-channel)?|q\d+\.\d+|float32|bfloat16|float16|float8_e4m3fn|float8_e5m2"
"""Names of formats: see `storage_of`."""
FLOATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def storage_of(name: str, moves: Moves = "weights") -> Storage:
    """The format of a name: int8 (symmetric), uint8 (asymmetric), both also int8-per-channel; q3.13 (fixed point, with the sign
    among the bits before the point); float32, bfloat16, float16, float8_e4m3fn, float8_e5m2.

    Raises InvalidInput for other names.
    """
    if not re.fullmatch(FORMATS, name):
        raise InvalidInput(f"there is no format {name!r}; write int8, uint4-per-channel, q3.13 or bfloat16, for example")
    if name.startswith("q"):
        before, behind = map(int, name[1:].split("."))
        return FixedPoint(before + behind, behind, moves)
    if "int" not in name:
        return FloatFormat(name, moves)
    bits, per_channel = int(re.sub(r"\D", "", name)), name.endswith("-per-channel")
    return UniformRounding(bits, per_channel, moves, symmetric=not name.startswith("u"))


@dataclass(frozen=True)
class FixedPoint(Storage):
    """Two's complement with a fixed number of bits behind the point: step 2^-fraction in [-2^(b-1-f), 2^(b-1-f) - 2^-f].

    bits: 2 to 16, the sign among them.  fraction: bits behind the point, 0 to bits - 1; 16 and 13 is the format "3.13", with
    three bits before the point, one of them the sign.  Weights beyond the range are stored as its nearest end.
    moves: which tensors are stored so, as in JointBall.
    The range does not follow the weights: where it is much wider than they are, a flip of a high bit moves a weight far.
    Raises InvalidInput for invalid settings, and weights that are not finite.
    """

    bits: int = 16
    fraction: int = 13
    moves: Moves = "weights"
    name: ClassVar[str] = "fixed-point"

    def __post_init__(self) -> None:
        whole("bits", self.bits, 2, 16)
        whole("fraction", self.fraction, 0, self.bits - 1)
        check_moves(self.moves)

    def words(self, weights: Weights, generator: Generator | None = None) -> dict[str, Words]:
        top, found = 2 ** (self.bits - 1), chosen(weights, self.moves)
        return {
            name: Words(
                (w.double() * 2**self.fraction).round().clamp(-top, top - 1).to(torch.int16), self.bits,
                torch.tensor(2.0**-self.fraction, dtype=torch.float64, device=w.device), 1,
            )
            for name, w in found.items()
        }  # fmt: skip

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius]:
        step, most = 2.0**-self.fraction, 2.0 ** (self.bits - 1 - self.fraction)
        found: dict[str, Radius] = {}
        for name, w in chosen(weights, self.moves).items():  # the products are by powers of two: nothing is rounded but to a word
            far = (w.double().abs().max().item() if w.numel() else 0.0) + largest((within or {}).get(name, 0.0))
            found[name] = max(step / 2, far * (1 + 2.0**-50) - (most - step))
        return found


@dataclass(frozen=True)
class FloatFormat(Storage):
    """Weights in floating point of fewer bits, rounded to nearest: |W' - W| is at most half a unit in the last place of W.

    kind: "float32", "bfloat16", "float16", "float8_e4m3fn" or "float8_e5m2".  Weights beyond the largest finite number are stored
    as that.  moves: which tensors are stored so, as in JointBall.
    Source of the 8-bit types: Micikevicius et al., arXiv:2209.05433.  Raises InvalidInput as the other formats.
    """

    kind: str = "bfloat16"
    moves: Moves = "weights"
    name: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        if self.kind not in FLOATS:
            raise InvalidInput(f"kind is {self.kind!r}; choose one of {', '.join(FLOATS)}")
        check_moves(self.moves)

    def words(self, weights: Weights, generator: Generator | None = None) -> dict[str, FloatWords]:
        kind, found = FLOATS[self.kind], chosen(weights, self.moves)
        most = torch.finfo(kind).max
        return {n: FloatWords(w.double().clamp(-most, most).to(kind), torch.finfo(kind).bits) for n, w in found.items()}

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius]:
        """One number for each tensor.  0.51: torch rounds to 8 bits by way of float32, which is a second rounding."""
        kind = torch.finfo(FLOATS[self.kind])
        found: dict[str, Radius] = {}
        for name, w in chosen(weights, self.moves).items():
            far = (w.double().abs().max().item() if w.numel() else 0.0) + largest((within or {}).get(name, 0.0))
            found[name] = 0.51 * kind.eps * (far + kind.smallest_normal) + max(far * (1 + 2.0**-50) - kind.max, 0.0)
        return found
