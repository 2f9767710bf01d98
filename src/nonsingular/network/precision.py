"""precision.py - floating-point types as a bound sees them.  IEEE 754; Higham, Accuracy and Stability, sections 2.2, 3.1.

fl(a op b) = (a op b)(1 + d) + e with |d| <= unit, |e| <= least and d e = 0, as long as the result does not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonsingular.errors import InvalidInput


@dataclass(frozen=True)
class Precision:
    """A type in which a network is deployed.

    unit: of one operation, which may be computed in float32 or wider first and then rounded to the type: u (1 + 2^-12).
    least: absolute error of an operation that underflows.  float16 keeps subnormal numbers; in the others, they may be 0.
    largest: its largest finite number.
    sums: of the type in which products are summed up, if that is wider: a sum is then rounded to this one at its end.
    """

    name: str
    dtype: torch.dtype
    unit: float
    least: float
    largest: float
    sums: float | None = None

    @property
    def inside(self) -> Precision:
        """The type in which sums are added up."""
        return self if self.sums is None else PRECISIONS["float32"]

    def gamma(self, roundings: int) -> float:
        """|prod (1 + d_i)^(+-1) - 1| for that many roundings; infinite where there is no bound."""
        return _gamma(roundings, self.unit)

    def of_sum(self, terms: int, beside: int) -> float:
        """The relative error of each term of a sum of so many products and an offset, in any order.

        A term meets its own product and at most as many additions as there are other terms.  beside: roundings before or after.
        """
        if self.sums is None:
            return self.gamma(terms + 1 + beside)
        return (1 + _gamma(terms + 1, self.sums)) * (1 + self.gamma(2 + beside)) - 1  # once at the end, once with an offset


def _gamma(roundings: int, unit: float) -> float:
    product = roundings * unit
    return product / (1 - product) if product < 1 else float("inf")


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2 * (1 + 2.0**-12)


def _of(name: str, dtype: torch.dtype, sums: torch.dtype | None = None) -> Precision:
    least = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    return Precision(name, dtype, _unit(dtype), least, torch.finfo(dtype).max, None if sums is None else _unit(sums))


PRECISIONS = {
    kind.name: kind
    for kind in (
        _of("float64", torch.float64),
        _of("float32", torch.float32),
        _of("bfloat16", torch.bfloat16),
        _of("float16", torch.float16),
        _of("bfloat16+float32", torch.bfloat16, torch.float32),
        _of("float16+float32", torch.float16, torch.float32),
    )
}
"""What `deployed` may be.  After a `+`: the type in which matrix products, convolutions and averages are summed up."""
CLOSE = 8
"""How far a constant tensor that the forward computes may be from its value, in units of the deployed type."""


@dataclass(frozen=True)
class Floats:
    """What bounds allow for: their own rounding always, that of a network in `deployed` if it is given.

    narrowed: inputs and parameters are rounded to that type first, as not all of them are numbers of it.
    """

    deployed: Precision | None = None
    narrowed: bool = False


def precision(deployed: str | None) -> Precision | None:
    """Raises InvalidInput for a name that is not known."""
    if deployed is None:
        return None
    if deployed not in PRECISIONS:
        raise InvalidInput(f"deployed is {deployed!r}; choose one of {', '.join(PRECISIONS)}, or None for exact arithmetic")
    return PRECISIONS[deployed]
