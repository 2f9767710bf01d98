"""preflight.py - before a long run: how long it takes, within which range, how much memory, what moves, what can be certified."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nonsingular.evaluation.attacked import moved_at
from nonsingular.evaluation.clock import SOFT, Clock, Seen, memory_of, peak_memory, probed_certificates, timed
from nonsingular.evaluation.estimate import QUICK, Plan, Preflight
from nonsingular.evaluation.problem import Case
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall

LOOKED = 3.0
"""Seconds for the clean accuracy; if they do not suffice for all examples, it is that of a sample."""


def looked_at(case: Case, unit: JointBall, seconds: float = LOOKED) -> Tensor:
    """The numbers of the examples that the model can run within `seconds`: all of them, or a sample drawn with seed 0.

    Raises what `check_inputs` raises.
    """
    model, x, y = case.network, case.x, case.y
    check_inputs(model, x[:1], y[:1], unit)
    n, took = 1, 0.0
    while n < len(x) and took < seconds / 10:
        n = min(len(x), 4 * n)
        took = timed(partial(check_inputs, model, x[:n], y[:n], unit))
    n = max(1, int(n * seconds / took)) if took else n
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]
    return chosen.sort().values.to(x.device)


def preflight(plan: Plan, seen: Tensor, doubts: Sequence[str], *, seconds: float = SOFT, patient: bool = False) -> Preflight:
    """The last of `preflights`."""
    *_, last = preflights(plan, seen, doubts, seconds=seconds, patient=patient)
    return last


def preflights(
    plan: Plan, seen: Tensor, doubts: Sequence[str], *, seconds: float = SOFT, patient: bool = False
) -> Iterator[Preflight]:  # fmt: skip
    """Estimates of the run: the first without a time, then with better and better ones.

    seen: numbers of the examples on which the clean accuracy is taken, as `looked_at` gives them.
    seconds: after which no new piece of work begins.  patient: begins a piece even if it may take longer than that; for callers
        that end the process in time.  `unfinished` then names the piece.
    Raises what the run itself would raise.  Cost: `seconds`, and what the smallest piece (one example at one point) takes longer.
    """
    started, looked = time.perf_counter(), plan.case.part(seen)
    clean = looked.clean_accuracy
    passing = (time.perf_counter() - started) / len(seen)
    moved = moved_at(plan.case.network, plan.grid.largest)
    fixed = tuple(n for n, _ in plan.case.network.named_parameters() if n not in moved)
    told = Preflight(
        len(plan.case), len(plan.grid.points), plan.workers, clean, len(seen), tuple(doubts), moved, fixed,
        plan.workers * peak_memory(),
    )  # fmt: skip
    yield told
    pool = seen[looked.right] if plan.own and looked.right.any() else seen
    clock = Clock(plan, pool, Seen(clean if plan.own else 1.0, passing), started + seconds, patient)
    cheap = len(QUICK) - 3

    def tried(told: Preflight, bounds: Sequence[str]) -> Iterator[Preflight]:
        for bound, why in probed_certificates(plan, clock, bounds):
            certifies, untried = {**told.certifies, bound: why}, tuple(b for b in told.untried if b != bound)
            told = replace(told, certifies=certifies, untried=untried)
            yield told

    for better in tried(told, QUICK[:cheap]):
        told = better
        yield told
    for found in clock.estimates():
        told = replace(told, memory=memory_of(plan), **found)
        yield told
    yield from tried(told, QUICK[cheap:])
