"""attacked.py - attacked accuracy over a grid of radii, and on request the certified one beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular.catalog import Attack, Bound, sound
from nonsingular.errors import SoundnessError
from nonsingular.evaluation.certified import Proven, pieces_of, prove, rehearse_proof
from nonsingular.evaluation.effort import Effort
from nonsingular.evaluation.execution import ALONE, Execution, Span
from nonsingular.evaluation.masking import doubts_of_gradients
from nonsingular.evaluation.problem import Case, Method, asked
from nonsingular.evaluation.schedule import Work, cell_alone, check_parts
from nonsingular.evaluation.shared import Sharing
from nonsingular.evaluation.walk import nested
from nonsingular.network.calling import logits_at
from nonsingular.network.calling import threads as use_threads
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.preconditions import warn
from nonsingular.results.surface import Cell, Surface
from nonsingular.threat.ball import JointBall, Moves, Scope
from nonsingular.threat.grid import Grid, Radii
from nonsingular.threat.radius import Radius, told


def rehearse(case: Case, method: Method, ball: JointBall) -> None:
    """Attacks these examples, so that an attack that does not fit the model or the scope fails before any work is done."""
    method.at(case, ball)


def attack_cell(case: Case, grid: Grid, method: Method, radii: Radii) -> Cell:
    """Which examples survive in one cell.  Accuracy is taken from the tensors that the attack returns."""
    return cell_alone(case, grid, method, radii, keep=False)[1][0]


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
    seed: int | None = None,
    effort: Effort = "standard",
    certify: str | None = None,
    log: Path | None = None,
    threads: int = 1,
    device: str | torch.device | None = None,
    dtype: str | None = None,
) -> Surface:
    """Accuracy of `model` under attack over a grid of input and weight radii.

    data: (x, y), x (N, *input) in `domain` and y (N,) class indices, tensors or arrays; or a torch Dataset or DataLoader of them,
        which is gathered in its order.
    model: (B, *input) -> (B, K) logits, in eval mode; never changed.  One logit z for two classes, (B, 1) or (B,), counts as
        (0, z), and a sigmoid at its end is left out.
    eps_x, eps_w: radii in the units of the data and of the weights: the largest one (11 equal steps from 0), or all of them.
        A mapping from parameter name to radius (as in JointBall) moves these tensors alone; the axis is then the fraction of the
        radii, 0 to 1.  The same holds for eps_x as a mapping from column to radius, by name or number
        ({"age": 2.0, "income": 500.0}: all others are fixed), and for an array of two or more dimensions that broadcasts to one
        input: (1, d) of a table, a mask times a radius.  Both are needed: without one, the error proposes numbers from the data.
    scope: who shares W' ("sample", "batch", "dataset").  attack: a name of the catalog, a function, or None for the default.
    moves, relative: as in JointBall.  batch_size: the B of scope "batch".
    seed: of the random points from which attacks begin; None: an attack draws from seed 0, or begins at the data.
    effort: what the default attack may spend: "quick", "standard" or "thorough" (evaluation/effort.py).  Where W' is shared, more
        effort begins from what less found, and never leaves more examples right.
    certify: a sound bound of the catalog ("crown", "best", ...): the surface then carries its certified surface, `.certified`,
        and in the scopes batch and dataset also that of `certify_shared`, `.shared`, which lies between the two.
    log: file to which each finished cell is appended; cells that it holds for this model, data and method are not run again.
        An attack given as a function is known there by its name and code, without the values that it closes over.
    threads: of torch, during the call.  One gives the bits of the command line, and is often fastest: small matrices run far
        slower on many threads where other processes are at work.  More pay for large layers on an idle machine.
    device, dtype: where it is computed ("cpu", "cuda", "mps", or "auto" for the best that is there), and in which numbers
        ("float32" or "float64").  By default where the weights are, and in theirs.  Your model is not moved: a copy is.
    Returns a Surface: an upper bound of robust accuracy, cell by cell, in the scope named.
    Raises InvalidInput for an unusable grid, model, label, or input, SoundnessError where a certified margin lies above an
    attacked one (the case is saved beside the log).  Cost: one attack per cell, and the certificates.
    """
    method, bound = Method.of(attack, scope, batch_size, seed, effort), None if certify is None else sound(certify)
    with use_threads(threads):
        case, grid = asked(model, data, eps_x, eps_w, device, dtype, domain=domain, moves=moves, relative=relative)
        warn(case.doubts)
        found = surface(case, grid, method, bound, Execution(log))
        warn(found.about["doubts"][len(case.doubts) :])
        return found


def surface(
    case: Case, grid: Grid, method: Method, bound: Bound | None = None, execution: Execution = ALONE, *, shared: bool = True
) -> Surface:  # fmt: skip
    """`evaluate` on checked inputs.  Doubts that follow from the numbers are added to those of the case.

    shared: also the shared certificates, where there is a bound and W' is shared.
    """
    if bound:
        rehearse_proof(case, grid, bound)
    proving, proven = partial(prove, case, grid, execution=execution), None
    if bound and method.alone:  # what is certified is not attacked
        proven = proving(bound=bound)
    cells: list[Cell] = []
    left: list[dict[str, float]] = []
    work = Work(case, grid, method, execution)
    try:
        cells = work.cells(None if bound is None or proven is None else (bound, proven.held))
        left = work.left(cells)
        if bound:
            proven = (proven or proving(bound=bound, attacked=cells)).under(cells)
    except SoundnessError as e:
        raise _saved(e, case, grid, method, cells, execution.log) from None
    finally:
        work.close()
    about = {
        **method.describe(grid.unit), **case.hashes, "clean_accuracy": case.clean_accuracy,
        "moved_at_largest_eps_w": moved_at(case.network, grid.largest),
        "passes": {"forward": sum(c.passes[0] for c in cells), "backward": sum(c.passes[1] for c in cells)},
        "dtype": str(case.x.dtype), "device": case.x.device.type,
        "doubts": [*case.doubts, *_doubts(case, grid, cells, proven), *_still(left)],
        **({"left": left} if left else {}),
    }  # fmt: skip
    if method.scope == "sample" and not method.attack.raw:
        cells = nested(cells, grid)
    found = Surface.from_cells(
        cells, grid.eps_x, grid.eps_w, scope=method.scope, attack=method.attack.name, model=case.name, about=about
    )
    if bound is None or proven is None:
        return found
    sharing = Sharing(case, grid, method, bound, proven, cells) if shared and method.scope != "sample" else None
    return replace(found, certified=proven.surface(case.doubts), shared=None if sharing is None else sharing.surface(execution))


def fill(case: Case, grid: Grid, method: Method, bound: Bound | None, execution: Execution) -> None:
    """The pieces of `surface` that are of `execution.shard`, into its log.

    Certificates of examples that lie in two parts are made for both where they come before the attack, and otherwise left to
    `surface` on the joined log; so are all certificates beside attacks that take no start, whose parts are whole cells.
    Raises InvalidInput where there are no parts, and what `surface` raises.
    """
    check_parts(method, execution.shard)
    groups = execution.mine(method.groups(case, grid.unit)) if method.nested else ()
    start, stop = (groups[0][0], groups[-1][1]) if groups else (0, 0)
    pieces, work, cells = pieces_of(len(case)), Work(case, grid, method, execution), list[Cell]()
    if bound:
        rehearse_proof(case, grid, bound)
    try:
        if bound is None or not method.alone:
            cells = _whole(work.pieces(None), grid, len(case))
        else:
            here = [s for s in pieces if s[0] < stop and s[1] > start]
            work.pieces((bound, prove(case, grid, bound, execution, spans=here).held))
            return
        inside = [s for s in pieces if start <= s[0] and s[1] <= stop]
        if bound is None or not inside:
            return
        proven = prove(case, grid, bound, execution, cells, inside).under(cells)
    except SoundnessError as e:
        raise _saved(e, case, grid, method, cells, execution.log) from None
    first, last = inside[0][0], inside[-1][1]
    rows = [(g, i) for g in groups if first <= g[0] and g[1] <= last for i in range(grid.shape[0])]
    for _ in Sharing(case, grid, method, bound, proven, cells).rows(rows, execution):
        pass


def _whole(pieces: Mapping[Span, Sequence[Cell]], grid: Grid, n: int) -> list[Cell]:
    """Cells of all n examples of which some pieces are known: other examples count as surviving, by any margin."""
    correct, margins = np.ones((*grid.shape, n), dtype=bool), np.full((*grid.shape, n), np.inf, dtype=np.float32)
    at = {radii: divmod(k, grid.shape[1]) for k, radii in enumerate(grid.points)}
    for span, cells in pieces.items():
        for cell in cells:
            here = (*at[cell.eps_x, cell.eps_w], slice(*span))
            correct[here] = cell.correct
            margins[here] = np.where(cell.correct, np.inf, -np.inf) if cell.margins is None else cell.margins
    return [Cell(*radii, correct[at[radii]], margins=margins[at[radii]]) for radii in grid.points]


def _doubts(case: Case, grid: Grid, cells: Sequence[Cell], proven: Proven | None) -> list[str]:
    """Doubts that follow from the numbers: gradients that the attack did not see, and rounding against certificates.

    Random search tries examples that are right at the largest input radius at which weights do not move, and not certified.
    """
    still = [c for c in cells if c.eps_w == 0 and c.eps_x > 0 and c.correct.any()]
    cell = max(still, key=lambda c: c.eps_x, default=None)
    left = np.zeros(len(case), dtype=bool) if cell is None else cell.correct.copy()
    if cell is not None and proven is not None:
        left &= ~proven.held[grid.eps_w.index(0), grid.eps_x.index(cell.eps_x)]
    survivors = torch.from_numpy(np.flatnonzero(left)).to(case.x.device)
    inputs = None if cell is None else grid.at((cell.eps_x, 0.0))
    return [*doubts_of_gradients(case, grid.largest, survivors, inputs), *(() if proven is None else proven.doubts)]


def _still(left: Sequence[dict[str, float]]) -> list[str]:
    """A doubt where a longer attack found more.  left: as `Work.left` says."""
    most = max(left, key=lambda one: one["points"], default=None)
    if most is None or not most["points"]:
        return []
    at = f"({most['eps_x']:g}, {most['eps_w']:g})"
    return [
        f"about {most['points']:.1f} points may still be to be had: so much lower a longer attack got at {at}, the most in a "
        f"sample of {len(left)} cells; --effort thorough spends more on all of them"
    ]


def moved_at(model: nn.Module, ball: JointBall) -> dict[str, dict[str, Any]]:
    """Name -> shape, radius, and the size of a typical weight (the median of |W|), of every tensor that moves."""
    params = {n: p.detach() for n, p in model.named_parameters()}
    return {
        n: {"shape": list(params[n].shape), "radius": told(r), "median": float(f"{params[n].float().abs().median().item():.4g}")}
        for n, r in ball.radii(params).items()
    }


def _saved(e: SoundnessError, case: Case, grid: Grid, method: Method, cells: Sequence[Cell], log: Path | None) -> SoundnessError:
    """The same error, with its case written beside the log: the example, and its perturbation, found again."""
    if log is None:
        return e
    inside = [c for c in cells if c.eps_x <= e.eps_x and c.eps_w <= e.eps_w and c.margins is not None]
    cell = min(inside, key=lambda c: float(np.asarray(c.margins)[e.example]), default=e)
    start, stop = next(span for span in method.groups(case, grid.unit) if span[0] <= e.example < span[1])
    part = case.part(slice(start, stop))
    point = method.at(part, grid.at((cell.eps_x, cell.eps_w)))
    k = e.example - start
    weights = {f"weights.{n}": w[k] if point.scope == "sample" else w for n, w in point.weights.items()}
    tensors = {"x": part.x[k], "y": part.y[k], "x_adv": point.x[k], **weights}
    path = log.with_name(f"violation-{e.example}.npz")
    arrays: dict[str, Any] = {n: t.detach().float().cpu().numpy() for n, t in tensors.items()}
    np.savez(path, **arrays)
    logits = logits_at(case.network, point)
    reached = worst_margin(margins(logits, part.y), part.y)[k].item()  # of what is saved
    return SoundnessError(e.example, e.eps_x, e.eps_w, e.certified, reached if reached < e.certified else e.attacked, str(path))
