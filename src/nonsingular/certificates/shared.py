"""shared.py - what is proven of many examples under one W' for all of them: one device (scope `dataset`).

Images that hold for every W' of their own are safe.  The margins of the others lie above linear functions of the one move of the
weights (bounds/planes.py), and one move can only take so many of these to 0 (bounds/counting.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nonsingular.bounds.alpha import affordable, ascent, raised_bounds, together
from nonsingular.bounds.counting import most_broken
from nonsingular.bounds.interval import Region, region
from nonsingular.bounds.linear import pieces
from nonsingular.bounds.patches import Choose
from nonsingular.bounds.planes import Heard, Planes, margins_heard, planes
from nonsingular.bounds.rounding import rounding
from nonsingular.certificates.certify import Prover, allowing, verified
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import products, recording
from nonsingular.network.graph import precise
from nonsingular.network.heads import classifier
from nonsingular.network.margins import is_correct
from nonsingular.network.network import Network
from nonsingular.network.precision import precision
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall, Scope

BATCH, STEPS = 64, 10
"""Examples whose slopes are moved together, at most; and steps of that."""
MOVING = ("best", "alpha-crown", "branch-and-bound", "exact")
"""Bounds that move slopes, or are dearer than those that do."""


@dataclass(frozen=True)
class SharedCertificate:
    """How many examples one W' of the ball can break, each with its own worst input against it (scope `dataset`).

    certified: (B,) no W' of the ball breaks it, not even one of its own.  lost: (B,) counted as broken: wrong undisturbed, or
    with a bound that is below 0 at the middle of the box of weights.  open: (B,) the others, of which not all can break at once.
    broken: no W' breaks more examples than this, those lost included.  deployed: as in `Certificate`.
    """

    certified: Tensor
    open: Tensor
    lost: Tensor
    broken: int
    bound: str
    scope: Scope = "dataset"
    deployed: str | None = None

    @property
    def accuracy(self) -> float:
        """Certified accuracy in [0, 1] where all examples share W': never below that of `certify`."""
        return (len(self.certified) - self.broken) / len(self.certified)


def certify_shared(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, bound: str = "best", steps: int | None = None,
    deployed: str | None = None,
) -> SharedCertificate:  # fmt: skip
    """Bounds from above how many examples one W' of the ball can break, where all of them share it.

    x: (B, *input) in ball.domain.  y: (B,).  model: in eval mode, of the operations in network/operators.py.
    bound: a sound bound of the catalog, for the examples that hold with a W' each.  steps: of ascent on the slopes of the others;
        None: STEPS where the bound moves slopes too, else 0.
    deployed: as in `certify`.
    Guarantee: for every W' of the ball and every x'_i of the ball around x_i, at most `broken` of the x'_i are misclassified, in
    exact arithmetic, or as computed in `deployed`; sums of the count itself are rounded outward.  Never below the accuracy that
    `bound` certifies.
    Raises UnsupportedModel, naming node and operation, without a rule, InvalidInput for a bound that is not sound.
    Cost: that of `bound`; of the examples left open `steps` times `crown` with gradients; then half a minute for each 2,000 of
    their open margins.  Memory: about 1 GB, however many examples.
    Source: Cantelli's inequality and a diagonal bound of a quadratic form over a box; proof: docs/certificates.
    """
    if steps is not None and steps < 0:
        raise InvalidInput(f"steps is {steps}; give 0 or more")
    model = classifier(model, x, ball)
    check_inputs(model, x, y, ball)
    lower = Prover(model, bound, deployed=deployed)(x, y.long(), ball)
    return counted(model, x, y.long(), ball, Known(bound, verified(lower, y.long()), lower > 0, deployed), steps)


@dataclass(frozen=True)
class Known:
    """What a bound proves of examples that have a W' each.

    safe: (B,) which hold.  margins: (B, K) which margins stay above 0, if that is known.
    """

    bound: str
    safe: Tensor
    margins: Tensor | None = None
    deployed: str | None = None


def counted(
    model: Network, x: Tensor, y: Tensor, ball: JointBall, known: Known, steps: int | None = None
) -> SharedCertificate:  # fmt: skip
    """`certify_shared` on checked inputs, where it is known which examples hold with a W' each."""
    safe = known.safe
    with torch.no_grad():
        wrong = ~is_correct(model(x.clone()), y)
    left = (~safe & ~wrong).nonzero().flatten()
    if not len(left):
        return SharedCertificate(safe, safe & False, ~safe, int((~safe).sum()), known.bound, deployed=known.deployed)
    given = (x.dtype, *(p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()))
    exact = allowing(precise(model, torch.float64), precision(known.deployed), given)
    steps = steps_of(known.bound) if steps is None else steps
    with products("highest"):
        found = _planes(exact, x[left].double(), y[left], ball.rounded(x.dtype), steps)
        if known.margins is not None:
            found = found[(~known.margins[left][found.example, found.other]).nonzero().flatten()]
        broken = most_broken(found)
    lost = ~safe & wrong
    lost[left[found.example[~(found.at_zero > 0)].unique()]] = True
    safe = safe.clone()
    safe[left[_absent(found, len(left))]] = True  # every margin of it is above 0 at all d
    total = math.floor(broken) + int(wrong.sum())
    return SharedCertificate(
        safe, ~safe & ~lost, lost, min(total, int((~safe).sum())), known.bound, deployed=known.deployed
    )  # fmt: skip


def steps_of(bound: str) -> int:
    """Steps of ascent on slopes that go with a bound: none with one that moves no slopes itself."""
    return STEPS if bound in MOVING else 0


def _absent(found: Planes, count: int) -> Tensor:
    """The examples of `count` that have no plane left."""
    return (torch.bincount(found.example, minlength=count) == 0).nonzero().flatten()


def _planes(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, steps: int) -> Planes:
    """The planes of the margins that some W' may bring to 0, each with the best slopes of the ascent; lowered by rounding."""
    with recording():
        whole = region(model, x, y, ball)
        parts, done = list[Planes](), 0
        for part, labels in pieces(whole, y, together(whole, BATCH)):
            off = rounding(part, torch.float64).detach()
            found = _steepest(part, labels, steps)
            parts.append(replace(found, example=found.example + done, at_zero=found.at_zero - off[found.example]))
            done += len(labels)
    return Planes.join(parts)


def _steepest(where: Region, y: Tensor, steps: int) -> Planes:
    """The plane, of each margin not above 0 everywhere, with the largest at_zero / |fall|_2 on the way of the slopes."""
    K = where.graph.nodes[-1].shape[0]
    boxes, (example, other) = raised_bounds(where, affordable(where, steps)), _pairs(y, K)

    def evaluate(choose: Choose) -> tuple[Tensor, Heard]:
        heard = margins_heard(where, boxes, y, choose)
        return heard.low.sum(), heard

    low = best = score = None
    for heard in ascent(where, K, evaluate, steps, 0.5):
        with torch.no_grad():
            heard = _still(heard)
            now = planes(heard, example, other)
            low = heard.low if low is None else torch.fmax(low, heard.low)
            new = now.at_zero / now.spread().clamp(min=1e-300)
            if best is None or score is None:
                best, score = now, new
            else:
                take = new > score
                best, score = best.where(~take, now), torch.where(take, new, score)
    assert low is not None and best is not None
    return best[(~(low[other, example] > 0)).nonzero().flatten()]


def _pairs(y: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """(example, other class) of every margin."""
    example, other = (torch.arange(K, device=y.device) != y[:, None]).nonzero().unbind(1)
    return example, other


def _still(heard: Heard) -> Heard:
    """The same without gradients."""
    return replace(heard, low=heard.low.detach(), at={i: A.detach() for i, A in heard.at.items()})
