"""problem.py - what an attacked and a certified accuracy depend on beside the model, the data and the radii."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from nonsingular.catalog import ATTACKS, BOUNDS, UNSOUND, lookup
from nonsingular.errors import InvalidInput
from nonsingular.results.surface import FORMAT
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.perturbation import Attack

SAMPLE_MEMORY = 64 * 2**20
"""Bytes of per-example weights held at once in scope `sample`."""
AT_ONCE = 100
"""Largest number of examples of scope `sample` that walk over the grid together."""


@dataclass(frozen=True)
class Method:
    """Everything but the model, the data and the radii that an attacked accuracy depends on."""

    attack: Attack
    name: str
    scope: Scope
    unit: JointBall
    """The ball whose radii the grid multiplies: eps_x = 1, or a radius per element; eps_w = 1, or one per named tensor."""
    batch_size: int
    """Examples that share W' in scope `batch`."""

    @property
    def nested(self) -> bool:
        """Whether a point of the grid begins from its smaller neighbours."""
        return "start" in inspect.signature(self.attack).parameters

    def describe(self) -> dict[str, Any]:
        """The settings by name, for records; with a hash of its code for an attack that is not of the catalog."""
        return {
            "attack": self.name, "scope": self.scope, **self.unit.describe(),
            "batch_size": self.batch_size if self.scope == "batch" else None,
        } | ({} if self.name in ATTACKS else {"code": _code(self.attack)})  # fmt: skip

    def groups(self, model: nn.Module, n: int) -> list[tuple[int, int]]:
        """Spans of examples that can be attacked apart from each other: each shares nothing with the others."""
        size = {"dataset": n, "batch": self.batch_size, "sample": self._in_memory(model)}[self.scope]
        return [(i, min(i + size, n)) for i in range(0, n, size)]

    def _in_memory(self, model: nn.Module) -> int:
        params = dict(model.named_parameters())
        moving = sum(params[name].numel() * params[name].element_size() for name in self.unit.radii(params))
        return max(1, min(AT_ONCE, SAMPLE_MEMORY // max(1, moving)))


def name_of(attack: Any) -> str:
    """How records call an attack; the arguments of a functools.partial belong to the name."""
    if isinstance(attack, partial):
        return f"{name_of(attack.func)}({', '.join(f'{k}={v}' for k, v in sorted(attack.keywords.items()))})"
    return attack if isinstance(attack, str) else getattr(attack, "__name__", type(attack).__name__)


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
