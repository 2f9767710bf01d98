"""evaluation.py - attacked accuracy over a grid of radii, and certified accuracy at one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular import __version__
from nonsingular.attacks.neuron_pgd import shifts
from nonsingular.catalog import ATTACKS, BOUNDS, UNSOUND, lookup
from nonsingular.data import hash_tensors
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.graph import logits_at, twin
from nonsingular.margins import check_labels, is_correct, worst_margin
from nonsingular.records import FORMAT, Cell, Log, Surface
from nonsingular.threat import JointBall, Moves, Perturbation, Radius, Scope, check_scope, largest

POINTS = 11
"""Points of an axis that is given by its largest radius alone."""
SAMPLE_MEMORY = 64 * 2**20
"""Bytes of per-example weights held at once in scope `sample`."""


class Attack(Protocol):
    """(model, x, y, ball, *, scope) -> a point of the ball."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope) -> Perturbation: ...


def axis(radii: float | Sequence[float], name: str) -> tuple[float, ...]:
    """The radii of one axis of the grid: as given, or from 0 to the given one in 11 equal steps.

    Raises InvalidInput unless they are finite, 0 or larger, and strictly increasing.

    >>> axis(0.2, "eps_x")[:3]
    (0.0, 0.02, 0.04)
    """
    if isinstance(radii, Sequence) or getattr(radii, "ndim", 0):
        values = [float(r) for r in cast(Sequence[float], radii)]
    else:
        top = float(cast(float, radii))
        values = [float(f"{top * i / (POINTS - 1):.12g}") for i in range(POINTS)] if top else [0.0]
    if not values or not all(np.isfinite(values)) or min(values) < 0:
        raise InvalidInput(f"{name} is {radii}; give radii that are finite and 0 or larger")
    if any(b <= a for a, b in pairwise(values)):
        raise InvalidInput(f"{name} is {radii}; give radii in strictly increasing order")
    return tuple(values)


@dataclass(frozen=True)
class Method:
    """Everything but the model, the data and the radii that an attacked accuracy depends on."""

    attack: Attack
    name: str
    scope: Scope
    unit: JointBall
    """The ball whose radii the grid multiplies: eps_x = 1 and eps_w = 1, or one radius per named tensor."""
    batch_size: int
    """Examples that share W' in scope `batch`."""

    def describe(self) -> dict[str, Any]:
        """The settings by name, for records; with a hash of its code for an attack that is not of the catalog."""
        eps_w = self.unit.eps_w
        return {
            "attack": self.name, "scope": self.scope, "domain": self.unit.domain,
            "moves": self.unit.moves, "relative": self.unit.relative,
            "eps_w_per_tensor": {n: _told(r) for n, r in eps_w.items()} if isinstance(eps_w, Mapping) else None,
            "batch_size": self.batch_size if self.scope == "batch" else None,
        } | ({} if self.name in ATTACKS else {"code": _code(self.attack)})  # fmt: skip


def choose(
    model: nn.Module, *, attack: str | Attack | None = None, scope: Scope = "sample", radii: Mapping[str, Radius] | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights", relative: bool = False, batch_size: int = 128,
) -> Method:  # fmt: skip
    """The method that these settings name.

    radii: one radius per named tensor, if the grid multiplies these.
    Without an attack: `neuron` in scope `sample` for a dense network, otherwise `paper`.
    Raises InvalidInput for an unknown name.
    """
    check_scope(scope)
    if batch_size < 1:
        raise InvalidInput(f"batch_size is {batch_size}; give 1 or more")
    unit = JointBall(1.0, 1.0 if radii is None else radii, domain, moves, relative)
    if attack is None:
        attack = "neuron" if scope == "sample" and _has_neurons(model, unit) else "paper"
    function: Attack = lookup(ATTACKS, attack, "attack") if isinstance(attack, str) else attack
    return Method(function, _name(attack), scope, unit, batch_size)


def rehearse(model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float) -> None:
    """Attacks one example, so that an attack that does not fit the model or the scope says so before any work is done."""
    method.attack(model, x[:1], y[:1].long(), method.unit.scaled(eps_x, eps_w), scope=method.scope)


def attack_cell(model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float) -> Cell:
    """Which examples survive at one point of the grid.  Accuracy is taken from the tensors that the attack returns."""
    started = time.perf_counter()
    ball = method.unit.scaled(eps_x, eps_w)
    params = dict(model.named_parameters())
    moving = sum(params[name].numel() * params[name].element_size() for name in ball.radii(params))
    in_memory = max(1, min(512, SAMPLE_MEMORY // max(1, moving)))
    at_once = {"dataset": len(x), "batch": method.batch_size, "sample": in_memory}[method.scope]
    predictions: list[Tensor] = []
    correct: list[Tensor] = []
    for part, labels in zip(x.split(at_once), y.split(at_once), strict=True):
        point = method.attack(model, part, labels, ball, scope=method.scope).check(model, part, ball)
        if point.weights and point.scope != method.scope:
            raise AssertionError(f"the attack returned W' of scope {point.scope}, not {method.scope}")
        logits = logits_at(model, point)
        predictions.append(logits.argmax(1))
        correct.append(is_correct(logits, labels))
    flags = ("one-class",) if len(x) > 1 and len(torch.cat(predictions).unique()) == 1 else ()
    return Cell(eps_x, eps_w, torch.cat(correct).cpu().numpy(), time.perf_counter() - started, flags)


Cells = Callable[[nn.Module, Tensor, Tensor, Method, Sequence[tuple[float, float]]], Iterable[Cell]]
"""Who runs the cells: (model, x, y, method, [(eps_x, eps_w)]) -> cells in any order."""


def in_this_process(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, points: Sequence[tuple[float, float]]
) -> Iterator[Cell]:
    """Cells one after the other."""
    for eps_x, eps_w in points:
        yield attack_cell(model, x, y, method, eps_x, eps_w)


def evaluate(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    eps_x: float | Sequence[float],
    eps_w: float | Sequence[float] | Mapping[str, Radius],
    scope: Scope = "sample",
    attack: str | Attack | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0),
    moves: Moves = "weights",
    relative: bool = False,
    batch_size: int = 128,
    log: Path | None = None,
) -> Surface:
    """Accuracy of `model` under attack over a grid of input and weight radii.

    data: x (N, *input) in `domain` and y (N,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode; never changed.
    eps_x, eps_w: radii in the units of the data and of the weights: the largest one (11 equal steps from 0), or all of them.
        A mapping from parameter name to radius (as in JointBall) moves these tensors alone; the axis is then the fraction of the
        radii, 0 to 1.
    scope: who shares W' ("sample", "batch", "dataset").  attack: a name of the catalog, a function, or None for the default.
    moves, relative: as in JointBall.  batch_size: the B of scope "batch".
    log: file to which each finished cell is appended; cells that it holds for this model, data and method are not run again.
        An attack given as a function is known there by its name and code, without the values that it closes over.
    Returns a Surface: an upper bound of robust accuracy, cell by cell, in the scope named.
    Raises InvalidInput for an unusable grid, model, label, or input.  Cost: one attack per cell.
    """
    radii = eps_w if isinstance(eps_w, Mapping) else None
    x, y = (torch.as_tensor(t) for t in data)
    method = choose(
        model, attack=attack, scope=scope, radii=radii, domain=domain, moves=moves, relative=relative, batch_size=batch_size
    )
    check_inputs(model, x, y, method.unit)
    columns, rows = axis(eps_x, "eps_x"), axis(1.0 if isinstance(eps_w, Mapping) else eps_w, "eps_w")
    return surface(model, x, y.long(), method, columns, rows, log=log)


def surface(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: Method,
    columns: Sequence[float],
    rows: Sequence[float],
    *,
    name: str = "model",
    log: Path | None = None,
    cells: Cells = in_this_process,
    on_cell: Callable[[Cell], None] = lambda cell: None,
) -> Surface:
    """`evaluate` on checked inputs, with the cells run by `cells`.  columns: eps_x.  rows: eps_w."""
    hashes = {"model_sha256": hash_tensors(model.state_dict()), "data_sha256": hash_tensors({"x": x, "y": y})}
    with torch.no_grad():  # weights alone do not tell ReLU from tanh
        clean = logits_at(model, Perturbation(x))
    function = [str(model), hash_tensors({"predictions": clean.argmax(1)})]
    key = hashlib.sha256(json.dumps([FORMAT, method.describe(), hashes, function], sort_keys=True).encode()).hexdigest()
    versions = {"nonsingular": __version__, "torch": torch.__version__}
    journal = Log(log) if log else None
    done = {(c.eps_x, c.eps_w): c for e in journal or () if e.get("key") == key for c in [Cell.from_dict(e["cell"])]}
    wanted = [(eps_x, eps_w) for eps_w in rows for eps_x in columns]
    for point in set(wanted) & set(done):
        on_cell(done[point])
    for cell in cells(model, x, y, method, [point for point in wanted if point not in done]):
        if journal:
            journal.append({"key": key, "cell": cell.to_dict(), "about": {**method.describe(), **hashes, "versions": versions}})
        done[cell.eps_x, cell.eps_w] = cell
        on_cell(cell)
    params = dict(model.named_parameters())
    moved = {
        n: {"shape": list(params[n].shape), "radius": _told(r)}
        for n, r in method.unit.scaled(columns[-1], rows[-1]).radii(params).items()
    }
    about = {
        **method.describe(), **hashes, "clean_accuracy": is_correct(clean, y).double().mean().item(),
        "moved_at_largest_eps_w": moved, "dtype": str(x.dtype), "device": x.device.type,
    }  # fmt: skip
    found = [done[p] for p in wanted]
    if method.scope == "sample" and method.name != "paper":  # the paper's attack is shown as it is, with its rises
        found = nested(found, columns, rows)
    return Surface.from_cells(found, columns, rows, scope=method.scope, attack=method.name, model=name, about=about)


def nested(cells: Sequence[Cell], columns: Sequence[float], rows: Sequence[float]) -> list[Cell]:
    """The cells of a grid, where an example that is lost in a ball is lost in every larger one: its perturbation lies there too.

    Exact in scope `sample` alone, where each example has its own perturbation.
    """
    at = {(c.eps_w, c.eps_x): c for c in cells}
    correct = np.array([[at[w, x].correct for x in columns] for w in rows])
    for along in (0, 1):
        correct = np.logical_and.accumulate(correct, axis=along)
    return [replace(at[w, x], correct=correct[i, j]) for i, w in enumerate(rows) for j, x in enumerate(columns)]


@dataclass(frozen=True)
class Certificate:
    """Lower bounds that hold for every point of the ball, each example with its own W' (scope `sample`).

    margins: (B, K) lower bounds of logit_y - logit_j, column y is 0.  verified: (B,) no class can overtake y.
    """

    margins: Tensor
    verified: Tensor
    method: str
    scope: Scope = "sample"

    @property
    def accuracy(self) -> float:
        """Certified accuracy in [0, 1]: a lower bound of robust accuracy in every scope."""
        return self.verified.double().mean().item()


def certify(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, method: str = "best") -> Certificate:
    """Proves, where it can, that no input and no weights in `ball` change the prediction.

    x: (B, *input) in ball.domain.  y: (B,).  The bound is computed in float64.
    method: a sound bound of the catalog; by default the best of all of them, cheapest first, until each example is decided.
    Guarantee: that of the bound, in exact arithmetic; the rounding of float64 here and of the deployed network is not covered.
    A bound that is not finite verifies nothing.  Cost: that of the bound.
    Raises UnsupportedModel if the bound has no rule for a part of the model, InvalidInput for a bound that is not sound.
    """
    if method in UNSOUND:
        raise InvalidInput(f"'{method}' is not a bound and may not certify; use method='best'")
    bound = lookup(BOUNDS, method, "bound")
    check_inputs(model, x, y, ball)
    with torch.no_grad():
        lower: Tensor = bound(twin(model).double(), x.double(), y.long(), ball)
        return Certificate(lower, (worst_margin(lower, y.long()) > 0) & torch.isfinite(lower).all(1), method)


def check_inputs(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> None:
    """Raises InvalidInput, with what to do, for data or a model that no number can be computed for."""
    if not len(x):
        raise InvalidInput("the data set is empty; give at least one example")
    if not x.is_floating_point():
        raise InvalidInput(f"x is {x.dtype}; give floating-point inputs, scaled to the domain")
    ball.check_domain(x)
    params = dict(model.named_parameters())
    ball.radii(params)  # an unknown name in eps_w
    still = twin(model)
    try:
        with torch.no_grad():
            logits = torch.cat([still(part.clone()) for part in x.split(1024)])
    except (RuntimeError, TypeError, ValueError, IndexError) as e:
        raise InvalidInput(f"the model does not accept inputs of shape {tuple(x.shape)} and {x.dtype}: {e}") from e
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InvalidInput(f"the model returns shape {tuple(logits.shape)}; a classifier returns (B, K) logits with K >= 2")
    check_labels(y, len(x), logits.shape[1])
    bad = (~torch.isfinite(logits).all(1)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the model returns NaN or infinite logits for {len(bad)} examples, first for number {int(bad[0])}; check its weights"
        )


def _told(radius: Radius) -> Any:
    """A radius in words of JSON: a number, or the shape, the largest value and a hash of a tensor."""
    if isinstance(radius, tuple):
        return {"below": _told(radius[0]), "above": _told(radius[1])}
    if isinstance(radius, Tensor):
        return {"shape": list(radius.shape), "largest": largest(radius), "sha256": hash_tensors({"radius": radius})}
    return radius


def _name(attack: Any) -> str:
    """How records call an attack; the arguments of a functools.partial belong to the name."""
    if isinstance(attack, partial):
        return f"{_name(attack.func)}({', '.join(f'{k}={v}' for k, v in sorted(attack.keywords.items()))})"
    return attack if isinstance(attack, str) else getattr(attack, "__name__", type(attack).__name__)


def _code(attack: Any) -> str:
    """Tells attacks of one name apart: module, bytecode, constants and defaults."""
    while isinstance(attack, partial):
        attack = attack.func
    code = getattr(attack, "__code__", None)
    parts = [getattr(attack, "__module__", ""), getattr(code, "co_code", b""), getattr(code, "co_consts", ())]
    defaults = (getattr(attack, "__defaults__", None), getattr(attack, "__kwdefaults__", None))
    return hashlib.sha256(repr([*parts, defaults]).encode()).hexdigest()[:16]


def _has_neurons(model: nn.Module, unit: JointBall) -> bool:
    try:
        shifts(model, unit)
    except UnsupportedModel:
        return False
    return True
