"""bits.py - how few bits each tensor needs, so that enough examples are proven for every rounding of all tensors together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nonsingular.certificates.certify import Prover, verified
from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import chosen, whole
from nonsingular.faults.uniform import UniformRounding
from nonsingular.network.copies import effective
from nonsingular.network.heads import classifier
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.radius import Radius

FEWEST, MOST = 2, 16
"""Bits of a word."""


@dataclass(frozen=True)
class BitsNeeded:
    """Bits for each tensor, at which the certified accuracy on these examples is at least what was asked.

    bits: name of a tensor -> bits of its words.  uniform: the fewest bits that do if all tensors have as many.
    total, total_uniform: stored bits of all these tensors in the two ways.
    verified: (N,) examples that no rounding within half a step of each tensor changes, together with any input within `eps_x`.
    """

    bits: Mapping[str, int]
    uniform: int
    total: int
    total_uniform: int
    verified: Tensor
    eps_x: Radius

    @property
    def accuracy(self) -> float:
        """Certified accuracy in [0, 1]."""
        return self.verified.double().mean().item()


def bits_needed(
    model: nn.Module, x: Tensor, y: Tensor, *, accuracy: float = 0.9, eps_x: Radius = 0.0, per_channel: bool = False,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights", most: int = MOST, bound: str = "crown",
) -> BitsNeeded:  # fmt: skip
    """Searches the fewest bits for each tensor that keep the certified accuracy at `accuracy`.

    Each tensor is stored as `ns.quantize(model, bits)` stores it, symmetric, with bits of its own; `quantize` takes `.bits` as it
    is.  x: (N, *input) in `domain`.  y: (N,).  accuracy: above 0, at most 1: of all examples, also those that are wrong.
    eps_x: every input within this radius, together with the rounding.  most: bits, 2 to 16, that no tensor has more of.
    bound: a sound bound of the catalog.
    Guarantee: `verified` holds for every weights within half a step of each tensor, so also for other ways to round ties.  That
        the bits are few is a search: first alike for all tensors; then fewer for each tensor, the largest first, as far as the
        accuracy allows; then one bit more for a tensor where that saves more elsewhere.  Fewer may do.
    Raises InvalidInput where `most` bits for all tensors do not reach the accuracy, and for invalid settings; UnsupportedModel
    as the bound does.  Cost: about 4 bounds of all examples, 2 for each tensor, and as many again for each exchange of bits that
    is tried, at most one for each tensor.
    """
    if isinstance(accuracy, bool) or not 0 < accuracy <= 1:
        raise InvalidInput(f"accuracy is {accuracy!r}; give the certified accuracy to keep, above 0 and at most 1")
    whole("most", most, FEWEST, MOST)
    given = classifier(effective(model), x, JointBall(eps_x, 0.0, domain))
    check_inputs(given, x, y, JointBall(eps_x, 0.0, domain))
    prover = Prover(given, bound)
    weights = {n: p.detach() for n, p in chosen(dict(given.named_parameters()), moves).items()}
    return _Search(prover, weights, (x, y.long()), accuracy, (per_channel, eps_x, domain)).run(most)


@dataclass(frozen=True, eq=False)
class _Search:
    prover: Prover
    weights: Mapping[str, Tensor]
    data: tuple[Tensor, Tensor]
    accuracy: float
    how: tuple[bool, Radius, tuple[float, float] | None]

    def run(self, most: int) -> BitsNeeded:
        held = self._held(dict.fromkeys(self.weights, most))
        if not self._enough(held):
            reached = held.double().mean().item()
            raise InvalidInput(
                f"with {most} bits the certified accuracy is {reached:.4g}, below {self.accuracy:.4g}: ask for less, "
                "a smaller eps_x, or a tighter bound"
            )
        uniform, held = self._fewest(dict.fromkeys(self.weights, most), list(self.weights), held)
        alike = uniform[next(iter(uniform))] if uniform else most
        bits, held = self._lowered(uniform, held)
        for name in sorted(bits, key=lambda n: self.weights[n].numel()):  # a small tensor has bits to give
            if bits[name] < most and len(bits) > 1:
                more = {**bits, name: bits[name] + 1}
                tried, found = self._lowered(more, self._held(more), but=name)
                if self._total(tried) < self._total(bits):
                    bits, held = tried, found
        return BitsNeeded(bits, alike, self._total(bits), self._total(uniform), held, self.how[1])

    def _lowered(self, bits: dict[str, int], held: Tensor, but: str | None = None) -> tuple[dict[str, int], Tensor]:
        """Each tensor with the fewest bits that do, given those of the others; the largest first."""
        for name in sorted(bits, key=lambda n: -self.weights[n].numel()):
            if name != but:
                bits, held = self._fewest(bits, [name], held)
        return bits, held

    def _fewest(self, bits: dict[str, int], names: list[str], held: Tensor) -> tuple[dict[str, int], Tensor]:
        """By bisection: boxes are nested, so what is not proven with more bits is not tried with fewer."""
        low, high = FEWEST - 1, bits[names[0]] if names else FEWEST
        while high - low > 1:
            middle = (low + high) // 2
            found = self._held({**bits, **dict.fromkeys(names, middle)}, held)
            if self._enough(found):
                high, held = middle, found
            else:
                low = middle
        return {**bits, **dict.fromkeys(names, high)}, held

    def _held(self, bits: Mapping[str, int], among: Tensor | None = None) -> Tensor:
        """(N,) which examples are proven.  among: those that may be."""
        (x, y), (per_channel, eps_x, domain) = self.data, self.how
        radii: dict[str, Radius] = {}
        for name, b in bits.items():
            radii |= UniformRounding(b, per_channel, "all").radii({name: self.weights[name]})
        at = torch.arange(len(x), device=x.device) if among is None else among.nonzero().flatten()
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if len(at):
            found[at] = verified(self.prover(x[at], y[at], JointBall(eps_x, radii, domain)), y[at])
        return found

    def _enough(self, held: Tensor) -> bool:
        return held.double().mean().item() >= self.accuracy

    def _total(self, bits: Mapping[str, int]) -> int:
        return sum(b * self.weights[name].numel() for name, b in bits.items())
