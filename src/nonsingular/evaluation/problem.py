"""problem.py - what an accuracy refers to: a Case, the network and its examples; and a Method, how they are attacked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from nonsingular.attacks.search.crew import Crew
from nonsingular.attacks.strongest import ensemble
from nonsingular.catalog import ATTACKS, Attack, Bound, declared, known
from nonsingular.data.datasets import as_tensors, columns_of, hash_tensors, missing_radii
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.effort import Budget, Sweep, check_effort, longer, sweeps
from nonsingular.network.calling import logits_at
from nonsingular.network.devices import placed
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct
from nonsingular.network.network import Network
from nonsingular.network.preconditions import check_inputs
from nonsingular.results.surface import FORMAT
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.grid import Grid
from nonsingular.threat.perturbation import Perturbation

GROUP_BYTES, GROUP = 64 * 2**20, 100
"""Limits on the examples of scope `sample` that walk over the grid together: bytes of their own weights, and their number.
Fixed: random starts are drawn for a group, so another size would give other bits.
"""


@dataclass(frozen=True, eq=False)
class Case:
    """A network and the examples that it is asked about.  What follows from these alone is computed once, when it is needed.

    x: (N, *input).  y: (N,) int64.  name: what records call the model.
    doubts: sentences that are shown beside the numbers everywhere.
    deployed: the type that certificates take it to be computed in; None: exact arithmetic.
    crew: workers that an attack with one W' for all examples may divide them among.
    """

    network: Network
    x: Tensor
    y: Tensor
    name: str = "model"
    doubts: tuple[str, ...] = ()
    deployed: str | None = None
    crew: Crew | None = None

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, unit: JointBall | None = None) -> Case:
        """The case of a user's model and tensors, unchecked.  unit: a ball whose eps_w may name parameters."""
        return cls(classifier(model, x, unit), x, y.long())

    def __len__(self) -> int:
        return len(self.x)

    def part(self, at: slice | Tensor) -> Case:
        """The same network on some of the examples."""
        return Case(self.network, self.x[at], self.y[at], deployed=self.deployed)

    def logits(self, point: Perturbation) -> Tensor:
        """(N, K) logits at a perturbation of all examples."""
        return logits_at(self.network, point) if self.crew is None else self.crew.logits(point)

    @cached_property
    def clean(self) -> Tensor:
        """(N, K) logits with nothing moved."""
        return logits_at(self.network, Perturbation(self.x))

    @cached_property
    def right(self) -> Tensor:
        """(N,) which examples are classified correctly with nothing moved."""
        return is_correct(self.clean, self.y)

    @property
    def clean_accuracy(self) -> float:
        """In [0, 1]."""
        return self.right.double().mean().item()

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Hashes of the model and of the examples, as records state them."""
        return {
            "model_sha256": hash_tensors(self.network.state_dict()), "data_sha256": hash_tensors({"x": self.x, "y": self.y}),
        }  # fmt: skip

    @cached_property
    def function(self) -> list[str]:
        """What the network computes, beyond its weights: ReLU or tanh, for example; and where, if not on the CPU."""
        where = [] if self.x.device.type == "cpu" else [self.x.device.type]
        return [str(self.network), hash_tensors({"predictions": self.clean.argmax(1)}), *where]


def asked(
    model: nn.Module, data: Any, eps_x: Any, eps_w: Any, device: Any, dtype: Any, **ball: Any
) -> tuple[Case, Grid]:  # fmt: skip
    """The case and the grid that a user asks about, checked.  The arguments are those of `evaluate`; ball: of `Grid.of`.

    Raises InvalidInput for an unusable grid, model, label or input; without a radius it proposes some from the data.
    """
    x, y = as_tensors(data)
    model, x, y = placed(model, x, y, device, dtype)
    if eps_x is None or eps_w is None:
        raise InvalidInput(missing_radii(x, eps_x, eps_w))
    grid = Grid.of(eps_x, eps_w, input_shape=x.shape[1:], columns=columns_of(data), **ball)
    network = classifier(model, x, grid.unit)
    doubts = (*network.told, *check_inputs(network, x, y, grid.unit))
    return Case(network, x, y.long(), doubts=doubts), grid


@dataclass(frozen=True)
class Method:
    """How examples are attacked.  batch_size: examples that share W' in scope `batch`.

    seed: of the random points from which the attack begins; None: it draws from seed 0, or begins at the data.
    effort: as in effort.py.
    """

    attack: Attack
    scope: Scope = "sample"
    batch_size: int = 128
    seed: int | None = None
    effort: str = "standard"

    @classmethod
    def of(
        cls, attack: str | Attack | Callable[..., Any] | None = None, scope: Scope = "sample", batch_size: int = 128,
        seed: int | None = None, effort: str = "standard",
    ) -> Method:  # fmt: skip
        """Without an attack: `strongest`.

        Raises InvalidInput for an unknown name, scope or effort, a batch below 1, and the seed of an attack that draws nothing.
        """
        check_scope(scope)
        check_effort(effort)
        if batch_size < 1:
            raise InvalidInput(f"batch_size is {batch_size}; give 1 or more")
        entry = attack_of("strongest" if attack is None else attack)
        if seed is not None and not entry.seeded:
            raise InvalidInput(
                f"seed is {seed}, and the attack '{entry.name}' takes none; leave it out, or choose another attack"
            )
        return cls(entry, scope, batch_size, seed, effort)

    def at(
        self, case: Case, ball: JointBall, start: Perturbation | None = None, budget: Budget = MappingProxyType({})
    ) -> Perturbation:  # fmt: skip
        """What the attack returns for these examples, unchecked.  start: where it begins, if it takes a start.

        budget: arguments of an attack that takes them; no other gets them.
        """
        options: dict[str, Any] = {**(budget if self.attack.budget else {}), **({} if start is None else {"start": start})}
        if case.crew is not None and self.attack.budget:
            options["crew"] = case.crew
        if self.seed is not None:
            options["generator"] = torch.Generator(case.x.device).manual_seed(self.seed)
        return self.attack(case.network, case.x, case.y, ball, scope=self.scope, **options)

    @property
    def nested(self) -> bool:
        """Whether a cell begins from its smaller neighbours."""
        return self.attack.starts

    @property
    def alone(self) -> bool:
        """Whether each example is attacked by itself, and skipped once it is lost in a smaller ball or certified."""
        return self.scope == "sample" and self.nested

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """How it walks over the grid; once for an attack that takes no start."""
        return sweeps(self.effort, self.scope, self.attack.budget) if self.nested else (Sweep(),)

    def sweep(self, number: int) -> Sweep:
        """The sweep of this number; after the last, a longer attack."""
        return self.sweeps[number] if number < len(self.sweeps) else longer(self.effort)

    def describe(self, unit: JointBall) -> dict[str, Any]:
        """The settings by name, for records; with a hash of its code for an attack that is not of the catalog."""
        return {
            "attack": self.attack.name, "scope": self.scope, **unit.describe(),
            "batch_size": self.batch_size if self.scope == "batch" else None,
            **({} if self.seed is None else {"seed": self.seed}),
            **({"effort": self.effort} if self.nested else {}),
            **({} if self.attack.name in ATTACKS else {"code": _code(self.attack.what)}),
        }  # fmt: skip

    def groups(self, case: Case, unit: JointBall) -> list[tuple[int, int]]:
        """Spans of examples that can be attacked separately: no two of them share anything."""
        n = len(case)
        size = {"dataset": n, "batch": self.batch_size, "sample": _in_memory(case.network, unit)}[self.scope]
        return [(i, min(i + size, n)) for i in range(0, n, size)]

    def key(self, case: Case, unit: JointBall) -> str:
        """A hash of all that cells depend on: a log's cells are reused only under the same key."""
        about = self.describe(unit)
        if self.alone and self.effort == "standard":
            del about["effort"]  # the cells of logs without efforts
        return _hashed(FORMAT, about, case.hashes, case.function)

    def keys(self, key: str) -> list[str]:
        """The keys of the sweeps: that of the last one is `key`, which the result has."""
        return [*(f"{key}-sweep-{number}" for number in range(len(self.sweeps) - 1)), key]


def left_key(key: str) -> str:
    """The key of what the last sweep of all left to be had."""
    return f"{key}-left"


def _in_memory(model: nn.Module, unit: JointBall) -> int:
    params = dict(model.named_parameters())
    moving = sum(params[name].numel() * params[name].element_size() for name in unit.radii(params))
    return max(1, min(GROUP, GROUP_BYTES // max(1, moving)))


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


def proof_key(case: Case, grid: Grid, bound: Bound) -> str:
    """A hash of all that certificates depend on: a log's certificates are reused only under the same key."""
    bounded = described(bound, grid.unit, case.deployed)
    return _hashed(FORMAT, bounded, case.hashes, case.function, list(grid.eps_x), list(grid.eps_w))


def described(bound: Bound, unit: JointBall, deployed: str | None = None) -> dict[str, Any]:
    """A bound and its ball by name, for records; with the type that the network is deployed in, if that is rounded in."""
    return {"bound": bound.name, **unit.describe()} | ({} if deployed is None else {"deployed": deployed})


def _hashed(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
