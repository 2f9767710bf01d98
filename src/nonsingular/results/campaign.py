"""campaign.py - what became of a network on simulated chips: accuracies by error rate, input radius and chip.  Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput
from nonsingular.results.statistics import clopper_pearson

WAYS = {
    "after": "inputs chosen for each chip, when its fault is known",
    "before": "inputs chosen before the fault is known, against the mean over other chips",
    "every": "an example counts where it is right on all chips, with the inputs of each: the attacker chooses the chip, too",
}
COUNTS = ("bits", "errors", "corrected", "detected", "silent", "not_finite")
"""What is counted of one chip: see faults/bit_errors.py."""


@dataclass(frozen=True, eq=False)
class Campaign:
    """Accuracies in [0, 1] on simulated chips.

    rates: error rates, rising; one entry None for a fault without a rate.  eps_x: input radii, rising.  chips: their seeds.
    after: (rates, radii, chips) with inputs chosen for each chip.  before: the same with inputs chosen without knowing it; None
    if not asked.  every: (rates, radii) share of examples that are right on every chip.
    counts: name of a count (COUNTS) -> (rates, chips) whole numbers.  unseen: (rates, radii, chips) share of examples that are
    wrong although all their logits are finite.  clean: accuracy without a fault.  n: examples.
    about: fault, hashes and settings.
    """

    rates: tuple[float | None, ...]
    eps_x: tuple[float, ...]
    chips: tuple[int, ...]
    after: NDArray[np.float64]
    before: NDArray[np.float64] | None
    every: NDArray[np.float64]
    unseen: NDArray[np.float64]
    counts: Mapping[str, NDArray[np.int64]]
    clean: float
    n: int
    about: Mapping[str, Any]

    def way(self, way: str = "after") -> NDArray[np.float64]:
        """(rates, radii, chips) accuracies; `every` has one number for all chips.  Raises InvalidInput for what was not asked."""
        found = {"after": self.after, "before": self.before, "every": self.every[..., None]}.get(way)
        if found is None:
            raise InvalidInput(f"this campaign has no accuracies '{way}'; it has after, every" + (
                "" if self.before is None else ", before"))  # fmt: skip
        return found

    def mean(self, way: str = "after") -> NDArray[np.float64]:
        """(rates, radii) over chips."""
        return self.way(way).mean(2)

    def spread(self, way: str = "after") -> NDArray[np.float64]:
        """(rates, radii) standard deviation over chips, 0 for one chip."""
        found = self.way(way)
        return found.std(2, ddof=1) if found.shape[2] > 1 else np.zeros(found.shape[:2])

    def worst(self, way: str = "after") -> NDArray[np.float64]:
        """(rates, radii) the least accurate chip."""
        return self.way(way).min(2)

    def share(self, accuracy: float, way: str = "after") -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(share, low, high), each (rates, radii): chips with at least this accuracy, and the 95 % interval of that share.

        The interval is that of Clopper and Pearson: over chips drawn like these, on these examples.
        """
        found = self.way(way)
        good, n = (found >= accuracy).sum(2), found.shape[2]
        ends = np.array([clopper_pearson(int(k), n) for k in good.flat]).reshape(*good.shape, 2)
        return good / n, ends[..., 0], ends[..., 1]

    def lines(self, accuracy: float | None = None) -> list[str]:
        """The campaign as text, one line for each rate and radius."""
        found: list[str] = []
        for i, rate in enumerate(self.rates):
            for j, eps_x in enumerate(self.eps_x):
                here = self.after[i, j]
                text = f"{'' if rate is None else f'rate {rate:g}, '}eps_x {eps_x:g}: {100 * here.mean():.1f} %"
                text += f" ({len(self.chips)} chips, +- {100 * self.spread()[i, j]:.1f}, worst {100 * here.min():.1f})"
                if self.before is not None and eps_x:
                    text += f"; inputs chosen before {100 * self.before[i, j].mean():.1f} %"
                text += f"; right on every chip {100 * self.every[i, j]:.1f} %"
                if accuracy is not None:
                    share, low, high = (float(t[i, j]) for t in self.share(accuracy))
                    text += (
                        f"; {100 * share:.0f} % of chips reach {100 * accuracy:g} % (95 %: {100 * low:.0f} to {100 * high:.0f})"
                    )
                found.append(text)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return {
            "rates": list(self.rates), "eps_x": list(self.eps_x), "chips": list(self.chips), "n": self.n, "clean": self.clean,
            "after": self.after.tolist(), "before": None if self.before is None else self.before.tolist(),
            "every": self.every.tolist(), "unseen": self.unseen.tolist(),
            "counts": {name: held.tolist() for name, held in self.counts.items()}, "about": dict(self.about),
        }  # fmt: skip

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> Campaign:
        """What `to_dict` wrote.  Raises InvalidInput for anything else."""
        try:
            rates = tuple(None if r is None else float(r) for r in held["rates"])
            eps_x, chips = tuple(float(e) for e in held["eps_x"]), tuple(int(c) for c in held["chips"])
            shape = len(rates), len(eps_x), len(chips)
            before = held["before"]
            known = [r for r in rates if r is not None]
            if not chips or len(known) not in (0, len(rates)) or not (_rises(known or [0.0], 1.0) and _rises(eps_x, np.inf)):
                raise ValueError("rates, radii or chips")
            return Campaign(
                rates, eps_x, chips, _table(held["after"], shape), None if before is None else _table(before, shape),
                _table(held["every"], shape[:2]), _table(held["unseen"], shape),
                {name: np.array(held["counts"][name], dtype=np.int64).reshape(shape[0], shape[2]) for name in COUNTS},
                float(held["clean"]), int(held["n"]), dict(held["about"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise InvalidInput(f"this is no record of a campaign ({e!r}); give what Campaign.to_dict wrote") from None


def _table(values: Sequence[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    found = np.array(values, dtype=float)
    if found.shape != shape or not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"accuracies of shape {found.shape}, not {shape} in [0, 1]")
    return found


def _rises(values: Sequence[float], most: float) -> bool:
    return len(values) > 0 and values[0] >= 0 and values[-1] <= most and all(a < b for a, b in pairwise(values))
