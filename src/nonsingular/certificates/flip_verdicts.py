"""flip_verdicts.py - verified, falsified with the flips and the input that do it, or open: branch and bound over sets of flips.

An open part of all sets (flip_parts.py) holds one flip more, of a row that its bound leaves open, or its largest set is cut into
smaller ones.  Where each flip is one item, the flips are made, and what is left is a network that does not change
(bounds/parts.py).  At one input, every item of the last flip's row is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nonsingular.attacks.flips import flip_attack
from nonsingular.bounds.flip_layers import layer_boxes, layer_margins
from nonsingular.bounds.flips import Bounded, flip_margins, slots_of
from nonsingular.bounds.interval import Boxed, Region
from nonsingular.bounds.parts import Search as Tree
from nonsingular.bounds.shifts import shifted
from nonsingular.bounds.verdicts import Status, Verdicts
from nonsingular.certificates.flip_parts import Part, PartSearch
from nonsingular.certificates.flips import StoredNetwork, check_flips, neighbours, stored_network
from nonsingular.errors import InvalidInput
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import Flip
from nonsingular.network.calling import held_at, products, recording
from nonsingular.network.graph import Graph, lower_outputs
from nonsingular.network.margins import attained, margins, worst_margin
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import Radius

AT_ONCE = 64
"""Parts bounded together, at most: the clock is looked at between."""
CUTS = 24
"""Splits of neurons for a part whose flips are still sets, before the largest set is cut."""
LEAF_CUTS = 2000
"""The same where every flip is one item."""


@dataclass(frozen=True)
class FlipVerdicts(Verdicts):
    """What is known of each example over every set of at most m flipped bits and every input of the ball.

    flips: (B,) those of `perturbation`, which holds the inputs (B, *input) and the values (B, *shape) of the words after them.
    """

    flips: tuple[tuple[Flip, ...], ...] = ()


def decide_flips(
    model: nn.Module, x: Tensor, y: Tensor, *, bits: int = 8, flips: int = 1, eps_x: Radius = 0.0,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights", seconds: float = 60.0,
    report: Callable[[int], None] = lambda decided: None,
) -> FlipVerdicts:  # fmt: skip
    """`verified`, `falsified` with the flips and the input that do it, or `timeout` with the bounds so far, for each example.

    The network, its words, and the other arguments are those of `certify_flips`.
    seconds: time for an example; a pass that has begun is finished.  report: called with 1 for each example that is done.
    First `flip_attack` on the example alone, then branch and bound: over the rows that flips are in, over sets of bits, and, with
        inputs in a box, over signs of neurons.
    Guarantee: `verified` holds in exact arithmetic on the rounded network.  `falsified` is what the network gives in float64 with
        its words flipped one by one.  Without a limit of time all single flips, and all pairs and more at eps_x = 0, are decided,
        but for ties.
    Errors: those of `certify_flips`.  Cost: from milliseconds to `seconds` an example.  Memory: the perturbation holds the
        tensors with flips once for each example.
    """
    check_flips(flips)
    if not seconds > 0:
        raise InvalidInput(f"seconds is {seconds!r}; give a time above 0 for each example")
    ball, storage = JointBall(eps_x, 0.0, domain), UniformRounding(bits, moves=moves)
    with products("highest"):
        with torch.no_grad():
            stored = stored_network(model, x, y, ball, storage)
            x, y = x.double(), y.long()
            where = stored.where(x, y)
            slots = slots_of(where.graph, stored.changes, flips)
        decided: list[_Found] = []
        for i in range(len(x)):
            at = slice(i, i + 1)
            one = _Decision(where.part(at), y[at], slots, flips, stored, x=x[at], asked=(ball, storage))
            with torch.no_grad():
                decided.append(one.run(time.monotonic() + seconds))
            report(1)
        return _joined(stored, x, decided)


def _joined(stored: StoredNetwork, x: Tensor, decided: Sequence[_Found]) -> FlipVerdicts:
    """The verdicts of examples x (B, *input), in their order."""
    lower = torch.cat([one.lower for one in decided])
    flips = tuple(one.flips for one in decided)
    moved = [stored.flipped(some) for some in flips]
    names = [name for name in stored.words if any(name in weights for weights in moved)]
    plain = stored.flipped([], names)
    weights = {n: torch.stack([one.get(n, plain[n]) for one in moved]) for n in names}
    point = Perturbation(torch.cat([one.x for one in decided]), weights, "sample")
    return FlipVerdicts(
        tuple(one.status for one in decided), lower_outputs(stored.network, x, lower),
        torch.cat([one.upper for one in decided]), point,
        torch.tensor([one.parts for one in decided], dtype=torch.long, device=x.device), flips,
    )  # fmt: skip


@dataclass
class _Found:
    """What is known of one example.  lower: (1, K).  upper: (1,) the least margin seen, at x with these flips."""

    x: Tensor
    upper: Tensor
    lower: Tensor
    flips: tuple[Flip, ...] = ()
    status: Status = "timeout"
    parts: int = 0
    least: Tensor | None = None
    """(1, K) smallest bounds of what is settled."""
    left: bool = False
    """Whether some part could not be settled."""

    @property
    def wrong(self) -> bool:
        return not bool((self.upper > 0).all())

    def settle(self, low: Tensor) -> None:
        """low: (N, K) bounds of parts that are closed."""
        if len(low):
            low = low.amin(0, keepdim=True)
            self.least = low if self.least is None else torch.minimum(self.least, low)


class _Run(nn.Module):
    """A graph as a module without parameters."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)


@dataclass(frozen=True, eq=False)
class _Decision(PartSearch):
    """One example: its parts, worst first, those with fewest free flips before others."""

    x: Tensor
    asked: tuple[JointBall, UniformRounding]
    open_rows: list[Tensor] = field(default_factory=list[Tensor])
    """(groups,) of each slot: which of them the bound of the whole leaves open."""

    def run(self, end: float) -> _Found:
        """end: on the clock of time.monotonic."""
        whole = self._whole()
        found = _Found(self.x, attained(self.stored.network(self.x.clone()), self.y), whole.low)
        if self._closed(whole.low) and not found.wrong:
            found.status = "verified"
            return found
        self._search(found, whole, end)
        if found.wrong:
            found.status = "falsified"
        elif not found.left and found.least is not None:
            found.lower = torch.maximum(found.lower, found.least)
            found.status = "verified" if self._closed(found.lower) else "timeout"
        return found

    def _whole(self) -> Bounded:
        """Bounds under all flips, and boxes under one less."""
        if self.flips == 1:
            return layer_margins(self.where, self.slots, self.y, self.boxes)
        found = flip_margins(self.where, self.slots, self.y, self.flips, linear=False, still=self.boxes)
        return replace(found, calm=layer_boxes(self.where, self.slots, self.boxes)) if self.flips == 2 else found

    def _search(self, found: _Found, whole: Bounded, end: float) -> None:
        if found.wrong or not self._still(found, end):
            return
        if self.slots and not (self._known and self.flips == 1):  # there every flip is tried
            self._attack(found)
        self.calm.extend(whole.calm)
        waiting: list[Part] = []
        for k, of in enumerate(whole.of):
            worst = worst_margin(of[0].T, self.y.expand(of.shape[2]))
            self.open_rows.append(~(worst > 0))
            found.settle(of[0].T[worst > 0])
            waiting += [
                Part((h,), self.flips - 1, worst[g].item())
                for g in self.open_rows[k].nonzero().flatten().tolist() if (h := self.held(k, g)) is not None
            ]  # fmt: skip
        while waiting and not found.wrong:
            if time.monotonic() > end:
                found.left = True
                return
            waiting.sort(key=lambda part: (part.left, part.low), reverse=True)
            left = waiting[-1].left
            now = [part for part in waiting[-AT_ONCE:] if part.left == left]
            del waiting[-len(now) :]
            waiting += self._wider(found, now) if left else self._closer(found, now, end)

    # --- points -----------------------------------------------------------------------------------------------------------

    def _offer(self, found: _Found, x: Tensor, flips: Sequence[Flip]) -> None:
        """Keeps an input and flips, these made in the words, if they do more harm than what is known."""
        box = self.asked[0].input_box(self.x)
        x = torch.minimum(torch.maximum(x.view_as(self.x), box.lo), box.hi)
        upper = attained(held_at(self.stored.network, self.stored.flipped(flips))(x.clone()), self.y)
        if bool(upper < found.upper):
            found.x, found.upper, found.flips = x, upper, tuple(sorted(flips))

    def _attack(self, found: _Found) -> None:
        ball, storage = self.asked
        told = flip_attack(
            self.stored.network, self.x, self.y, flips=self.flips, storage=storage, eps_x=ball.eps_x, domain=ball.domain
        )
        self._offer(found, told.x, told.flips)

    def _still(self, found: _Found, end: float) -> bool:
        """Whether no input is wrong without any flip."""
        if self._known:
            found.settle(margins(self.where.graph(self.x), self.y))
            return True
        low = self._without()
        if not self._closed(low):
            tree = self._tree(self.where, LEAF_CUTS, end)
            self._offer(found, tree.perturbation.x, ())
            low, found.parts = tree.lower, found.parts + int(tree.parts.sum())
        found.settle(low)
        found.left |= not self._closed(low)
        return not found.wrong and not found.left

    # --- parts ------------------------------------------------------------------------------------------------------------

    def _wider(self, found: _Found, parts: list[Part]) -> list[Part]:
        """The same parts without the flips that are free, and with one more held, in each row that is open."""
        found.parts += len(parts)
        made: list[Part] = []
        for part, low, of in self.bounded_parts(parts, found.settle):
            made.append(Part(part.held, 0, low))
            last = (part.held[-1].slot, part.held[-1].group)
            for k, margin in enumerate(of):
                worst = worst_margin(margin.T, self.y.expand(margin.shape[1]))
                may = self.open_rows[k] & ~(worst > 0)
                found.settle(margin.T[worst > 0])
                made += [
                    Part((*part.held, held), part.left - 1, worst[g].item())
                    for g in may.nonzero().flatten().tolist() if (k, g) >= last and (held := self.held(k, g)) is not None
                ]  # fmt: skip
        return made

    def _closer(self, found: _Found, parts: list[Part], end: float) -> list[Part]:
        """Smaller parts of parts without free flips; those whose flips are known are decided."""
        found.parts += len(parts)
        open_ = [replace(part, low=low) for part, low, _ in self.bounded_parts(parts, found.settle)]
        if not self._known:
            open_ = self._split(found, open_, end)
        made: list[Part] = []
        for part in open_:
            if found.wrong:
                return []
            known = part.alone >= len(part.held) - (1 if self._known else 0)
            if known and time.monotonic() > end:
                found.left = True
            elif known:
                self._each_last(found, part) if self._known else self._leaf(found, part, end)
            else:
                made += self._cut(part)
        return made

    def _cut(self, part: Part) -> list[Part]:
        """With the largest set of a flip in parts; at one input, the first that is not known."""
        held = part.held
        at = part.alone if self._known else max(range(len(held)), key=lambda k: len(held[k].items))
        sets = neighbours(self.listed(held[at].slot, held[at].group).boxes, held[at].items)
        return [Part((*held[:at], replace(held[at], items=some), *held[at + 1 :]), part.left, part.low) for some in sets]

    def _split(self, found: _Found, parts: list[Part], end: float) -> list[Part]:
        """Those that stay open when signs of neurons are fixed."""
        if not parts:
            return []
        where = self.region(parts)
        tree = self._tree(Boxed(where, shifted(where, self.still)), CUTS, end)
        found.parts += int(tree.parts.sum())
        closed = worst_margin(tree.lower, self.y.expand(len(parts))) > 0
        found.settle(tree.lower[closed])
        for k in (tree.upper <= 0).nonzero().flatten().tolist():
            self._offer(found, tree.perturbation.x[k, : self.x.numel()], self.nearest(parts[k], tree.perturbation.x[k]))
        return [part for part, done in zip(parts, closed.tolist(), strict=True) if not done]

    def _leaf(self, found: _Found, part: Part, end: float) -> None:
        """The network with the flips made, for all inputs."""
        flips = [self.flip(h, int(h.items[0])) for h in part.held]
        if len({*flips}) < len(flips):  # one bit twice: no such set
            return
        tree = self._tree(replace(self.where, graph=self.made(flips)), LEAF_CUTS, end)
        found.parts += int(tree.parts.sum())
        self._offer(found, tree.perturbation.x, flips)
        found.settle(tree.lower)
        found.left |= not self._closed(tree.lower)

    def _each_last(self, found: _Found, part: Part) -> None:
        """At one input: all flips but the last are made, and every item of its group is computed."""
        *before, last = part.held
        flips = [self.flip(h, int(h.items[0])) for h in before]
        there = replace(self, where=replace(self.where, graph=self.made(flips)))
        low = there._each(self.slots[last.slot], last.group, there._values())
        low = low.flatten(0, -2)
        same = [h for h in before if (h.slot, h.group) == (last.slot, last.group)]
        taken = [int(self.listed(h.slot, h.group).which[h.items[0]]) for h in same]
        low[taken] = torch.inf  # one bit twice: no such set
        found.parts += len(low)
        worst = worst_margin(low, self.y.expand(len(low)))
        found.settle(low)
        least = int(worst.argmin())
        if not bool(worst[least] > 0):
            self._offer(found, self.x, [*flips, self.place(last, least)])

    def _tree(self, where: Region | Boxed, cuts: int, end: float) -> Verdicts:
        region = where.where if isinstance(where, Boxed) else where
        with recording():
            y = self.y.expand(len(region.x.lo)).clone()
            tree = Tree(where, y, _Run(region.graph), (region.x.lo + region.x.hi) / 2)
            tree.run(cuts, max(0.0, end - time.monotonic()))
            return tree.verdicts()
