"""attacked.py - attacked accuracy over a grid of radii, and on request the certified one beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular.catalog import Attack
from nonsingular.data.columns import input_axis
from nonsingular.data.datasets import as_tensors, columns_of, missing_radii
from nonsingular.errors import InvalidInput, SoundnessError
from nonsingular.evaluation.certified import Parts, Proven, identity, prove, rehearse_proof
from nonsingular.evaluation.masking import doubts_of_gradients
from nonsingular.evaluation.problem import Method, Proof, attack_of, key_of
from nonsingular.evaluation.schedule import Submit, Work, cell_alone
from nonsingular.evaluation.walk import nested
from nonsingular.network.calling import logits_at
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct, margins, worst_margin
from nonsingular.network.preconditions import check_inputs, warn
from nonsingular.results.surface import Cell, Surface
from nonsingular.threat.ball import JointBall, Moves, Scope, check_scope
from nonsingular.threat.grid import axis
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import Radius, told


def choose(
    *, attack: str | Attack | Callable[..., Any] | None = None, scope: Scope = "sample",
    radii: Mapping[str, Radius] | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights", relative: bool = False, batch_size: int = 128,
    unit_x: Radius = 1.0,
) -> Method:  # fmt: skip
    """The method that these settings name.

    radii: one radius per named tensor, if the grid multiplies these.  unit_x: what it multiplies on the inputs.
    Without an attack: `strongest`.  Names joined by "+" are an ensemble: the worst of these.
    Raises InvalidInput for an unknown name.
    """
    check_scope(scope)
    if batch_size < 1:
        raise InvalidInput(f"batch_size is {batch_size}; give 1 or more")
    unit = JointBall(unit_x, 1.0 if radii is None else radii, domain, moves, relative)
    return Method(attack_of("strongest" if attack is None else attack), scope, unit, batch_size)


def rehearse(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float, examples: int = 1
) -> None:  # fmt: skip
    """Attacks the first examples, so that an attack that does not fit the model or the scope says so before any work is done."""
    method.attack(model, x[:examples], y[:examples].long(), method.unit.scaled(eps_x, eps_w), scope=method.scope)


def attack_cell(model: nn.Module, x: Tensor, y: Tensor, method: Method, eps_x: float, eps_w: float) -> Cell:
    """Which examples survive at one point of the grid.  Accuracy is taken from the tensors that the attack returns."""
    return cell_alone(model, x, y, method, (eps_x, eps_w), False)[1][0]


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    eps_x: float | Sequence[float] | Tensor | Mapping[Any, Any] | None = None,
    eps_w: float | Sequence[float] | Mapping[str, Radius] | None = None,
    scope: Scope = "sample",
    attack: str | Attack | Callable[..., Any] | None = None,
    domain: tuple[float, float] | None = (0.0, 1.0),
    moves: Moves = "weights",
    relative: bool = False,
    batch_size: int = 128,
    certify: str | None = None,
    log: Path | None = None,
    threads: int = 1,
) -> Surface:
    """Accuracy of `model` under attack over a grid of input and weight radii.

    data: (x, y), x (N, *input) in `domain` and y (N,) class indices, tensors or arrays; or a torch Dataset or DataLoader of them,
        which is gathered in its order.
    model: (B, *input) -> (B, K) logits, in eval mode; never changed.  One logit z for two classes, (B, 1) or (B,), counts as
        (0, z), and a sigmoid at its end is left out.
    eps_x, eps_w: radii in the units of the data and of the weights: the largest one (11 equal steps from 0), or all of them.
        A mapping from parameter name to radius (as in JointBall) moves these tensors alone; the axis is then the fraction of the
        radii, 0 to 1.  So it is for eps_x as a mapping from column to radius, by name or number ({"age": 2.0, "income": 500.0}:
        all others are fixed), and for an array of two or more dimensions that broadcasts to one input: (1, d) of a table, a mask
        times a radius.  Both are needed: without one, the error proposes numbers from the data.
    scope: who shares W' ("sample", "batch", "dataset").  attack: a name of the catalog, a function, or None for the default.
    moves, relative: as in JointBall.  batch_size: the B of scope "batch".
    certify: a sound bound of the catalog ("crown", "best", ...): the surface then carries its certified surface, `.certified`.
    log: file to which each finished cell is appended; cells that it holds for this model, data and method are not run again.
        An attack given as a function is known there by its name and code, without the values that it closes over.
    threads: of torch, meanwhile.  One gives the bits of the command line, and is often fastest: small matrices run far slower on
        many threads where other processes are at work.  More pay for large layers on an idle machine.
    Returns a Surface: an upper bound of robust accuracy, cell by cell, in the scope named.
    Raises InvalidInput for an unusable grid, model, label, or input, SoundnessError where a certified margin lies above an
    attacked one (the case is saved beside the log).  Cost: one attack per cell, and the certificates.
    """
    x, y = as_tensors(data)
    if eps_x is None or eps_w is None:
        raise InvalidInput(missing_radii(x, eps_x, eps_w))
    radii = eps_w if isinstance(eps_w, Mapping) else None
    unit_x, columns = input_axis(eps_x, x.shape[1:], columns_of(data))
    method = choose(
        attack=attack, scope=scope, radii=radii, domain=domain, moves=moves, relative=relative, batch_size=batch_size,
        unit_x=unit_x,
    )  # fmt: skip
    with use_threads(threads):
        model = classifier(model, x, method.unit)
        warn(doubts := [*model.told, *check_inputs(model, x, y, method.unit)])
        rows = axis(1.0 if isinstance(eps_w, Mapping) else eps_w, "eps_w")
        found = surface(model, x, y.long(), method, columns, rows, certify=certify, log=log, doubts=doubts)
        warn(found.about["doubts"][len(doubts) :])
        return found


def surface(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, columns: Sequence[float], rows: Sequence[float], *,
    certify: str | None = None, name: str = "model", log: Path | None = None, keep: bool = True, submit: Submit | None = None,
    parts: Parts | None = None, on_cell: Callable[[Cell], None] = lambda cell: None,
    on_part: Callable[[int], None] = lambda examples: None, doubts: Sequence[str] = (),
) -> Surface:  # fmt: skip
    """`evaluate` on checked inputs, with the work done by `submit` and `parts`.  columns: eps_x.  rows: eps_w.

    doubts: sentences that stand beside the numbers wherever they are shown, from `check_inputs` and whoever else doubts them;
        what the numbers themselves make doubtful joins them.
    keep: with a log, what was found is kept in the folder `perturbations` beside it.
    """
    proof = None if certify is None else Proof(certify, method.unit)
    if proof:
        rehearse_proof(model, x, y, proof)
    with torch.no_grad():
        clean = logits_at(model, Perturbation(x))
    made_of = identity(model, x, y, clean)
    proven = None
    proving = partial(prove, model, x, y, columns=columns, rows=rows, log=log, parts=parts, on_part=on_part)
    spared = method.nested and method.scope == "sample"  # what is certified is not attacked
    if proof and spared:
        proven = proving(proof=proof)
    work = Work(model, x, y, method, tuple(columns), tuple(rows), key_of(method, made_of), log, keep)
    cells: list[Cell] = []
    try:
        cells = work.cells(submit, proof, None if proven is None else proven.held, on_cell)
        if proof:
            proven = (proven or proving(proof=proof, attacked=cells)).under(cells)
    except SoundnessError as e:
        raise _saved(e, model, x, y, method, cells, log) from None
    about = {
        **method.describe(), **made_of[0], "clean_accuracy": is_correct(clean, y).double().mean().item(),
        "moved_at_largest_eps_w": moved_at(model, method.unit.scaled(columns[-1], rows[-1])),
        "passes": {"forward": sum(c.passes[0] for c in cells), "backward": sum(c.passes[1] for c in cells)},
        "dtype": str(x.dtype), "device": x.device.type,
        "doubts": [*doubts, *_doubts(model, x, y, method, cells, columns, rows, proven)],
    }  # fmt: skip
    if method.scope == "sample" and not method.attack.raw:
        cells = nested(cells, columns, rows)
    return Surface.from_cells(
        cells, columns, rows, scope=method.scope, attack=method.name, model=name, about=about,
        certified=None if proven is None else proven.surface(name, doubts),
    )  # fmt: skip


def _doubts(
    model: nn.Module, x: Tensor, y: Tensor, method: Method, cells: Sequence[Cell], columns: Sequence[float],
    rows: Sequence[float], proven: Proven | None,
) -> list[str]:  # fmt: skip
    """What the numbers themselves make doubtful: gradients that the attack did not see, and rounding against certificates.

    Random search tries examples that are right at the largest input radius at which weights do not move, and not certified.
    """
    still = [c for c in cells if c.eps_w == 0 and c.eps_x > 0 and c.correct.any()]
    cell = max(still, key=lambda c: c.eps_x, default=None)
    left = np.zeros(len(x), dtype=bool) if cell is None else cell.correct.copy()
    if cell is not None and proven is not None:
        left &= ~proven.held[list(rows).index(0), list(columns).index(cell.eps_x)]
    survivors = torch.from_numpy(np.flatnonzero(left)).to(x.device)
    inputs = None if cell is None else method.unit.scaled(cell.eps_x, 0.0)
    largest = method.unit.scaled(columns[-1], rows[-1])
    return [*doubts_of_gradients(model, x, y, largest, survivors, inputs), *(() if proven is None else proven.doubts)]


def moved_at(model: nn.Module, ball: JointBall) -> dict[str, dict[str, Any]]:
    """Name -> shape and radius of every tensor that moves."""
    params = dict(model.named_parameters())
    return {n: {"shape": list(params[n].shape), "radius": told(r)} for n, r in ball.radii(params).items()}


def _saved(
    e: SoundnessError, model: nn.Module, x: Tensor, y: Tensor, method: Method, cells: Sequence[Cell], log: Path | None
) -> SoundnessError:
    """The same with its case written beside the log: the example, and the perturbation that reached its margin, found again."""
    if log is None:
        return e
    inside = [c for c in cells if c.eps_x <= e.eps_x and c.eps_w <= e.eps_w and c.margins is not None]
    cell = min(inside, key=lambda c: float(np.asarray(c.margins)[e.example]), default=e)
    ball = method.unit.scaled(cell.eps_x, cell.eps_w)
    start, stop = next(span for span in method.groups(model, len(x)) if span[0] <= e.example < span[1])
    part, labels = x[start:stop], y[start:stop]
    point = method.attack(model, part, labels, ball, scope=method.scope)
    k = e.example - start
    weights = {f"weights.{n}": w[k] if point.scope == "sample" else w for n, w in point.weights.items()}
    tensors = {"x": part[k], "y": labels[k], "x_adv": point.x[k], **weights}
    path = log.with_name(f"violation-{e.example}.npz")
    arrays: dict[str, Any] = {n: t.detach().float().cpu().numpy() for n, t in tensors.items()}
    np.savez(path, **arrays)
    logits = logits_at(model, point)
    reached = worst_margin(margins(logits, labels), labels)[k].item()  # of what is saved
    return SoundnessError(e.example, e.eps_x, e.eps_w, e.certified, reached if reached < e.certified else e.attacked, str(path))
