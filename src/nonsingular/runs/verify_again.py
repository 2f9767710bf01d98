"""verify_again.py - survivors of a finished run attacked again, and its certificates proven again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from random import SystemRandom
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonsingular.certificates.certify import Prover, verified
from nonsingular.certificates.shared import Known, counted
from nonsingular.evaluation.execution import ALONE
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import attained, is_correct
from nonsingular.results.statistics import wilson
from nonsingular.results.surface import RESULTS, Surface
from nonsingular.runs.evaluate import front_dict
from nonsingular.runs.jobs import Attacked, Certified
from nonsingular.runs.verification import TOLERANCE, Verification

TOO_MANY = 1
"""How many more examples a count may come to on another machine: it is rounded down to a whole number."""


def attack_survivors(job: Attacked, again: Surface, found: Verification, attacks: int) -> None:
    """Attacks some uncertified survivors from nothing.  Honest runs began from smaller balls and found more."""
    assert again.outcomes is not None
    held = None if again.certified is None else again.certified.outcomes
    said = again.outcomes if held is None else again.outcomes & ~held
    total = int(said.sum())
    if not total:
        return
    shared = job.method.scope != "sample"
    tried, broken = (_attacked_cells if shared else _attacked_examples)(
        job, again.outcomes if shared else said, min(attacks, total)
    )
    text = f"{broken} of {tried} examples that count as surviving break under {job.method.attack.name}, run again"
    if broken > max(1, tried // 2) or (shared and broken):
        found.wrong.append(f"{text}: what {RESULTS} says survives was not attacked like this")
    elif tried:
        (found.open if broken else found.confirmed).append(text)
    found.open.append(
        f"{total} pairs (example, cell) survive without a certificate: the attack found nothing, and another one may; "
        f"{'a few were' if tried else 'none was'} attacked again (--attack-again)"
    )


def _attacked_examples(job: Attacked, said: NDArray[np.bool_], attacks: int) -> tuple[int, int]:
    """(tried, broken): random examples, each in the largest ball where it survives."""
    size = np.add.outer(*map(np.arange, job.grid.shape))[:, :, None] * said
    some = np.flatnonzero(size.any((0, 1)))
    chosen = SystemRandom().sample(some.tolist(), min(attacks, len(some)))
    at: dict[tuple[int, int], list[int]] = {}
    for k in chosen:
        i, j = np.unravel_index(int(size[:, :, k].argmax()), size.shape[:2])
        at.setdefault((int(i), int(j)), []).append(k)
    broken = 0
    for (i, j), here in at.items():
        some, ball = job.case.part(torch.tensor(here)), job.grid.ball(i, j)
        point = job.method.at(some, ball).check(some.network, some.x, ball)
        broken += int((attained(logits_at(some.network, point), some.y) < -TOLERANCE).sum())
    return len(chosen), broken


def _attacked_cells(job: Attacked, outcomes: NDArray[np.bool_], attacks: int) -> tuple[int, int]:
    """(tried, broken): one group, in its largest ball and in a random one; broken: how many fewer are right, beyond noise."""
    start, stop = SystemRandom().choice(job.method.groups(job.case, job.grid.unit))
    group, (rows, columns) = job.case.part(slice(start, stop)), job.grid.shape
    cells = [(i, j) for i in range(rows) for j in range(columns) if any(job.grid.radii(i, j))]
    tried = broken = 0
    for i, j in {cells[-1], SystemRandom().choice(cells)} if attacks and cells else ():
        ball = job.grid.ball(i, j)
        point = job.method.at(group, ball)
        right = int(is_correct(logits_at(group.network, point.check(group.network, group.x, ball)), group.y).sum())
        low, high = wilson(right, stop - start)
        fewer = int(outcomes[i, j, start:stop].sum()) - right
        tried += stop - start
        broken += fewer if fewer > max(1.0, (stop - start) * float(high - low)) else 0
    return tried, broken


def prove_again(job: Attacked | Certified, held: NDArray[np.bool_], found: Verification, recompute: int | None) -> None:
    """Proves some certificates again: each pair in its cell, or in the largest ball in which the run certifies it."""
    pairs = np.argwhere(held)
    if not len(pairs):
        return
    if recompute is not None and recompute < len(pairs):
        pairs = pairs[SystemRandom().sample(range(len(pairs)), recompute)]
    total = int(held.sum())
    assert job.bound is not None  # something is certified
    prove = Prover(job.case.network, job.bound.name, deployed=job.case.deployed)
    right = job.case.right.cpu().numpy()
    failed: list[str] = []
    for i, j in np.unique(pairs[:, :2], axis=0):
        todo = pairs[(pairs[:, 0] == i) & (pairs[:, 1] == j)][:, 2]
        for a, b in [(int(i), int(j)), *_larger(held, int(i), int(j))]:
            here = np.array([k for k in todo if held[a, b, k]], dtype=np.int64)
            if len(here):
                some = job.case.part(torch.from_numpy(here))
                good = verified(prove(some.x, some.y, job.grid.ball(a, b)), some.y).cpu().numpy() & right[here]
                todo = np.setdiff1d(todo, here[good])
        if len(todo):
            eps_x, eps_w = job.grid.radii(i, j)
            failed.append(
                f"at (eps_x, eps_w) = ({eps_x:g}, {eps_w:g}) the bound does not certify "
                f"{', '.join(map(str, todo[:5]))}{' ...' if len(todo) > 5 else ''}"
            )
    found.judge(failed, f"{len(pairs)} of {total} certified pairs (example, cell) are proven again")
    if len(pairs) < total:
        found.open.append(f"{total - len(pairs)} certified pairs were not proven again (--recompute-certificates all)")


def _larger(held: NDArray[np.bool_], i: int, j: int) -> Iterator[tuple[int, int]]:
    """Cells with larger radii at which something is certified."""
    return ((int(a) + i, int(b) + j) for a, b in np.argwhere(held[i:, j:].any(2)) if (a, b) != (0, 0))


def count_again(job: Attacked, again: Surface, found: Verification, recompute: int | None) -> None:
    """Counts again how many examples one W' can break, in cells where the run says that fewer can than are not certified.

    recompute: 0 for none, None for all, else one.  Each cell is counted where it is, or in a larger ball that has its number.
    """
    assert again.shared is not None and again.certified is not None
    assert again.certified.outcomes is not None and job.bound is not None
    said, alone, held = again.shared.broken, again.certified.broken, again.certified.outcomes
    gained = np.argwhere(said < alone)
    cells = gained if recompute is None or not len(gained) else gained[[SystemRandom().randrange(len(gained))]][:recompute]
    failed: list[str] = []
    for i, j in cells:
        enough = said[i, j] + TOO_MANY
        counts = (_counts(job, held, int(a) + i, int(b) + j) for a, b in np.argwhere(said[i:, j:] < alone[i:, j:]))
        if not any(fewest.sum() <= enough for fewest in accumulate(counts, np.minimum)):
            eps_x, eps_w = job.grid.radii(int(i), int(j))
            failed.append(f"at (eps_x, eps_w) = ({eps_x:g}, {eps_w:g}) one W' may break more than {said[i, j]} examples")
    if len(cells):
        found.judge(failed, f"{len(cells)} of {len(gained)} cells of shared certificates are counted again")
    if len(cells) < len(gained):
        found.open.append(f"{len(gained) - len(cells)} shared certificates were not counted again (--recompute-certificates all)")


def _counts(job: Attacked, held: NDArray[np.bool_], i: int, j: int) -> NDArray[np.int64]:
    """(groups,) how many examples that share W' can break in a cell."""
    assert job.bound is not None
    broken: list[int] = []
    for start, stop in job.method.groups(job.case, job.grid.unit):
        part, safe = job.case.part(slice(start, stop)), torch.from_numpy(held[i, j, start:stop].copy())
        known = Known(job.bound.name, safe, deployed=job.case.deployed)
        broken.append(counted(part.network, part.x, part.y, job.grid.ball(i, j), known).broken)
    return np.array(broken)


def prove_fronts(job: Certified, said: Any, found: Verification, recompute: int | None) -> None:
    """Every front computed again, or its shares certified again at one input radius."""
    if recompute is None:
        front = job.front(ALONE)
        again = [front_dict(front, share) for share in job.settings.accuracy]
        found.judge([] if said == again else [f"{RESULTS}: fronts are not those computed again"], "fronts of certified radii")
        return
    wrong = [] if [f["accuracy"] for f in said] == list(job.settings.accuracy) else [f"{RESULTS}: fronts are of other shares"]
    case, prove = job.case, Prover(job.case.network, job.bound.name, deployed=job.case.deployed)
    for front in said if recompute else ():
        radii = [(c, r) for c, r in zip(front["eps_x"], front["eps_w"], strict=True) if r is not None]
        if tuple(front["eps_x"]) != job.grid.eps_x:
            wrong.append(f"{RESULTS}: a front is at other input radii than the grid")
        elif radii:
            eps_x, eps_w = SystemRandom().choice(radii)
            lower = prove(case.x, case.y, job.grid.at((eps_x, eps_w)))
            share = verified(lower, case.y).double().mean().item()
            if share < front["accuracy"] - 1e-9:
                wrong.append(
                    f"{RESULTS}: fronts say {front['accuracy']:g} at ({eps_x:g}, {eps_w:g}), where {share:g} is certified"
                )
    found.judge(wrong, f"fronts of certified radii, {'each at one input radius' if recompute else 'by their form alone'}")
    found.open.append("fronts at the other input radii, and that no larger radius is certified (--recompute-certificates all)")
