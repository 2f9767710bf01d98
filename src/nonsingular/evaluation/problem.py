"""problem.py - what an attacked and a certified accuracy depend on beside the model, the data and the radii."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from nonsingular.attacks.strongest import ensemble
from nonsingular.catalog import ATTACKS, BOUNDS, UNSOUND, Attack, declared, known, lookup
from nonsingular.errors import InvalidInput
from nonsingular.results.surface import FORMAT
from nonsingular.threat.ball import JointBall, Scope

SAMPLE_MEMORY = 64 * 2**20
"""Bytes of per-example weights held at once in scope `sample`."""
AT_ONCE = 100
"""Largest number of examples of scope `sample` that walk over the grid together."""


@dataclass(frozen=True)
class Method:
    """Everything but the model, the data and the radii that an attacked accuracy depends on."""

    attack: Attack
    scope: Scope
    unit: JointBall
    """The ball whose radii the grid multiplies: eps_x = 1, or a radius per element; eps_w = 1, or one per named tensor."""
    batch_size: int
    """Examples that share W' in scope `batch`."""

    @property
    def name(self) -> str:
        """Of the attack."""
        return self.attack.name

    @property
    def nested(self) -> bool:
        """Whether a point of the grid begins from its smaller neighbours."""
        return self.attack.starts

    def describe(self) -> dict[str, Any]:
        """The settings by name, for records; with a hash of its code for an attack that is not of the catalog."""
        return {
            "attack": self.name, "scope": self.scope, **self.unit.describe(),
            "batch_size": self.batch_size if self.scope == "batch" else None,
        } | ({} if self.name in ATTACKS else {"code": _code(self.attack.what)})  # fmt: skip

    def groups(self, model: nn.Module, n: int) -> list[tuple[int, int]]:
        """Spans of examples that can be attacked apart from each other: each shares nothing with the others."""
        size = {"dataset": n, "batch": self.batch_size, "sample": self._in_memory(model)}[self.scope]
        return [(i, min(i + size, n)) for i in range(0, n, size)]

    def _in_memory(self, model: nn.Module) -> int:
        params = dict(model.named_parameters())
        moving = sum(params[name].numel() * params[name].element_size() for name in self.unit.radii(params))
        return max(1, min(AT_ONCE, SAMPLE_MEMORY // max(1, moving)))


def attack_of(given: str | Attack | Callable[..., Any]) -> Attack:
    """The entry of an attack.  Names joined by "+" are an ensemble, the worst of these.  Raises InvalidInput for other names."""
    if not isinstance(given, str):
        return declared(given)
    members = [ATTACKS[known(ATTACKS, name, "attack")] for name in given.split("+")]
    return members[0] if len(members) == 1 else ensemble(*members)


def _code(attack: Any) -> str:
    """Tells attacks of one name apart: module, bytecode, constants and defaults."""
    while isinstance(attack, partial):
        attack = attack.func
    code = getattr(attack, "__code__", None)
    parts = [getattr(attack, "__module__", ""), getattr(code, "co_code", b""), getattr(code, "co_consts", ())]
    defaults = (getattr(attack, "__defaults__", None), getattr(attack, "__kwdefaults__", None))
    return hashlib.sha256(repr([*parts, defaults]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Proof:
    """Everything but the model, the data and the radii that a certified accuracy depends on."""

    method: str
    unit: JointBall
    """The ball whose radii the grid multiplies, as in an attack's Method."""

    def __post_init__(self) -> None:
        if self.method in UNSOUND:
            raise InvalidInput(f"'{self.method}' is not a bound and may not certify; use 'best'")
        lookup(BOUNDS, self.method, "bound")

    def describe(self) -> dict[str, Any]:
        """The settings by name, for records."""
        return {"bound": self.method, **self.unit.describe()}


def key_of(method: Method, made_of: tuple[dict[str, str], list[str]]) -> str:
    """What the cells of a log must have been made of to be taken from it.  made_of: `identity` of the model and the data."""
    return hashlib.sha256(json.dumps([FORMAT, method.describe(), *made_of], sort_keys=True).encode()).hexdigest()
