"""descent.py - minimises the margin of each example over the unknowns of a Space: many starts, adaptive steps, single moves.

- With its pattern of active neurons fixed the margin is linear in each single unknown, so it is smallest at an end of each.
- What the gradient misses is a neuron that should change sides, with all that follows from it: a jump to the other end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from nonsingular.attacks.search.unknowns import Loss, Space
from nonsingular.errors import InvalidInput

FLIPS = 16
"""Groups whose other end is tried in a round: those whose flip costs least to first order."""
MOVES = 4
"""Successive moves of all unknowns to the end that the gradient points to."""
MOMENTUM = 0.75
"""Weight of the new step, against the last one.  arXiv:2003.01690, section 3."""
AT_ONCE = 2**21
"""Unknowns that are moved at a time: 8 MB a tensor in float32, so that the passes stay in the cache.

No knob: random starts are drawn for a piece, so that another size would give other bits.
"""


@dataclass(frozen=True)
class Budget:
    """The budget of a search.

    steps: of each run.  restarts: random starts.  targets: nearest classes that get a run each.  keep: runs that go on; with 0
    only the first runs are made.  rounds: of the local search.  verdict: stop with an example once its prediction has changed.
    """

    steps: int
    restarts: int
    targets: int
    keep: int
    rounds: int
    verdict: bool

    def __post_init__(self) -> None:
        given = (self.steps, self.restarts, self.targets, self.keep, self.rounds)
        if any(n < least for n, least in zip(given, (1, 0, 0, 0, 0), strict=True)):
            raise InvalidInput(
                f"steps, restarts, targets, keep, rounds are {', '.join(map(str, given))}; give at least 1, 0, 0, 0 and 0"
            )

    def open(self, margin: Tensor) -> Tensor:
        """The examples that the search goes on with."""
        return (margin >= 0).nonzero().flatten() if self.verdict else torch.arange(len(margin), device=margin.device)


def search(space: Space, starts: Tensor, budget: Budget, generator: Generator) -> Tensor:
    """(B, n) the best point of each example.  starts: (S, B, n) points to begin from beside the origin; S may be 0.

    First come runs on the cross-entropy from the origin and on the margin from each of `starts`, and moves to the ends.  Then
    runs on the margin, to single classes from the origin and to the runner-up from random points (fewer by S); the best `keep`
    of these and of the first go on.
    """
    v = space.origin.clone()
    margin = v.new_full((len(v),), torch.inf)
    if not v.shape[1]:
        return v

    def as_given(at: Tensor) -> Tensor:
        return torch.cat([v[at][None], starts[:, at]])

    def begin(at: Tensor) -> Tensor:
        part, found = space.part(at), list[Tensor]()
        for some in torch.cat([part.origin[None], starts[:, at]]).split(_runs(part)):
            runs, _ = _descend(part, some, _nearest if found else _opening, budget.steps)
            found.append(_to_the_ends(part, runs, _nearest(part.margins(runs)))[0])
        return torch.cat(found)

    def go_on(at: Tensor) -> Tensor:
        part, before, best = space.part(at), v[at][None], v[at][None]
        few, lowest = part.coarse(), margin[at][None]
        kept, reached = _many(few, lowest, budget, budget.restarts - len(starts), generator)
        reached = torch.cat([lowest, reached])
        for some in reached.topk(min(budget.keep, len(reached)), 0, largest=False).indices.split(_runs(part)):
            if not len(budget.open(lowest[0])):
                break
            points = few.refined(_rows(kept, (some - 1).clamp(min=0))) if len(kept) else before
            polished = _polish(part, torch.where(some[..., None] == 0, before, points), budget)
            best, lowest = _better(best, lowest, polished, _nearest(part.margins(polished)))
        return best

    first, later = 1 + len(starts), 1 + budget.targets + budget.restarts
    for stage, runs in ((as_given, first), (begin, first), (go_on, later))[: 3 if budget.keep else 2]:
        for at in _chunks(budget.open(margin), runs * space.row):
            tried = stage(at)
            reached, which = _nearest(space.part(at).margins(tried)).min(0, keepdim=True)
            lower = reached[0] < margin[at]
            into = at[lower]
            v[into], margin[into] = _rows(tried, which)[0][lower], reached[0][lower]
    return v


def _many(space: Space, margin: Tensor, budget: Budget, restarts: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The best `keep` runs (R, B, n) to single classes and from random points, and their margins (R, B).

    margin: (1, B) what is reached already; with a verdict no more runs begin where all examples are broken.
    """
    clean = space.margins(space.origin[None])[0]
    targets = clean.topk(min(budget.targets, clean.shape[1] - 1), 1, largest=False).indices.T[..., None]  # (T, B, 1)
    kept, reached, size = space.origin[None][:0], margin[:0], max(1, AT_ONCE // space.row)
    left = len(targets) + max(0, restarts)
    for own in (targets[k : k + size] for k in range(0, left, size)):  # all at once, if one example has few unknowns
        if not len(budget.open(torch.cat([margin, reached]).amin(0))):
            break
        fresh = _random(space, min(left, size) - len(own), generator)
        left -= len(own) + len(fresh)
        runs = torch.cat([space.origin.expand(len(own), -1, -1), fresh])
        runs, _ = _descend(space, runs, partial(_towards, targets=own), budget.steps)
        kept, reached = _lowest(space, torch.cat([kept, runs]), budget.keep)
    return kept, reached


def _chunks(examples: Tensor, unknowns: int) -> Iterator[Tensor]:
    """Split `examples`, so that a part has about AT_ONCE numbers.  unknowns: of one example, in all runs together."""
    return (at for at in examples.split(max(1, AT_ONCE // unknowns)) if len(at))


def _runs(space: Space) -> int:
    """Runs of these examples that are at work at a time: all, unless one example alone has too many unknowns."""
    return max(1, AT_ONCE // (space.row * len(space.y)))


# --- losses ---------------------------------------------------------------------------------------------------------------


def _nearest(m: Tensor) -> Tensor:
    """The margin to the runner-up."""
    return m.amin(-1)


def _entropy(m: Tensor) -> Tensor:
    """-log sum_j exp(-m_j), j != y: cross-entropy is log(1 + exp(-this)), so its gradient has this direction, and never fades."""
    return -torch.logsumexp(-m, -1)


def _opening(m: Tensor) -> Tensor:
    """Cross-entropy in the first run, the margin in the others."""
    return torch.cat([_entropy(m[:1]), _nearest(m[1:])])


def _towards(m: Tensor, targets: Tensor) -> Tensor:
    """The margin to a class of its own in each of the first runs, targets (T, B, 1), and to the runner-up in the others."""
    return torch.cat([m[: len(targets)].gather(2, targets)[..., 0], _nearest(m[len(targets) :])])


# --- steps ----------------------------------------------------------------------------------------------------------------


def _random(space: Space, count: int, generator: Generator) -> Tensor:
    """(count, B, n) points of [-1, 1]^n: uniform, but every other one a corner, with one end for each group."""
    like = space.origin
    v = 2 * torch.rand(count, *like.shape, generator=generator, dtype=like.dtype, device=like.device) - 1
    v[::2] = torch.where(v[::2] < 0, -1.0, 1.0)[..., _speakers(space.groups)]
    return v


def _speakers(groups: Tensor) -> Tensor:
    """(n,) the first column of each column's group; the column itself where it has none."""
    own = torch.arange(len(groups), device=groups.device)
    first = own.new_full((int(groups.max()) + 2,), len(groups)).scatter_reduce(0, groups.long() + 1, own, "amin")
    return torch.where(groups < 0, own, first[groups + 1])


def _rows(v: Tensor, index: Tensor) -> Tensor:
    """v[index[k, b], b] of v (R, B, n)."""
    return v.gather(0, index[..., None].expand(-1, -1, v.shape[2]))


def _checkpoints(steps: int) -> list[int]:
    """Steps after which step sizes are reviewed.  arXiv:2003.01690, section 3."""
    before, now, found = 0.0, 0.22, list[int]()
    while now <= 1:
        found.append(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return found


def _descend(space: Space, v: Tensor, loss: Loss, steps: int) -> tuple[Tensor, Tensor]:
    """Signed steps on a loss with momentum, from v (R, B, n); the point of each run with the smallest loss, and that.

    Inputs and weights have separate step sizes, at first half the width of the box.  At a checkpoint one is halved where more
    than a quarter of its steps went too far (the new gradient points back), and both are halved where the loss did not improve;
    such a run goes on from its best point.
    """
    blocks, v = space.blocks, v.clone()
    before = v
    value, g = space.slope(v, loss)
    best, best_v, best_sign = value.clone(), v.clone(), g.sign_().clone()
    size = v.new_ones(len(blocks), *value.shape, 1)
    good = torch.zeros_like(size)
    last, won, halved = 0, value, torch.ones_like(value, dtype=torch.bool)
    review = _checkpoints(steps)
    for i in range(1, steps + 1):
        moved = v.clone()
        for k, block in enumerate(blocks):
            moved[..., block].addcmul_(size[k], g[..., block], value=-1)  # g holds signs here
        moved.clamp_(-1, 1)
        if i > 1:  # v + a (moved - v) + (1 - a) (v - before)
            moved.mul_(MOMENTUM).add_(v, alpha=2 - 2 * MOMENTUM).sub_(before, alpha=1 - MOMENTUM).clamp_(-1, 1)
        before, v = v, moved
        value, g = space.slope(v, loss)
        along = (v - before).mul_(g)
        for k, block in enumerate(blocks):
            good[k] += along[..., block].sum(-1, keepdim=True) <= 0
        g.sign_()
        lower = value < best
        torch.where(lower, value, best, out=best)
        for t, kept in ((v, best_v), (g, best_sign)):
            torch.where(lower[..., None], t, kept, out=kept)
        if i in review and i < steps:
            stuck = (best >= won) & ~halved
            less = (good < 0.75 * (i - last)) | stuck[..., None]
            size = torch.where(less, size / 2, size)
            halved, won, last = less.any(0)[..., 0], best.clone(), i
            good.zero_()
            for t, kept in ((before, best_v), (v, best_v), (g, best_sign)):
                t[halved] = kept[halved]
    return best_v, best


# --- the local search -----------------------------------------------------------------------------------------------------


def _lowest(space: Space, v: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count, B, n) those of v (R, B, n) with the smallest margins, and these (count, B); all, if there are fewer."""
    margin, which = _nearest(space.margins(v)).topk(min(count, len(v)), 0, largest=False)
    return _rows(v, which), margin


def _polish(space: Space, v: Tensor, budget: Budget) -> Tensor:
    """(1, B, n) the best point after v (R, B, n) went on: steps on the margin, then flips and moves to the ends."""
    margin = _nearest(space.margins(v))
    found = v[0].clone()
    todo = torch.arange(len(found), device=v.device)
    for step in range(1 + budget.rounds):
        still = budget.open(margin.amin(0))
        found[todo] = _rows(v, margin.argmin(0, keepdim=True))[0]
        todo, space, v, margin = todo[still], space.part(still), v[:, still], margin[:, still]
        if not len(todo):
            return found[None]
        if step:
            v, margin = _flip(space, v, margin)
        else:
            v, margin = _descend(space, v, _nearest, budget.steps)
        v, margin = _to_the_ends(space, v, margin)
    found[todo] = _rows(v, margin.argmin(0, keepdim=True))[0]
    return found[None]


def _to_the_ends(space: Space, v: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """The best of v (R, B, n) and MOVES moves of all unknowns to the end that the gradient points to."""
    moved = v
    for _ in range(MOVES):
        reached, g = space.slope(moved, _nearest)
        v, margin = _better(v, margin, moved, reached)
        moved = torch.where(g == 0, moved, -g.sign_())
    return _better(v, margin, moved, _nearest(space.margins(moved)))


def _flip(space: Space, v: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """The best of v (R, B, n) and the same with one of FLIPS groups at its other end."""
    groups = int(space.groups.max()) + 1
    if not groups:
        return v, margin
    _, g = space.slope(v, _nearest)
    cost = g.new_zeros(*margin.shape, groups + 1).index_add_(2, space.groups + 1, g.abs_())[..., 1:]
    chosen = cost.topk(min(FLIPS, groups), -1, largest=False).indices.permute(2, 0, 1)[..., None]  # (count, R, B, 1)
    best, lowest, other = v, margin, torch.where(v > 0, -1.0, 1.0).to(v)
    for some in chosen.split(max(1, 4 * AT_ONCE // v.numel())):
        tried = torch.where(space.groups == some, other, v)
        reached, which = _nearest(space.margins(tried.flatten(0, 1))).view(-1, *margin.shape).min(0)
        best, lowest = _better(best, lowest, tried.gather(0, which[None, ..., None].expand(1, *v.shape))[0], reached)
    return best, lowest


def _better(v: Tensor, margin: Tensor, other: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    lower = reached < margin
    return torch.where(lower[..., None], other, v), torch.where(lower, reached, margin)
