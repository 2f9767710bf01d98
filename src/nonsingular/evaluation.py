"""evaluation.py - attacked accuracy over a grid of radii, and on request the certified one beside it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular import __version__
from nonsingular.catalog import ATTACKS, lookup
from nonsingular.checks import check_inputs
from nonsingular.data import hash_tensors
from nonsingular.errors import InvalidInput, SoundnessError
from nonsingular.graph import logits_at
from nonsingular.margins import is_correct, margins, worst_margin
from nonsingular.records import FORMAT, Cell, Log, Surface, axis
from nonsingular.sandwich import Parts, Proof, certified, margins_of, rehearse_proof
from nonsingular.threat import JointBall, Moves, Perturbation, Radius, Scope, check_scope, told

SAMPLE_MEMORY = 64 * 2**20
"""Bytes of per-example weights held at once in scope `sample`."""


class Attack(Protocol):
    """(model, x, y, ball, *, scope) -> a point of the ball."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope) -> Perturbation: ...


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
        return {
            "attack": self.name, "scope": self.scope, **self.unit.describe(),
            "batch_size": self.batch_size if self.scope == "batch" else None,
        } | ({} if self.name in ATTACKS else {"code": _code(self.attack)})  # fmt: skip


def choose(
    model: nn.Module, *, attack: str | Attack | None = None, scope: Scope = "sample", radii: Mapping[str, Radius] | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights", relative: bool = False, batch_size: int = 128,
) -> Method:  # fmt: skip
    """The method that these settings name.

    radii: one radius per named tensor, if the grid multiplies these.
    Without an attack: `apgd` in scope `sample`, otherwise `paper`.
    Raises InvalidInput for an unknown name.
    """
    check_scope(scope)
    if batch_size < 1:
        raise InvalidInput(f"batch_size is {batch_size}; give 1 or more")
    unit = JointBall(1.0, 1.0 if radii is None else radii, domain, moves, relative)
    if attack is None:
        attack = "apgd" if scope == "sample" else "paper"
    function: Attack = lookup(ATTACKS, attack, "attack") if isinstance(attack, str) else attack
    return Method(function, _name(attack), scope, unit, batch_size)


def rehearse(model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float) -> None:
    """Attacks one example, so that an attack that does not fit the model or the scope says so before any work is done."""
    method.attack(model, x[:1], y[:1].long(), method.unit.scaled(eps_x, eps_w), scope=method.scope)


def attack_cell(model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float) -> Cell:
    """Which examples survive at one point of the grid.  Accuracy is taken from the tensors that the attack returns."""
    started = time.perf_counter()
    ball = method.unit.scaled(eps_x, eps_w)
    at_once = _at_once(model, x, method, ball)
    predictions: list[Tensor] = []
    correct: list[Tensor] = []
    reached: list[Tensor] = []
    for part, labels in zip(x.split(at_once), y.split(at_once), strict=True):
        point = method.attack(model, part, labels, ball, scope=method.scope).check(model, part, ball)
        if point.weights and point.scope != method.scope:
            raise AssertionError(f"the attack returned W' of scope {point.scope}, not {method.scope}")
        logits = logits_at(model, point)
        predictions.append(logits.argmax(1))
        correct.append(is_correct(logits, labels))
        reached.append(worst_margin(margins(logits, labels), labels))
    flags = ("one-class",) if len(x) > 1 and len(torch.cat(predictions).unique()) == 1 else ()
    seconds = time.perf_counter() - started
    return Cell(eps_x, eps_w, torch.cat(correct).cpu().numpy(), seconds, flags, torch.cat(reached).float().cpu().numpy())


def _at_once(model: nn.Module, x: Tensor, method: Method, ball: JointBall) -> int:
    """Examples that are attacked together."""
    params = dict(model.named_parameters())
    moving = sum(params[name].numel() * params[name].element_size() for name in ball.radii(params))
    in_memory = max(1, min(512, SAMPLE_MEMORY // max(1, moving)))
    return {"dataset": len(x), "batch": method.batch_size, "sample": in_memory}[method.scope]


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
    certify: str | None = None,
    log: Path | None = None,
) -> Surface:
    """Accuracy of `model` under attack over a grid of input and weight radii.

    data: x (N, *input) in `domain` and y (N,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode; never changed.
    eps_x, eps_w: radii in the units of the data and of the weights: the largest one (11 equal steps from 0), or all of them.
        A mapping from parameter name to radius (as in JointBall) moves these tensors alone; the axis is then the fraction of the
        radii, 0 to 1.
    scope: who shares W' ("sample", "batch", "dataset").  attack: a name of the catalog, a function, or None for the default.
    moves, relative: as in JointBall.  batch_size: the B of scope "batch".
    certify: a sound bound of the catalog ("crown", "best", ...): the surface then carries its certified surface, `.certified`.
    log: file to which each finished cell is appended; cells that it holds for this model, data and method are not run again.
        An attack given as a function is known there by its name and code, without the values that it closes over.
    Returns a Surface: an upper bound of robust accuracy, cell by cell, in the scope named.
    Raises InvalidInput for an unusable grid, model, label, or input, SoundnessError where a certified margin lies above an
    attacked one (the case is saved beside the log).  Cost: one attack per cell, and the certificates.
    """
    radii = eps_w if isinstance(eps_w, Mapping) else None
    x, y = (torch.as_tensor(t) for t in data)
    method = choose(
        model, attack=attack, scope=scope, radii=radii, domain=domain, moves=moves, relative=relative, batch_size=batch_size
    )
    check_inputs(model, x, y, method.unit)
    columns, rows = axis(eps_x, "eps_x"), axis(1.0 if isinstance(eps_w, Mapping) else eps_w, "eps_w")
    return surface(model, x, y.long(), method, columns, rows, certify=certify, log=log)


def surface(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    method: Method,
    columns: Sequence[float],
    rows: Sequence[float],
    *,
    certify: str | None = None,
    name: str = "model",
    log: Path | None = None,
    cells: Cells = in_this_process,
    parts: Parts | None = None,
    on_cell: Callable[[Cell], None] = lambda cell: None,
    on_part: Callable[[int], None] = lambda examples: None,
) -> Surface:
    """`evaluate` on checked inputs, with the cells run by `cells`, the certificates by `parts`.  columns: eps_x.  rows: eps_w."""
    proof = None if certify is None else Proof(certify, method.unit)
    if proof:
        rehearse_proof(model, x, y, proof)
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
        n: {"shape": list(params[n].shape), "radius": told(r)}
        for n, r in method.unit.scaled(columns[-1], rows[-1]).radii(params).items()
    }
    about = {
        **method.describe(), **hashes, "clean_accuracy": is_correct(clean, y).double().mean().item(),
        "moved_at_largest_eps_w": moved, "dtype": str(x.dtype), "device": x.device.type,
    }  # fmt: skip
    found = [done[p] for p in wanted]
    proven = None
    if proof:
        try:
            proven = certified(
                model, x, y, proof, columns, rows, attacked=found, name=name, log=log, parts=parts, on_part=on_part
            )  # fmt: skip
        except SoundnessError as e:
            raise _saved(e, model, x, y, method, found, log) from None
    if method.scope == "sample" and method.name != "paper":  # the paper's attack is shown as it is, with its rises
        found = nested(found, columns, rows)
    return Surface.from_cells(
        found, columns, rows, scope=method.scope, attack=method.name, model=name, about=about, certified=proven
    )


def _saved(
    e: SoundnessError, model: nn.Module, x: Tensor, y: Tensor, method: Method, cells: Sequence[Cell], log: Path | None
) -> SoundnessError:
    """The same with its case written beside the log: the example, and the perturbation that reached its margin, found again."""
    if log is None:
        return e
    inside = [c for c in cells if c.eps_x <= e.eps_x and c.eps_w <= e.eps_w and c.margins is not None]
    cell = min(inside, key=lambda c: float(np.asarray(c.margins)[e.example]))
    ball = method.unit.scaled(cell.eps_x, cell.eps_w)
    at_once = _at_once(model, x, method, ball)
    start = e.example // at_once * at_once
    part, labels = x[start : start + at_once], y[start : start + at_once]
    point = method.attack(model, part, labels, ball, scope=method.scope)
    k = e.example - start
    weights = {f"weights.{n}": w[k] if point.scope == "sample" else w for n, w in point.weights.items()}
    tensors = {"x": part[k], "y": labels[k], "x_adv": point.x[k], **weights}
    path = log.with_name(f"violation-{e.example}.npz")
    arrays: dict[str, Any] = {n: t.detach().float().cpu().numpy() for n, t in tensors.items()}
    np.savez(path, **arrays)
    return SoundnessError(e.example, e.eps_x, e.eps_w, e.certified, e.attacked, str(path))


def nested(cells: Sequence[Cell], columns: Sequence[float], rows: Sequence[float]) -> list[Cell]:
    """The cells of a grid, where an example that is lost in a ball is lost in every larger one: its perturbation lies there too.

    Exact in scope `sample` alone, where each example has its own perturbation.
    """
    at = {(c.eps_w, c.eps_x): c for c in cells}
    correct = np.array([[at[w, x].correct for x in columns] for w in rows])
    reached = margins_of(cells, columns, rows)
    for along in (0, 1):
        correct = np.logical_and.accumulate(correct, axis=along)
        reached = np.minimum.accumulate(reached, axis=along)
    return [
        replace(at[w, x], correct=correct[i, j], margins=reached[i, j]) for i, w in enumerate(rows) for j, x in enumerate(columns)
    ]


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
