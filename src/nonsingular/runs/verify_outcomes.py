"""verify_outcomes.py - outcomes and margins of a finished run, compared with its log and its stored perturbations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonsingular.errors import InvalidInput
from nonsingular.evaluation.stored import FOLDER, Against, Found, read_found
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import attained
from nonsingular.results.files import Log
from nonsingular.results.surface import EVENTS, RESULTS, Cell, Surface
from nonsingular.runs.jobs import Attacked
from nonsingular.runs.verification import TOLERANCE, Verification
from nonsingular.threat.grid import Radii


def check_perturbations(job: Attacked, run: Path, again: Surface, found: Verification) -> None:
    """Checks that the stored tensors break exactly the lost examples, cell by cell."""
    method = job.method
    assert again.outcomes is not None
    stored = stored_perturbations(job, run / FOLDER)
    total = sum(len(numbers) for several in stored.values() for _, numbers, _ in several)
    wrong_at_x = ~job.case.right.cpu().numpy()
    off = [r for r in stored if r not in job.grid.points]
    lost_somewhere = bool((~again.outcomes & ~wrong_at_x).any())
    if not stored and lost_somewhere:
        found.wrong.append(f"{FOLDER} is missing: nothing shows that the examples that count as lost are")
        return
    lost = lost_to(stored, job, run / EVENTS)
    differ = [f"a stored perturbation lies at {r}, which is not a point of the grid" for r in off]
    undecided = 0
    for i, eps_w in enumerate(job.grid.eps_w):
        for j, eps_x in enumerate(job.grid.eps_x):
            odd = np.flatnonzero(lost[i, j] != ~again.outcomes[i, j])
            near = _near(odd, stored)
            undecided += len(near)
            odd = np.setdiff1d(odd, near)
            if len(odd):
                differ.append(
                    f"at (eps_x, eps_w) = ({eps_x:g}, {eps_w:g}) the stored perturbations break other examples than "
                    f"{RESULTS} says: {', '.join(map(str, odd[:5]))}{' ...' if len(odd) > 5 else ''}"
                )
    if method.scope != "sample" and method.nested:
        differ += _weaker(job, again.outcomes, stored)
    found.judge(differ, f"{total} stored perturbations lie in their balls and break exactly the examples that count as lost")
    found.judge(check_margins(job, run / EVENTS, stored), "their margins are those of the log")
    if undecided:
        found.open.append(f"{undecided} outcomes have margins within rounding of 0 and are decided by the last bits of a machine")
    if method.scope == "sample":
        found.open.append("margins of examples that survive: their perturbations are not kept")


def _fits(one: Found, job: Attacked, path: Path) -> None:
    """Raises InvalidInput for tensors that do not fit the data or the model."""
    n, rows = len(job.case), one.rows
    good = (
        rows.dtype == torch.int64 and rows.dim() == 1 and bool(((rows >= 0) & (rows < n)).all()) and one.scope == job.method.scope
        and "x" in one.tensors and one.tensors["x"].shape == (len(rows), *job.case.x.shape[1:])
        and one.tensors["x"].dtype == job.case.x.dtype and all(map(math.isfinite, one.radii)) and min(one.radii) >= 0
    )  # fmt: skip
    if not good:
        raise InvalidInput(f"{path} holds perturbations that do not fit this data or this scope")


def _margins(one: Found, job: Attacked, chunk: int = 64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of its examples and the margins that the model attains there.  Raises InvalidInput outside its ball."""
    case, grid = job.case, job.grid
    margins: list[torch.Tensor] = []
    for some in torch.arange(len(one.rows)).split(chunk if one.scope == "sample" else max(1, len(one.rows))):
        part = one.part(some)
        try:
            point = part.point(case.network, grid.unit).check(case.network, case.x[part.rows], grid.at(one.radii))
            margins.append(attained(logits_at(case.network, point), case.y[part.rows]))
        except (AssertionError, RuntimeError, KeyError, IndexError) as e:
            raise InvalidInput(f"a stored perturbation is not within ({one.radii[0]:g}, {one.radii[1]:g}): {e}") from None
    joined = torch.cat(margins) if margins else torch.zeros(0)
    return one.rows.numpy(), joined.double().cpu().numpy()


Replayed = Mapping[Radii, Sequence[tuple[Found, NDArray[np.int64], NDArray[np.float64]]]]


def stored_perturbations(job: Attacked, folder: Path) -> Replayed:
    """Radii -> what was found there, the numbers of its examples, and the margins that the model attains at it now.

    Raises InvalidInput for damaged files, for tensors of other shapes, and for what lies outside its ball.
    """
    stored: dict[Radii, list[tuple[Found, NDArray[np.int64], NDArray[np.float64]]]] = {}
    against = Against.of(job.case, job.grid)
    for path in sorted(folder.glob("*.safetensors")):
        for one in read_found(path, against):
            _fits(one, job, path)
            stored.setdefault(one.radii, []).append((one, *_margins(one, job)))
    return stored


def lost_to(stored: Replayed, job: Attacked, log: Path) -> NDArray[np.bool_]:
    """(rows, columns, n) which examples the stored perturbations break, by the rule of the scope.

    sample: an example that is broken in a ball is broken in every larger one.  batch, dataset, and attacks that take no start:
    what the perturbation breaks that the log names for a group and a cell.
    """
    n, grid = len(job.case), job.grid
    lost = np.zeros((*grid.shape, n), dtype=bool)
    if job.method.alone:
        lost |= ~job.case.right.cpu().numpy()
    broken: dict[Radii, NDArray[np.bool_]] = {}
    for radii, several in stored.items():
        at = broken.setdefault(radii, np.zeros(n, dtype=bool))
        for _, numbers, margins in several:
            at[numbers[~(margins > 0)]] = True
    if job.method.alone:
        for radii, at in broken.items():
            within = np.logical_and.outer(np.array(grid.eps_w) >= radii[1], np.array(grid.eps_x) >= radii[0])
            lost |= within[:, :, None] & at
        return lost
    for span, cell in _cells(job, log):
        origin, group = cell.origin or (cell.eps_x, cell.eps_w), slice(*span)
        if origin in broken and (cell.eps_x, cell.eps_w) in grid.points:
            lost[grid.eps_w.index(cell.eps_w), grid.eps_x.index(cell.eps_x), group] |= broken[origin][group]
    if job.method.scope == "sample" and not job.method.attack.raw:
        np.logical_or.accumulate(lost, axis=0, out=lost)
        np.logical_or.accumulate(lost, axis=1, out=lost)
    return lost


def _weaker(job: Attacked, outcomes: NDArray[np.bool_], stored: Replayed) -> list[str]:
    """Cells where one W' for a group, stored for a ball within, leaves fewer right than the run counts there."""
    grid, groups, wrong = job.grid, job.method.groups(job.case, job.grid.unit), set[Radii]()
    for radii, several in stored.items():
        for _, numbers, margins in several:
            if not len(numbers):
                continue
            start, stop = next(g for g in groups if g[0] <= int(numbers[0]) < g[1])
            broken = int((margins <= -TOLERANCE / 100).sum())
            for i, j in np.argwhere(np.logical_and.outer(np.array(grid.eps_w) >= radii[1], np.array(grid.eps_x) >= radii[0])):
                if broken > int((~outcomes[i, j, start:stop]).sum()):
                    wrong.add(grid.radii(i, j))
    return [
        f"at (eps_x, eps_w) = ({c:g}, {r:g}) a stored perturbation leaves fewer right than {RESULTS} says"
        for c, r in sorted(wrong)
    ]


def _cells(job: Attacked, log: Path) -> Iterator[tuple[tuple[int, int], Cell]]:
    """The cells of the log that count, group by group; of a cell that was written twice, the last."""
    key = job.method.key(job.case, job.grid.unit)
    latest: dict[tuple[tuple[int, int], Radii], Cell] = {}
    for entry in Log(log):
        for cell in map(Cell.from_dict, entry.get("cells", ()) if entry.get("key") == key else ()):
            span = (int(entry["span"][0]), int(entry["span"][1]))
            latest[span, (cell.eps_x, cell.eps_w)] = cell
    for (span, _), cell in latest.items():
        yield span, cell


def _near(odd: NDArray[Any], stored: Replayed) -> NDArray[Any]:
    """Those of these examples that a stored margin within rounding of 0 decides."""
    found = (pair for several in stored.values() for _, *pair in several)
    close = {int(k) for numbers, margins in found for k in numbers[np.abs(margins) <= TOLERANCE / 100]}
    return np.array([k for k in odd if int(k) in close], dtype=odd.dtype)


def check_margins(job: Attacked, log: Path, stored: Replayed) -> list[str]:
    """Margins of the log that differ from those of the perturbations stored for the same ball."""
    wrong: list[str] = []
    for span, cell in _cells(job, log):
        if cell.margins is None or (cell.origin or (cell.eps_x, cell.eps_w)) != (cell.eps_x, cell.eps_w):
            continue
        for _, numbers, margins in stored.get((cell.eps_x, cell.eps_w), ()):
            inside = (numbers >= span[0]) & (numbers < span[1])
            said = cell.margins[numbers[inside] - span[0]].astype(float)
            apart = np.abs(said - margins[inside]) > TOLERANCE * (1 + np.abs(margins[inside]))
            if apart.any():
                at = f"example {numbers[inside][apart][0]} at ({cell.eps_x:g}, {cell.eps_w:g})"
                wrong.append(f"{EVENTS}: the margin of {at} is not that of its perturbation")
    return wrong
