"""rates.py - what flips that are proven harmless say about chips whose bits fail at a rate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nonsingular.certificates.certify import certify
from nonsingular.certificates.flips import certify_flips
from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import whole
from nonsingular.faults.quantize import quantize
from nonsingular.results.statistics import binomial_tail
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.radius import Radius


@dataclass(frozen=True)
class RateCertificate:
    """What holds for chips whose stored bits flip independently with probability `rate`.

    bits: stored bits of a chip.  accuracy: for m = 0, 1, ..., flips: certified accuracy on these examples of every chip with at
    most m flipped bits.  probability: the part of all chips that have so few.
    """

    rate: float
    bits: int
    accuracy: tuple[float, ...]
    probability: tuple[float, ...]

    def at(self, confidence: float) -> float:
        """An accuracy that at least this part of all chips reach: the largest that is proven, 0 if none is."""
        if not 0 < confidence < 1:
            raise InvalidInput(f"confidence is {confidence!r}; give a part of all chips, between 0 and 1")
        return max((a for a, p in zip(self.accuracy, self.probability, strict=True) if p >= confidence), default=0.0)

    @property
    def mean(self) -> float:
        """A lower bound of the mean accuracy over all chips: chips with more flips count as wrong everywhere."""
        before = (0.0, *self.probability[:-1])
        return sum(a * (p - q) for a, p, q in zip(self.accuracy, self.probability, before, strict=True))


def certify_rate(
    model: nn.Module, x: Tensor, y: Tensor, *, rate: float, bits: int = 8, flips: int = 2, eps_x: Radius = 0.0,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights",
) -> RateCertificate:  # fmt: skip
    """Accuracies that hold for a known part of all chips, at a bit error rate.

    The stored words are those of `certify_flips`; each of their bits flips with probability `rate`, independently.  The number of
    flips is then binomial, so the part of chips with at most m flips is known, and `certify_flips` bounds the accuracy of each.
    flips: the largest m, 0 to 16.  Other arguments: as in `certify_flips`, whose errors it raises.
    It says something where a chip has a few flips at most: rate x bits of the chip about as large as `flips`, or less.
    Guarantee: over the chips, on these examples and inputs within `eps_x` of them; in exact arithmetic but for the binomial sums.
    Cost: that of `certify_flips` for each m.
    """
    if isinstance(rate, bool) or not 0 <= rate <= 1:
        raise InvalidInput(f"rate is {rate!r}; give the probability that a bit flips, from 0 to 1")
    whole("flips", flips, 0, 16)
    made = quantize(model, bits, moves=moves)
    count = bits * sum(words.numel() for words in made.words.values())
    found = [certify(made, x, y, JointBall(eps_x, 0.0, domain)).accuracy]
    for m in range(1, flips + 1):
        more = certify_flips(model, x, y, bits=bits, flips=m, eps_x=eps_x, domain=domain, moves=moves).accuracy
        found.append(min(found[-1], more))
    probability = tuple(1 - binomial_tail(m + 1, count, rate) for m in range(flips + 1))
    return RateCertificate(float(rate), count, tuple(found), probability)
