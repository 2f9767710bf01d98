"""protection.py - what to protect in a memory that fails: measured accuracies with parts of it protected.  Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nonsingular.errors import InvalidInput

KINDS = {
    "none": "nothing is protected",
    "layer": "the words of one tensor do not fail",
    "bits": "the highest bits of all words do not fail",
    "clip": "weights are clipped before they are stored, so that a step is smaller; nothing is protected",
}


@dataclass(frozen=True)
class Option:
    """One way to protect.  kind: of KINDS.  what: a tensor, a number of bits, or a weight.

    share: of the stored bits that do not fail.  still: accuracy without errors.  mean, worst: over the chips.
    """

    kind: str
    what: str
    share: float
    still: float
    mean: float
    worst: float

    @property
    def text(self) -> str:
        """As a sentence names it."""
        names = {"none": "nothing protected", "layer": "{} protected", "bits": "the highest {} bits of every word protected"}
        return {**names, "clip": "weights clipped at {}"}[self.kind].format(self.what)


@dataclass(frozen=True)
class Bit:
    """One of the bits that an attacker flips first.  accuracy: after this one and those before it."""

    tensor: str
    index: int
    bit: int
    accuracy: float


@dataclass(frozen=True)
class Protection:
    """Measured effects of protecting parts of a memory.

    rate: at which bits fail.  chips: simulated for each option, the same seeds.  options: the first one protects nothing.
    bits: in the order in which an attacker flips them.  after: accuracy after as many flips with all of these protected; None if
    no bits were asked for.  clean: accuracy of the stored weights without a flip.
    """

    rate: float
    chips: int
    options: tuple[Option, ...]
    bits: tuple[Bit, ...]
    after: float | None
    clean: float

    @property
    def best(self) -> Option:
        """The option with the highest mean for each part of the memory that it protects; clipping protects none of it."""
        nothing = self.options[0]
        return max(self.options, key=lambda o: (o.mean - nothing.mean) / max(o.share, 0.01))

    def lines(self) -> list[str]:
        """As text: the advice in sentences, each with what was measured."""
        nothing, best = self.options[0], self.best
        found = [f"At a rate of {self.rate:g} ({self.chips} chips) with nothing protected: {_of(nothing)}."]
        if best is not nothing and best.mean > nothing.mean:
            cost = f" of {100 * best.share:.3g} % of the stored bits" if best.share else ""
            found.append(f"Most for its cost: {best.text}{cost}: {_of(best)}.")
        if self.bits:
            (first, last), k = (self.bits[0], self.bits[-1]), len(self.bits)
            some = f"bit {first.bit} of word {first.index} of {first.tensor}"
            found.append(
                f"These {k} bits are the ones to protect: flipped on purpose, {some} first, they leave "
                f"{100 * last.accuracy:.1f} % of {100 * self.clean:.1f} %; with these protected, {k} others leave "
                f"{100 * (self.after or 0.0):.1f} %."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> Protection:
        """What `to_dict` wrote.  Raises InvalidInput for anything else."""
        try:
            options = tuple(Option(str(o["kind"]), str(o["what"]), *(_part(o[k]) for k in _NUMBERS)) for o in held["options"])
            bits = tuple(Bit(str(b["tensor"]), int(b["index"]), int(b["bit"]), _part(b["accuracy"])) for b in held["bits"])
            after = None if held["after"] is None else _part(held["after"])
            if not options or options[0].kind != "none" or any(o.kind not in KINDS for o in options):
                raise ValueError("options")
            return Protection(_part(held["rate"]), int(held["chips"]), options, bits, after, _part(held["clean"]))
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise InvalidInput(f"this is no record of protection ({e!r}); give what Protection.to_dict wrote") from None


_NUMBERS = ("share", "still", "mean", "worst")


def _part(value: Any) -> float:
    found = float(value)
    if not (math.isfinite(found) and 0 <= found <= 1):
        raise ValueError(f"{found} is not in [0, 1]")
    return found


def _of(option: Option) -> str:
    return f"{100 * option.mean:.1f} % on average, worst chip {100 * option.worst:.1f} %"
