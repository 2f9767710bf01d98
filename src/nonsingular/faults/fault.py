"""fault.py - what a fault is: weights -> weights, and weights -> a box, or a set of flips, that holds every outcome."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

import torch
from torch import Generator, Tensor

from nonsingular.errors import InvalidInput
from nonsingular.faults.words import Flips, Stored
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.interval import Interval, box_around
from nonsingular.threat.radius import Radius, Side, ends, largest

Weights = Mapping[str, Tensor]
"""Name -> tensor, such as dict(model.named_parameters())."""
Radii = Mapping[str, Radius]


@dataclass(frozen=True)
class Fault(ABC):
    """Something that a device does to its weights: a frozen value, whose fields are its settings.

    Your own fault defines how one realisation comes about (`__call__`).  Where possible, it also states how far any realisation
    is from the weights (`radii`, from which `box` and `ball` follow), or which stored bits may flip (`flips`).
    name: what records call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        """One realisation: the new values of those tensors that it acts on, in their shapes, dtypes and devices.

        generator: what it draws from; a fault that draws raises InvalidInput without one.  One state gives the same bits.
        Never changes `weights`.  The model runs with `torch.func.functional_call(model, fault(weights), x)`.
        """

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius] | None:
        """How far, at most, any realisation is from the weights, by name; None if there is no finite bound.

        within: how far the weights themselves may be from `weights`, where other faults came first.  The answer is then how far
        any realisation of any such weights is from these.
        """
        return None

    def flips(self, weights: Weights) -> Flips | None:
        """The stored words and how many of their bits may flip; None for a fault that flips no bits."""
        return None

    def box(self, weights: Weights) -> dict[str, Interval] | None:
        """A box around each tensor that holds every realisation, rounded outward in its dtype; None without radii."""
        radii = self.radii(weights)
        if radii is None:
            return None
        return {n: box_around(weights[n].detach(), *ends(radius), outward=True) for n, radius in radii.items()}

    def ball(self, weights: Weights, eps_x: Radius = 0.0, domain: tuple[float, float] | None = (0.0, 1.0)) -> JointBall:
        """The ball for `certify` and `evaluate`: every realisation, with every input within eps_x.

        Raises InvalidInput for a fault that no box holds.
        """
        radii = self.radii(weights)
        if radii is None:
            raise InvalidInput(f"no box holds every realisation of the fault '{self.name}'; attack it, or draw realisations")
        return JointBall(eps_x, radii, domain)

    def describe(self) -> dict[str, Any]:
        """Its name and settings for records: JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        settings = {name: value.describe() if isinstance(value, Fault) else value for name, value in values.items()}
        return {"fault": self.name, **json.loads(json.dumps(settings))}


class Storage(Fault):
    """A format in which weights are stored as words of bits; its fault is that of rounding to the values of these words."""

    @abstractmethod
    def words(self, weights: Weights, generator: Generator | None = None) -> Mapping[str, Stored]:
        """What is stored, by name of the tensor.  generator: what stochastic rounding draws from."""

    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        return {name: stored.values(weights[name].dtype) for name, stored in self.words(weights, generator).items()}


@dataclass(frozen=True)
class InOrder(Fault):
    """Several faults, one after the other: each acts on the result of the ones before it."""

    faults: tuple[Fault, ...]
    name: ClassVar[str] = "in-order"

    def __post_init__(self) -> None:
        object.__setattr__(self, "faults", tuple(self.faults))
        if not self.faults or not all(isinstance(fault, Fault) for fault in self.faults):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"faults is {self.faults!r}; give one fault or more, in the order in which they happen")

    def __call__(self, weights: Weights, generator: Generator | None = None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for fault in self.faults:
            found |= fault({**weights, **found}, generator)
        return found

    def radii(self, weights: Weights, within: Radii | None = None) -> dict[str, Radius] | None:
        found: dict[str, Radius] = {}
        for fault in self.faults:
            found = {name: _stored(weights[name], radius) for name, radius in found.items()}
            more = fault.radii(weights, added(within or {}, found))
            if more is None:
                return None
            found = added(found, more)
        return found

    def describe(self) -> dict[str, Any]:
        return {"fault": self.name, "faults": [fault.describe() for fault in self.faults]}


# --- what faults share ------------------------------------------------------------------------------------------------------


def check_moves(moves: str) -> None:
    """Raises InvalidInput unless it is one of the names."""
    if moves not in get_args(Moves):
        raise InvalidInput(f"moves is {moves!r}; choose one of {', '.join(get_args(Moves))}")


def whole(name: str, value: object, least: int, most: int) -> None:
    """Raises InvalidInput unless `value` is a whole number in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(f"{name} is {value!r}; give a whole number from {least} to {most}")


def truth(name: str, value: object) -> None:
    """Raises InvalidInput unless `value` is True or False."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r}; give True or False")


def chosen(weights: Weights, moves: Moves) -> dict[str, Tensor]:
    """The tensors that a fault acts on: those of two or more dimensions, or all.

    Raises InvalidInput as JointBall does, and for a tensor with a value that is NaN or beyond 2^1000.
    """
    if not isinstance(weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
        raise InvalidInput(f"weights is a {type(weights).__name__}; give name -> tensor, e.g. dict(model.named_parameters())")
    found = {name: weights[name].detach() for name in JointBall(0.0, 1.0, None, moves).radii(weights)}
    for name, w in found.items():
        if w.numel() and not bool((w.double().abs() < 2.0**1000).all()):  # NaN is not
            raise InvalidInput(f"'{name}' holds NaN, infinite or immense values, which no device stores; give finite ones")
    return found


def _stored(w: Tensor, radius: Radius) -> Radius:
    """The radius after a fault, rounded to the dtype of `w` in which its result is stored: the next fault begins from there."""
    if not (away := largest(radius)):
        return radius
    kind = torch.finfo(w.dtype)
    size = w.detach().double().abs().max().item() + away
    return _sum(radius, kind.eps * size + kind.smallest_normal * kind.eps)  # a rounding is half of either, at most


def added(a: Radii, b: Radii) -> dict[str, Radius]:
    """Radii of two faults together, rounded upward."""
    return {name: _sum(a.get(name, 0.0), b.get(name, 0.0)) for name in {**a, **b}}


def _sum(a: Radius, b: Radius) -> Radius:
    if not largest(a) or not largest(b):
        return a if largest(a) else b
    below, above = (_upward(s, t) for s, t in zip(ends(a), ends(b), strict=True))
    return (below, above) if isinstance(a, tuple) or isinstance(b, tuple) else below


def _upward(a: Side, b: Side) -> Side:
    total = a + b
    return torch.nextafter(total, total.new_tensor(math.inf)) if isinstance(total, Tensor) else math.nextafter(total, math.inf)
