"""summary.py - results.json as typed values, and the phrases and numbers that figure, tables and page share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput
from nonsingular.results.surface import FORMAT, SHARERS, Surface, arithmetic, spent

KINDS = ("attacked", "shared", "certified")
"""Kinds of accuracy, from upper bounds down: no later one lies above an earlier one."""
LOOSER = {kind: "the bound was looser before it" for kind in KINDS} | {"attacked": "the attack missed something"}
"""Kind -> why it rises to a larger ball, which a true surface never does."""


@dataclass(frozen=True)
class Seeds:
    """The surfaces of one model, one per seed, all of one kind and on one grid."""

    surfaces: tuple[Surface, ...]

    def __post_init__(self) -> None:
        if not self.surfaces:
            raise InvalidInput("a model without a surface cannot be shown; give one surface per seed")
        same_grid(self.surfaces)
        if len({s.kind for s in self.surfaces}) > 1:
            raise InvalidInput("the surfaces of a model must be all attacked or all certified; show the two kinds as two models")
        for s in self.surfaces:
            if s.shared and not s.certified:
                raise InvalidInput(f"{s.model!r} has shared certificates and none of single examples; make the results again")
            for above, below in ((s, s.certified), (s, s.shared), (s.shared, s.certified)):
                if above and below:
                    _check_below(above, below)

    @property
    def attacked(self) -> Seeds | None:
        """The upper bounds of robust accuracy, if attacks were run."""
        return self if self.surfaces[0].kind == "attacked" else None

    @property
    def certified(self) -> Seeds | None:
        """The lower bounds of robust accuracy: these surfaces, or those beside them if every seed has one."""
        if self.surfaces[0].kind == "certified":
            return self
        found = tuple(s.certified for s in self.surfaces if s.certified)
        return Seeds(found) if len(found) == len(self.surfaces) else None

    @property
    def shared(self) -> Seeds | None:
        """The lower bounds where examples share W', if every seed has one."""
        found = tuple(s.shared for s in self.surfaces if s.shared)
        return Seeds(found) if len(found) == len(self.surfaces) else None

    @property
    def proven(self) -> Seeds | None:
        """The largest lower bounds of robust accuracy in the scope of the attack, if there are any."""
        return self.shared or self.certified

    @property
    def kinds(self) -> dict[str, Seeds]:
        """The surfaces of each kind, in the order of KINDS, where there are any."""
        return {kind: found for kind in KINDS if (found := getattr(self, kind))}

    @property
    def gap(self) -> NDArray[np.float64] | None:
        """(len(eps_w), len(eps_x)) attacked less proven accuracy, if there are both: what is not known."""
        if self.attacked is None or self.proven is None:
            return None
        return np.maximum(self.attacked.accuracy - self.proven.accuracy, 0.0)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """(len(eps_w), len(eps_x)) mean over the seeds."""
        return np.mean([s.accuracy for s in self.surfaces], axis=0)

    @property
    def interval(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lowest and highest end of the seeds' 95 % intervals, per cell.  They share examples, so they are not pooled."""
        low, high = zip(*(s.interval for s in self.surfaces), strict=True)
        return np.min(low, axis=0), np.max(high, axis=0)

    @property
    def rises(self) -> list[tuple[int, dict[str, float]]]:
        """Every (index of the seed, rise), the largest first."""
        found = [(k, rise) for k, s in enumerate(self.surfaces) for rise in s.rises]
        return sorted(found, key=lambda item: item[1]["from"] - item[1]["to"])

    @property
    def risen(self) -> set[tuple[int, int]]:
        """(row, column) of every point that some seed reaches by a rise."""
        grid = self.surfaces[0]
        return {(grid.eps_w.index(r["eps_w"]), grid.eps_x.index(r["eps_x"])) for _, r in self.rises}


@dataclass(frozen=True)
class Radii:
    """The largest certified eps_w at each eps_x for a required accuracy; None where not even eps_w = 0 is certified."""

    accuracy: float
    eps_x: tuple[float, ...]
    eps_w: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not self.eps_x or len(self.eps_x) != len(self.eps_w):
            counts = f"{len(self.eps_x)} input and {len(self.eps_w)} weight radii"
            raise InvalidInput(f"a front of {counts} cannot be shown; give one weight radius for each input radius")

    @staticmethod
    def from_dict(d: Mapping[str, Any]) -> Radii:
        return Radii(d["accuracy"], tuple(d["eps_x"]), tuple(d["eps_w"]))


@dataclass(frozen=True)
class Model:
    """One entry of results["models"]."""

    title: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    clean: tuple[float, ...]
    runs: Seeds
    fronts: tuple[Radii, ...] = ()


def read(results: Mapping[str, Any]) -> list[Model]:
    """The models in their order; titles that occur twice get their key.  All surfaces share one grid.

    Raises InvalidInput for another format, no model, or grids that differ.
    """
    if not isinstance(results, Mapping) or not isinstance(results.get("models"), Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("these results have no models; finish the run first")
    if results.get("format") != FORMAT:
        raise InvalidInput(f"results have format {results.get('format')!r}; this version reads format {FORMAT}: make them again")
    entries: Mapping[str, Mapping[str, Any]] = results["models"]
    if not entries:
        raise InvalidInput("results hold no model; evaluate at least one")
    twice = Counter(str(e["title"]) for e in entries.values())
    models = [_model(key, e, e["title"] if twice[e["title"]] == 1 else f"{e['title']} ({key})") for key, e in entries.items()]
    same_grid(s for m in models for s in m.runs.surfaces)
    return models


def _model(key: str, entry: Mapping[str, Any], title: str) -> Model:
    per_seed = {name: tuple(entry[name]) for name in ("seeds", "auc", "auc_x", "auc_w", "clean", "surfaces")}
    if len({len(values) for values in per_seed.values()}) > 1:
        lengths = {name: len(values) for name, values in per_seed.items()}
        raise InvalidInput(f"model {key!r} must have one entry per seed everywhere, it has {lengths}; make the results again")
    runs = Seeds(tuple(Surface.from_dict(s) for s in per_seed["surfaces"]))
    fronts = tuple(Radii.from_dict(f) for f in entry.get("fronts", ()))
    if len({f.eps_x for f in fronts}) > 1:
        raise InvalidInput(f"the fronts of model {key!r} have different input radii; make the results again")
    return Model(title, entry["settings"], per_seed["seeds"], per_seed["clean"], runs, fronts)


def _check_below(upper: Surface, lower: Surface) -> None:
    """Refuse a certified surface that does not belong under the attacked or shared one."""
    same_grid((upper, lower))
    if lower.kind not in KINDS[1 + KINDS.index(upper.kind) :] or lower.n != upper.n:
        raise InvalidInput(
            f"the surface under {upper.model!r} is {lower.kind} on {lower.n} examples, not certified on its "
            f"{upper.n}; certify the examples that were attacked"
        )
    if lower.kind == "shared" and (lower.scope != upper.scope or lower.scope not in SHARERS):
        raise InvalidInput(
            f"the shared certificates of {upper.model!r} are of scope {lower.scope}, its attack of {upper.scope}; make them again"
        )
    above = lower.accuracy > upper.accuracy + 1e-9
    if above.any():
        i, j = (int(k) for k in np.argwhere(above)[0])
        raise InvalidInput(
            f"{upper.model!r} has a {lower.kind} accuracy above its {upper.kind} one at eps_x = {upper.eps_x[j]:g}, "
            f"eps_w = {upper.eps_w[i]:g}: one of the two is wrong; make the results again and report it if it stays"
        )


def same_grid(surfaces: Iterable[Surface]) -> None:
    """Refuse surfaces on different grids: neither their means nor their AUCs can be compared."""
    grids = {(s.eps_x, s.eps_w): s for s in surfaces}
    if len(grids) > 1:
        a, b = list(grids.values())[:2]
        raise InvalidInput(
            f"surfaces of {a.model!r} and {b.model!r} have different grids "
            f"(eps_x {a.eps_x} and {b.eps_x}, eps_w {a.eps_w} and {b.eps_w}); evaluate both on one grid"
        )


def how(surfaces: Iterable[Surface]) -> str:
    """How these accuracies were found: attacks with their scope, and bounds."""
    every = list(surfaces)
    attacks = dict.fromkeys(f"attack: {s.attack}, scope: {s.scope}{spent(s.about)}" for s in every if s.kind == "attacked")
    shared = dict.fromkeys(
        f"shared: certified by {s.attack} and a count, one W' for {SHARERS[s.scope]}{_deployed(s)}"
        for s in every
        if s.kind == "shared"
    )
    bounds = dict.fromkeys(f"certified by {s.attack}, in every scope{_deployed(s)}" for s in every if s.kind == "certified")
    return "; ".join([*attacks, *shared, *bounds])


def _deployed(s: Surface) -> str:
    return f", {arithmetic(s.about)}" if s.about.get("deployed") else ""


def arithmetics(surfaces: Iterable[Surface]) -> str:
    """In which arithmetic the certificates among these hold."""
    return " or ".join(dict.fromkeys(arithmetic(s.about) for s in surfaces if s.kind != "attacked"))


def deployed_of(runs: Iterable[Seeds]) -> str | None:
    """The types that certificates take the networks to be computed in; None if some are of exact functions."""
    kinds = dict.fromkeys(s.about.get("deployed") for s in every_surface(runs) if s.kind != "attacked")
    return " or ".join(map(str, kinds)) if all(kinds) and kinds else None


def sides(runs: Iterable[Seeds]) -> str:
    """On which side of the true accuracy those shown lie, in a sentence or two."""
    every = list(runs)
    return BOUNDS[kinds_of(every)].format(arithmetic=arithmetics(every_surface(every)))


def every_surface(runs: Iterable[Seeds]) -> list[Surface]:
    """All surfaces and those that they carry, in the order of KINDS."""
    kinds = [run.kinds for run in runs]
    return [s for kind in KINDS for k in kinds if kind in k for s in k[kind].surfaces]


BOUNDS: Mapping[tuple[str, ...], str] = {
    ("attacked",): "An attack gives an upper bound of robust accuracy; it does not prove robustness.",
    (
        "certified",
    ): "A certificate gives a lower bound of robust accuracy: it holds in every scope and for every attack, {arithmetic}.",
    ("attacked", "certified"): "Robust accuracy lies between the two: an attack gives an upper bound, a certificate a lower "
    "bound, in every scope and for every attack, {arithmetic}.",
    KINDS: "Robust accuracy lies between the first two: an attack gives an upper bound, shared certificates a lower bound where "
    "examples share W', for every attack, {arithmetic}. Certified accuracy is a lower bound in every scope.",
}
"""Kinds of the accuracies shown -> on which side of the true one they lie."""


def kinds_of(runs: Iterable[Seeds]) -> tuple[str, ...]:
    """Which kinds there are, in the order of KINDS: a key of BOUNDS."""
    found = {kind for run in runs for kind in run.kinds}
    return tuple(kind for kind in KINDS if kind in found)


def middle(surface: Surface) -> tuple[int, int]:
    """Row and column of the grid's middle; of two middles, the larger radius."""
    return len(surface.eps_w) // 2, len(surface.eps_x) // 2


def telling(models: Sequence[Model]) -> tuple[int, int]:
    """Row and column of the cell that the verdict describes: the middle of the grid.

    While every model keeps less than a tenth of its clean accuracy there, both indices are halved.
    """
    at = middle(models[0].runs.surfaces[0])
    while max(at) > 1 and all(m.runs.accuracy[at] < 0.1 * fmean(m.clean) for m in models):
        at = at[0] // 2, at[1] // 2
    return at


def mean_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and sample standard deviation; the mean alone if there is one value.

    >>> mean_spread([0.1, 0.2, 0.3]), mean_spread([0.1])
    ('0.200 ± 0.100', '0.100')
    """
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def percent(values: Sequence[float]) -> str:
    """`mean_spread` of shares, in percent.

    >>> percent([0.5])
    '50.0'
    """
    return mean_spread([100 * v for v in values], 1)


def between(low: float, high: float, count: int) -> str:
    """The 95 % interval of one surface, or what those of `count` seeds span, in words.

    >>> between(0.1, 0.2, 1)
    '95 % interval 10.0 to 20.0 %'
    """
    ends = f"{100 * low:.1f} to {100 * high:.1f} %"
    return f"95 % interval {ends}" if count == 1 else f"mean of {count} seeds, whose 95 % intervals span {ends}"


def weight_unit(about: Mapping[str, Any]) -> str:
    """What multiplies ε_w, as the record of a surface says; empty for plain radii.

    >>> weight_unit({"relative": True})
    ' times the largest value in its tensor'
    """
    own = " times the radius of its tensor" if about.get("eps_w_per_tensor") else ""
    return own + (" times the largest value in its tensor" if about.get("relative") else "")


def input_unit(about: Mapping[str, Any]) -> str:
    """What multiplies ε_x, as the record of a surface says; empty for plain radii.

    >>> input_unit({"eps_x_per_element": {"largest": 2.0}})
    ' times its own radius'
    """
    return " times its own radius" if about.get("eps_x_per_element") else ""


def units(surfaces: Iterable[Surface]) -> str:
    """What multiplies the radii of these surfaces, as sentences; empty for plain radii."""
    found = {(what, eps, unit(s.about)): 0 for s in surfaces for what, eps, unit in _MOVES}
    return "".join(f" {what} moves by up to {eps}{unit}." for what, eps, unit in found if unit)


_MOVES = (("An input value", "ε_x", input_unit), ("A weight", "ε_w", weight_unit))


def beside_weights(models: Sequence[Model]) -> str:
    """The weight radius of the verdict relative to the weights, as a sentence; empty without medians of |W| in the records."""
    grid = models[0].runs.surfaces[0]
    eps = grid.eps_w[telling(models)[0]]
    moved = [m for s in every_surface(m.runs for m in models) for m in s.about.get("moved_at_largest_eps_w", {}).values()]
    at_largest = [m["radius"] / m["median"] for m in moved if m.get("median") and isinstance(m["radius"], int | float)]
    if not at_largest or not eps:
        return ""
    shares = (100 * eps / grid.eps_w[-1] * share for share in (min(at_largest), max(at_largest)))
    ends = dict.fromkeys(f"{v:.0f}" if v >= 1 else f"{v:.1g}" for v in shares)
    return f"ε_w = {eps:g} is {' to '.join(ends)} % of a typical weight, the median |W| of its tensor."


def seed_count(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def doubts_of(surfaces: Iterable[Surface]) -> list[str]:
    """The warnings in the records of these surfaces, each once."""
    return list(dict.fromkeys(doubt for s in surfaces for doubt in s.about.get("doubts", ())))
