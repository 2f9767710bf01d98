"""entries.py - what an entry of the catalog holds: its function, its properties, and its card."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from nonsingular.errors import InvalidInput


@dataclass(frozen=True)
class Card:
    """does: in a sentence or two.  shares: who shares the moved weights.  means: how to read its number.  source: where from."""

    does: str
    shares: str
    means: str
    source: str


UPPER = "Upper bound of robust accuracy: what it did not break may still break."
LOWER = (
    "Lower bound of robust accuracy in every scope: what is certified cannot be broken inside the ball, in exact arithmetic or "
    "as computed in the type that --deployed names."
)
ANY = "As the scope says: each example alone (sample), a batch, or all examples (dataset)."
ALONE = "No sharing: each example is proven against the worst weights for it alone, which covers every scope."
BATCH = "The examples of a batch."
NO_WEIGHTS = "It does not move weights."
ALL = "All examples: the weights of the network itself, and how far they may move."
LOWERED = "A loss, not a bound: its effect shows in an evaluation."
ONE_DEVICE, ANY_DEVICE = "All examples: one device.", "All examples: one device for each seed."
ROUNDED = "Exact: its realisation is one point; its box holds every rounding within half a step."
SIMULATED = "An average over simulated devices: no bound for any one of them."
OTHER = Card(
    "An attack of your own, or one from another library. Each result is checked against its ball before it counts.",
    ANY, UPPER, "Its name in the records.",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """name: in settings and records.  what: the function, or "module:function"."""

    name: str
    what: str | Callable[..., Any]

    def load(self) -> Callable[..., Any]:
        """The function."""
        if not isinstance(self.what, str):
            return self.what
        module, function = self.what.split(":")
        return getattr(importlib.import_module(module), function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)


@dataclass(frozen=True)
class Attack(Entry):
    """(model, x, y, ball, *, scope) -> a Perturbation, a point of the ball.

    starts: it takes an argument `start`, a point of the ball, and begins there; on a grid it then goes on from smaller balls.
    steps: its own default of an argument `steps`, if it takes one that can be raised.
    scopes: those that it supports.  raw: its surface is shown as found, with its rises.
    moves: "inputs", "weights" or both.  dense: for dense networks only.  seeded: it takes `generator`, from which it draws.
    budget: it takes the arguments by which efforts differ (evaluation/effort.py).
    """

    starts: bool = False
    steps: int | None = None
    scopes: tuple[str, ...] = ("sample", "batch", "dataset")
    raw: bool = False
    moves: tuple[str, ...] = ("inputs", "weights")
    dense: bool = False
    seeded: bool = False
    budget: bool = False
    card: Card = field(default=OTHER, compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        point = super().__call__(*args, **kwargs)
        if not hasattr(point, "check"):
            raise InvalidInput(
                f"the attack '{self.name}' returned a {type(point).__name__}; return nonsingular.Perturbation(x, weights, scope)"
            )
        return point


@dataclass(frozen=True)
class Bound(Entry):
    """(model, x, y, ball) -> (B, K) lower margins.  sound: it may certify."""

    sound: bool = True
    card: Card = field(kw_only=True, compare=False)


@dataclass(frozen=True)
class Format(Entry):
    """path -> a Raw (data/readers/raw.py).  says: what a path may name, in words.

    suffixes: of files that it reads.  folders: it also reads a folder that holds such files.
    finds: "module:function", path -> whether it reads what lies there; for formats without a suffix.
    """

    says: str = ""
    suffixes: tuple[str, ...] = ()
    folders: bool = False
    finds: str | None = None

    def reads(self, path: Path) -> bool:
        """Whether this is what lies at `path`."""
        if self.finds:
            return Entry(self.name, self.finds)(path)
        if path.is_dir():
            return self.folders and any(f.suffix.lower() in self.suffixes for f in path.iterdir() if not f.name.startswith("."))
        return path.suffix.lower() in self.suffixes


OWN = Card("An objective of your own.", ANY, "What training lowers.", "Its name in the records.")


@dataclass(frozen=True)
class Objective(Entry):
    """(numbers, by name) -> an objective: a function model -> loss, what training lowers (training/objectives.py).

    needs: the numbers of a recipe that it requires; each must be above 0.  takes: others that it uses, with its own defaults;
    "domain" among them is the range of the inputs, which comes from the data.
    """

    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    card: Card = field(default=OWN, compare=False)

    @property
    def settings(self) -> tuple[str, ...]:
        """The numbers of a recipe that it uses."""
        return tuple(name for name in (*self.needs, *self.takes) if name != "domain")

    def of(
        self, numbers: Mapping[str, Any], domain: tuple[float, float] | None, others: Iterable[Objective] = ()
    ) -> Callable[[Any], Any]:
        """The objective with these numbers; None, and 0 for a number that is not used, count as not given.  others: for hints in
        errors.

        Raises InvalidInput for a number that it needs and that is missing or 0, for one that it does not use, and for anything
        but a number.
        """
        given = {name: value for name, value in numbers.items() if value is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise InvalidInput(
                    f"method '{self.name}' trains with one {name} for all elements; give a number, not a {type(value).__name__}"
                )
        for name in self.needs:
            if not given.get(name):
                raise InvalidInput(f"method '{self.name}' with {name} = 0 is another method; give {name} a value above 0")
        if unused := [name for name, value in given.items() if value and name not in self.settings]:
            fits = [entry.name for entry in others if {*unused} <= {*entry.settings}]
            raise InvalidInput(
                f"method '{self.name}' does not use {', '.join(unused)}; leave out what it does not use"
                + (f", or choose {' or '.join(fits)}" if fits else "")
            )
        used = {name: given[name] for name in self.settings if name in given}
        return self.load()(**used, **({"domain": domain} if "domain" in self.takes else {}))


@dataclass(frozen=True)
class FaultModel(Entry):
    """A class of faults (faults/fault.py), whose settings are its fields: weights -> weights.

    box: it states how far realisations are from the weights.  flips: it states which stored bits may flip.  random: it draws.
    """

    box: bool = False
    flips: bool = False
    random: bool = False
    card: Card = field(kw_only=True, compare=False)
