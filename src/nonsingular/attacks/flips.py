"""flips.py - which stored bits to flip so that a network fails: progressive bit search, wider, and with inputs moved as well.

Rakin et al., arXiv:1903.12269: at each step the bit of each tensor with the largest first-order gain is tried, and the best of
these is flipped.  Here several bits of each tensor are tried, several sets are kept, and flips are exchanged at the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.errors import InvalidInput
from nonsingular.faults.fault import Storage, truth, whole
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import Flip, Stored
from nonsingular.network.calling import recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import check_labels, is_correct
from nonsingular.network.network import Network, load, twin
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius

MOST = 10_000
"""Flips, at most."""


@dataclass(frozen=True, eq=False)
class Flipped:
    """What a flip attack found.

    flips: in the order in which they were chosen.  accuracy: in [0, 1], before any flip and after each, on the attacked examples,
    with their inputs moved if these may move.
    weights: name -> the values of the words after all flips.  x: (B, *input) the inputs at the end.
    right: (B,) which examples are still right there.
    """

    flips: tuple[Flip, ...]
    accuracy: tuple[float, ...]
    weights: Mapping[str, Tensor]
    x: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class _State:
    """A set of flips, and how it does: (share that is right, minus the loss); smaller is better for the attacker."""

    flips: tuple[Flip, ...]
    x: Tensor
    score: tuple[float, float]


def flip_attack(
    model: nn.Module, x: Tensor, y: Tensor, *, flips: int = 10, storage: Storage | None = None, goal: float = 0.0,
    target: int | None = None, candidates: int = 8, beam: int = 2, exchange: bool = True, by_loss: bool = False,
    eps_x: Radius = 0.0, domain: tuple[float, float] | None = (0.0, 1.0), steps: int = 10, spared: Collection[Flip] = (),
) -> Flipped:  # fmt: skip
    """Up to `flips` flipped bits of the stored weights that make one device fail on the examples, all with the same flips.

    x: (B, *input) in `domain`: the examples that the attacker has.  y: (B,).
    storage: the format of the words, by default UniformRounding(8).  goal: stop once accuracy is at or below it.
    target: a class that all examples shall get; None: any wrong one.  Accuracy is then still that of y.
    candidates: bits of each tensor that are tried at each step, those of the largest first-order gain.
    beam: sets that are kept.  One search keeps the best by accuracy, another as many by accuracy and as many by loss; the better
        result counts.
    exchange: at the end each flip is given up in turn if another one does better.  by_loss: sets are compared by the loss alone,
        as in the progressive search, not by accuracy first.
    candidates=1, beam=1, exchange=False, by_loss=True is the progressive search of arXiv:1903.12269 with one bit a step.
    eps_x: above 0, the inputs move too, within this radius (a number, or for each element): by `steps` of joint_pgd after each
        flip.  The flips that are best with the inputs as they are then count, too, with inputs moved against them, unless sets
        are compared by the loss.
    spared: bits that cannot flip, such as the `flips` of an earlier attack, after which these are protected.
    Returns a Flipped: an upper bound of the accuracy that so many flips leave.  Never changes `model`.
    Raises InvalidInput for invalid settings.  Cost: a step takes a pass forward and backward and beam x candidates x tensors
    passes forward, the other search twice that, with inputs moved all of it again; the exchange one step for each flip.
    """
    whole("flips", flips, 0, MOST)
    whole("candidates", candidates, 1, MOST)
    whole("beam", beam, 1, MOST)
    for name, value in (("exchange", exchange), ("by_loss", by_loss)):
        truth(name, value)
    ball = JointBall(eps_x, 0.0, domain)
    network = classifier(model, x, ball)
    ball.check_domain(x)
    aims = _Aims(ball, target, candidates, beam, exchange, by_loss, goal, steps, frozenset(spared))
    search = _Search(network, storage or UniformRounding(8), x.detach(), y.long(), aims)
    if by_loss:
        return search.result(search.run(flips))
    balls = [ball, JointBall(0.0, 0.0, domain)] if ball.moves_inputs else [ball]  # also the flips that are best alone
    found: list[_State] = []
    for way in [replace(aims, ball=b, both=both) for both in (False, True) for b in balls]:
        fewest = min((len(s.flips) for s in found if s.score[0] <= goal), default=flips + 1)
        state = search.under(way).run(fewest - 1)
        found.append(state if way.ball is ball else search.moved(search.state(state.flips, search.x)))
    return search.result(min(found, key=lambda s: (0, len(s.flips), s.score) if s.score[0] <= goal else (1, 0, s.score)))


@dataclass(frozen=True)
class _Aims:
    """What the attacker wants, and how widely it looks: as in `flip_attack`."""

    ball: JointBall
    target: int | None
    candidates: int
    beam: int
    exchange: bool
    by_loss: bool
    goal: float
    steps: int
    spared: frozenset[Flip]
    both: bool = False
    """Whether as many sets are kept by loss as by accuracy."""


class _Search:
    """The network with its words, and the examples that are attacked."""

    def __init__(self, network: Network, storage: Storage, x: Tensor, y: Tensor, aims: _Aims) -> None:
        self.model, self.storage, self.x, self.y, self.aims = Network(twin(network.inner)), storage, x, y, aims
        self.params = dict(self.model.named_parameters())
        self.stored: dict[str, Stored] = dict(storage.words(self.params))
        self.patterns = {name: words.pattern() for name, words in self.stored.items()}
        load(self.model, {name: words.values(self.params[name].dtype) for name, words in self.stored.items()})
        with torch.no_grad():
            classes = self.model(x[:1].clone()).shape[1]
        check_labels(y, len(x), classes)
        if aims.target is not None and not 0 <= aims.target < classes:
            raise InvalidInput(f"target is {aims.target}; give a class from 0 to {classes - 1}, or None")

    def under(self, aims: _Aims) -> _Search:
        """The same network and words, searched for other aims."""
        other = copy(self)
        other.aims = aims
        return other

    def run(self, flips: int) -> _State:
        """The best set that is found."""
        kept = [self.moved(self.state((), self.x))]
        best = kept[0]
        for _ in range(flips):
            found = {frozenset(s.flips): s for state in kept for s in self.further(state)}
            if best.score[0] <= self.aims.goal or not found:
                break
            kept = [self.moved(s) for s in self.kept([*found.values()])]
            best = min(kept if self.aims.by_loss else [best, *kept], key=self.order)
        return self.exchanged(best) if self.aims.exchange else best

    def kept(self, found: list[_State]) -> list[_State]:
        """The best by their order, and in turn as many by loss where these count as well: flips show there first."""
        ranks = [sorted(found, key=self.order)]
        if self.aims.both:
            ranks.append(sorted(found, key=lambda s: s.score[1]))
        return [*dict.fromkeys(chain.from_iterable(zip(*ranks, strict=True)))][: self.aims.beam * len(ranks)]

    def order(self, state: _State) -> tuple[float, float]:
        return self.order_of(state.score)

    def order_of(self, score: tuple[float, float]) -> tuple[float, float]:
        return (0.0, score[1]) if self.aims.by_loss else score

    # --- weights ----------------------------------------------------------------------------------------------------------

    def value(self, flip: Flip, among: tuple[Flip, ...]) -> Tensor:
        """The value of the word of `flip` after those flips of `among` that are in it."""
        pattern = self._pattern(flip.name, among)
        return self.stored[flip.name].holding(pattern).values(self.params[flip.name].dtype).view(-1)[flip.index]

    @contextmanager
    def held(self, flips: tuple[Flip, ...], only: Flip | None = None) -> Generator[None]:
        """Inside, the model holds the words with these flips.  only: all but this one of them are there already."""
        saved: list[tuple[Tensor, int, Tensor]] = []
        with torch.no_grad():
            for flip in flips if only is None else (only,):
                flat = self.params[flip.name].view(-1)
                saved.append((flat, flip.index, flat[flip.index].clone()))
                flat[flip.index] = self.value(flip, flips)
        try:
            yield
        finally:
            with torch.no_grad():
                for flat, index, old in reversed(saved):
                    flat[index] = old

    # --- scores -----------------------------------------------------------------------------------------------------------

    def loss(self, logits: Tensor) -> Tensor:
        """What the attacker raises."""
        if self.aims.target is None:
            return F.cross_entropy(logits, self.y)
        return -F.cross_entropy(logits, torch.full_like(self.y, self.aims.target))

    def score(self, x: Tensor) -> tuple[float, float]:
        """(share that is right, minus the loss) with the weights as they are now."""
        with torch.no_grad():
            logits = self.model(x.clone())
            loss = self.loss(logits.double()).item()
            right = is_correct(logits, self.y).double().mean().item()
        return right, -math.inf if math.isnan(loss) else -loss

    def state(self, flips: tuple[Flip, ...], x: Tensor) -> _State:
        with self.held(flips):
            return _State(flips, x, self.score(x))

    def moved(self, state: _State) -> _State:
        """The same flips, with the inputs moved against them."""
        if not self.aims.ball.moves_inputs:
            return state
        with self.held(state.flips):
            point = joint_pgd(self.model, self.x, self.y, self.aims.ball, steps=self.aims.steps, scope="sample")
            fresh, old = self.score(point.x), state.score
            x = point.x if self.order_of(fresh) < self.order_of(old) else state.x
            score = min(fresh, old, key=self.order_of)
        return _State(state.flips, x, score)

    # --- steps ------------------------------------------------------------------------------------------------------------

    def further(self, state: _State) -> Iterator[_State]:
        """The set with one flip more, for each candidate."""
        with self.held(state.flips):
            for flip in list(self._promising(state)):
                with self.held((*state.flips, flip), only=flip):
                    score = self.score(state.x)
                yield _State((*state.flips, flip), state.x, score)

    def _promising(self, state: _State) -> Iterator[Flip]:
        """Bits of each tensor with the largest first-order gain, that are not flipped yet."""
        with recording():
            weights = {name: p.detach().clone().requires_grad_() for name, p in self.params.items() if name in self.stored}
            logits = torch.func.functional_call(self.model, weights, (state.x.clone(),))
            grads = torch.autograd.grad(self.loss(logits), list(weights.values()), allow_unused=True)
        taken = {*state.flips, *self.aims.spared}
        for (name, w), g in zip(weights.items(), grads, strict=True):
            if g is None or not w.numel():  # pyright: ignore[reportUnnecessaryComparison]  # of a weight that is not used
                continue
            pattern = self._pattern(name, state.flips)
            gains = torch.stack([
                (self.stored[name].holding(pattern ^ (1 << k)).values() - w.detach().double()).nan_to_num(0.0) * g.double()
                for k in range(self.stored[name].bits)
            ]).flatten()  # fmt: skip
            most = min(len(gains), self.aims.candidates + len(taken))
            places = gains.nan_to_num(0.0).topk(most).indices.tolist()
            chosen = [Flip(name, place % w.numel(), place // w.numel()) for place in places]
            yield from [flip for flip in chosen if flip not in taken][: self.aims.candidates]

    def _pattern(self, name: str, flips: tuple[Flip, ...]) -> Tensor:
        pattern = self.patterns[name].clone()
        for flip in flips:
            if flip.name == name:
                pattern.view(-1)[flip.index] ^= 1 << flip.bit
        return pattern

    def exchanged(self, state: _State) -> _State:
        """Each flip in turn given up for the best other one, where that does better."""
        for k in range(len(state.flips)):
            without = self.state(state.flips[:k] + state.flips[k + 1 :], state.x)
            found = min(self.further(without), key=self.order, default=state)
            found = self.moved(found) if found is not state else found
            if self.order(found) < self.order(state):
                state = found
        return state

    def result(self, state: _State) -> Flipped:
        before = [self.moved(self.state(state.flips[:k], self.x)).score[0] for k in range(len(state.flips))]
        with self.held(state.flips), torch.no_grad():
            weights = {name: self.params[name].detach().clone() for name in self.stored}
            right = is_correct(self.model(state.x.clone()), self.y)
        return Flipped(state.flips, (*before, state.score[0]), weights, state.x, right)
