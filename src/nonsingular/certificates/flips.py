"""flips.py - what is proven of a network whose stored words lose up to m bits: every set of flips, anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from nonsingular.bounds.flip_layers import layer_margins
from nonsingular.bounds.flips import Bounded, Slot, flip_margins, items_of, over_items, rows, slots_of
from nonsingular.bounds.interval import Region, region
from nonsingular.bounds.linear import hidden_bounds
from nonsingular.bounds.spliced import beside, tail
from nonsingular.certificates.certify import Certificate, verified
from nonsingular.errors import InvalidInput
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import Flip, Words
from nonsingular.network.calling import products
from nonsingular.network.graph import Graph, lower_outputs, precise
from nonsingular.network.heads import classifier
from nonsingular.network.margins import margins, worst_margin
from nonsingular.network.memory import room
from nonsingular.network.network import Network, load, twin
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.interval import Interval
from nonsingular.threat.radius import Radius

PARTS = 16
"""Sets into which the items of an open row are split at once."""
MOST = 16
"""Flips at once, at most: beyond a few the bound says nothing."""


def certify_flips(
    model: nn.Module, x: Tensor, y: Tensor, *, bits: int = 8, flips: int = 1, eps_x: Radius = 0.0,
    domain: tuple[float, float] | None = (0.0, 1.0), moves: Moves = "weights",
) -> Certificate:  # fmt: skip
    """Proves, where it can, that no set of at most `flips` flipped bits of the stored weights changes the prediction.

    The network is `model` with its weights rounded to whole numbers of `bits` bits in two's complement: symmetric, for each
    tensor, step max |W| / (2^(bits-1) - 1).  Any bits may flip, of any weights, also several of one word.  Steps and what `moves`
    leaves out (biases, BatchNorm) are kept where nothing fails.
    x: (B, *input) in `domain`.  y: (B,).  bits: 2 to 16.  flips: 1 to 16.
    eps_x: every input within this radius (a number, or for each element), cut to `domain`, together with the flips.
    moves: "weights" are matrices and kernels, "all" also biases and scales.
    Guarantee: `margins` are lower bounds for every such set and input, each example with its own set, in exact arithmetic on the
        rounded network.  For one flip at eps_x = 0 `verified` is exact: what is not verified, a flip changes (or ties).
    Raises UnsupportedModel without a rule for an operation, and for a weight that is used in several places; InvalidInput for
    invalid settings.  Cost: one pass of linear bounds; where these leave a row or channel open, one more for that row; at
    eps_x = 0 and one flip then a pass of the rest of the network for each bit of that row.
    Source: one scalar for a flip of a dense network, docs/faults.md; peers: BFAVerifier, arXiv:2502.16286.
    """
    check_flips(flips)
    with torch.no_grad(), products("highest"):
        stored = stored_network(model, x, y, JointBall(eps_x, 0.0, domain), UniformRounding(bits, moves=moves))
        network, labels = stored.network, y.long()
        where = stored.where(x.double(), labels)
        slots = slots_of(where.graph, stored.changes, flips)
        ones = [slice(i, i + 1) for i in range(len(x))]
        found = [Search(where.part(at), labels[at], slots, flips).margins() for at in ones]
        lower = lower_outputs(network, x, torch.cat([where.x.lo.new_zeros(0, where.graph.nodes[-1].shape[0]), *found]))
    return Certificate(lower, verified(lower, labels), "flips")


def check_flips(flips: int) -> None:
    """Raises InvalidInput for a number of flips that is not allowed."""
    if isinstance(flips, bool) or not isinstance(flips, int) or not 1 <= flips <= MOST:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"flips is {flips!r}; give a whole number from 1 to {MOST}")


@dataclass(frozen=True, eq=False)
class StoredNetwork:
    """A network with rounded weights, in float64, how much each flip changes each weight, (bits, *shape) by name, and a ball that
    holds every single flip and all inputs.  words: what is stored."""

    network: Network
    words: Mapping[str, Words]
    changes: Mapping[str, Tensor]
    ball: JointBall

    def where(self, x: Tensor, y: Tensor) -> Region:
        """Its graph with the box of the inputs, and weights that are fixed."""
        return replace(region(self.network, x, y, self.ball), boxes={})

    def flipped(self, flips: Sequence[Flip], also: Sequence[str] = ()) -> dict[str, Tensor]:
        """The values of the tensors in which these flips are, and of those in `also`, with their words flipped bit by bit."""
        patterns = {name: self.words[name].pattern() for name in (*also, *(flip.name for flip in flips))}
        for flip in flips:
            patterns[flip.name].view(-1)[flip.index] ^= 1 << flip.bit
        return {name: self.words[name].holding(pattern).values() for name, pattern in patterns.items()}


def stored_network(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, storage: UniformRounding) -> StoredNetwork:
    """What a device holds of `model`.  ball: of the inputs.  Raises the errors of `classifier` and `check_inputs`."""
    given = classifier(model, x, ball)
    check_inputs(given, x, y, ball)
    exact = precise(given, torch.float64)
    stored = storage.words(dict(exact.named_parameters()))
    network = Network(twin(exact.inner))
    load(network, {name: words.values() for name, words in stored.items()})
    changes: dict[str, Tensor] = {}
    for name, words in stored.items():
        pattern, value = words.pattern(), words.values()
        changes[name] = torch.stack([words.holding(pattern ^ (1 << k)).values() - value for k in range(words.bits)])
    every = JointBall(ball.eps_x, {n: d.abs().amax(0) for n, d in changes.items()}, ball.domain)
    return StoredNetwork(network, stored, changes, every.rounded(x.dtype))


@dataclass(frozen=True, eq=False)
class Search:
    """One example: all groups at once, and then those that are open, one by one.

    A group is a row of a matrix, an output channel of a kernel, or an element of a bias.  Every set of flips that is not empty
    has one in some group; each group is bounded over the sets with a flip in it.
    """

    where: Region
    y: Tensor
    slots: Sequence[Slot]
    flips: int

    @property
    def _known(self) -> bool:
        """Whether there is one input alone."""
        return bool((self.where.x.lo == self.where.x.hi).all())

    @cached_property
    def boxes(self) -> list[Interval]:
        """The boxes of all nodes, without a flip."""
        return hidden_bounds(self.where)

    def margins(self) -> Tensor:
        """(1, K) lower margins; of one flip at one input by trying each flip of an open group."""
        if self.flips == 1:
            found = layer_margins(self.where, self.slots, self.y, self.boxes).low
            if self._closed(found):
                return found
        whole = flip_margins(self.where, self.slots, self.y, self.flips, still=self.boxes)
        if self._closed(whole.low) or not self.slots:
            return whole.low
        still = self._without()
        if not self._closed(still):
            return torch.minimum(still, whole.low)
        found = still
        for at, slot in enumerate(self.slots):
            of = whole.of[at].movedim(2, 0)  # (groups, 1, K)
            closed = torch.stack([self._closed(low) for low in of])
            if bool(closed.any()):
                found = torch.minimum(found, of[closed].amin(0))
            open_ = (~closed).nonzero().flatten()
            if not len(open_):
                continue
            low = self._moved(slot, open_, whole)
            tried = ~(worst_margin(low, self.y.expand(len(low))) > 0)
            for row in tried.nonzero().flatten().tolist() if self.flips == 1 else ():
                group = int(open_[row])
                low[row] = self._tried(slot, group) if self._known else torch.maximum(low[row], self._apart(slot, group, whole))
            found = torch.minimum(found, low.amin(0, keepdim=True))
        return torch.maximum(found, whole.low)

    def _without(self) -> Tensor:
        """(1, K) lower margins without a flip."""
        return flip_margins(self.where, self.slots, self.y, 0, still=self.boxes).low

    def _closed(self, low: Tensor) -> Tensor:
        return (worst_margin(low, self.y) > 0).all()

    def _moved(self, slot: Slot, groups: Tensor, whole: Bounded) -> Tensor:
        """(groups, K) bounds with one flip in each of these groups, and all others anywhere."""
        fall, rise = rows(slot, whole.calm[slot.node.inputs[0]], 1)
        reached = slot.reached()[groups]
        return self._added(slot.number, torch.where(reached, -fall[0], 0.0), torch.where(reached, rise[0], 0.0))

    def _added(self, number: int, lo: Tensor, hi: Tensor) -> Tensor:
        """(N, K) bounds where the output of a node is moved by some point of a box (N, *shape), and one flip less is left."""
        if self.flips == 1 and self._known:
            return self._behind(number, lo, hi)
        graph = beside(self.where.graph, number)
        others = slots_of(graph, self._changes(), self.flips - 1) if self.flips > 1 else []
        found: list[Tensor] = []
        for a, b in zip(lo.split(self._size(graph)), hi.split(self._size(graph)), strict=True):
            ends = [torch.cat([x.expand(len(t), *x.shape[1:]).flatten(1), t.flatten(1)], 1)
                    for x, t in ((self.where.x.lo, a), (self.where.x.hi, b))]  # fmt: skip
            part = replace(self.where, graph=graph, x=Interval(*ends))
            found.append(self._bounded(part, others))
        return torch.cat(found)

    def _apart(self, slot: Slot, group: int, whole: Bounded) -> Tensor:
        """(K,) bounds with one flip in this group: its items in ever smaller sets of neighbours, until one is open alone."""
        known = items_of(slot, group, whole.calm[slot.node.inputs[0]])
        worst = self.where.x.lo.new_full((self.where.graph.nodes[-1].shape[0],), torch.inf)
        nothing = torch.full_like(worst, -torch.inf)
        for some, low, open_ in self._narrowed(slot, group, known[0]) if known else ():
            if any(len(some[k]) == 1 for k in open_):
                return nothing
            closed = torch.ones(len(low), dtype=torch.bool, device=low.device)
            closed[open_] = False
            worst = torch.minimum(worst, low.masked_fill(~closed[:, None], torch.inf).amin(0))
        return worst if known else nothing

    def _narrowed(self, slot: Slot, group: int, items: Interval) -> Iterator[tuple[list[Tensor], Tensor, list[int]]]:
        """The items of a group in ever smaller sets: (sets, (sets, K) bounds with one item of each, which of them are open).

        Those open sets that have several items are split further.
        """
        sets = [torch.arange(len(items.lo), device=items.lo.device)] if len(items.lo) else []
        while sets:
            some = [part for now in sets for part in neighbours(items, now)]
            ends = (torch.stack([f(end[part]) for part in some]) for f, end in ((_least, items.lo), (_most, items.hi)))
            low = self._added(slot.number, *(self._at(slot, group, t) for t in ends))
            open_ = (~(worst_margin(low, self.y.expand(len(low))) > 0)).nonzero().flatten().tolist()
            yield some, low, open_
            sets = [some[k] for k in open_ if len(some[k]) > 1]

    def _at(self, slot: Slot, group: int, t: Tensor) -> Tensor:
        """(N, *shape) zeros, but for `t` in what the group moves."""
        made = t.new_zeros(len(t), *slot.node.shape)
        made[:, group] = t[:, 0] if slot.node.dense else t.view(len(t), *slot.node.shape[1:])
        return made

    def _bounded(self, part: Region, others: Sequence[Slot]) -> Tensor:
        """(N, K) by intervals inside, and by linear bounds where these leave a row open."""
        y = self.y.expand(len(part.x.lo))
        low = flip_margins(part, others, y, self.flips - 1, linear=False).low
        open_ = (~(worst_margin(low, y) > 0)).nonzero().flatten()
        if len(open_):
            some = replace(part, x=Interval(part.x.lo[open_], part.x.hi[open_]))
            low[open_] = torch.maximum(low[open_], flip_margins(some, others, y[open_], self.flips - 1).low)
        return low

    def _behind(self, number: int, lo: Tensor, hi: Tensor) -> Tensor:
        """(groups, K) of the network behind a node, whose output moves in a box: all before it is known."""
        rest, values = tail(self.where.graph, number), self._values()
        found: list[Tensor] = []
        for a, b in zip(lo.split(self._size(rest.graph)), hi.split(self._size(rest.graph)), strict=True):
            ends: list[Tensor] = []
            for t in (a, b):
                moved = [v.expand(len(t), *v.shape[1:]) for v in values]
                moved[number] = moved[number] + t
                ends.append(rest.enter(moved))
            found.append(self._bounded(replace(self.where, graph=rest.graph, x=Interval(*ends)), ()))
        return torch.cat(found)

    def _tried(self, slot: Slot, group: int) -> Tensor:
        """(K,) the least margins over all single flips of a group, each computed."""
        low = self._each(slot, group, self._values())
        return low.flatten(0, -2).amin(0)

    def _each(self, slot: Slot, group: int, values: Sequence[Tensor]) -> Tensor:
        """(bits, *w of the group, K) margins with each single flip of a group, from the values of all nodes without one."""
        rest = tail(self.where.graph, slot.number)

        def flipped(t: Tensor) -> Tensor:
            moved = [v.expand(len(t), *v.shape[1:]) for v in values]
            moved[slot.number] = moved[slot.number] + t
            low = margins(rest.graph(rest.enter(moved)), self.y.expand(len(t)))
            return torch.where(torch.isfinite(low), low, -torch.inf)

        return over_items(slot, group, values[slot.node.inputs[0]][0], flipped, self._size(rest.graph))

    def _values(self) -> list[Tensor]:
        """The value of every node at the one input."""
        return self.where.graph.values(self.where.x.lo)

    def _changes(self) -> dict[str, Tensor]:
        return {slot.name: slot.changes for slot in self.slots}

    def _size(self, graph: Graph) -> int:
        """Groups at once: as many as leave room for a linear function of each logit at every node."""
        numbers = sum(math.prod(node.shape) for node in graph.nodes)
        return max(1, room(self.where.x.lo) // (4 * graph.nodes[-1].shape[0] * numbers))


def neighbours(items: Interval, chosen: Tensor) -> list[Tensor]:
    """The chosen items in up to PARTS sets: by the middle of their boxes, of several numbers by that of the largest one."""
    middle = (items.lo[chosen] + items.hi[chosen]).flatten(1)
    middle = middle.gather(1, middle.abs().argmax(1, keepdim=True))[:, 0]
    first, last = middle.aminmax()
    at = ((middle - first) / (last - first).clamp(min=1e-300) * PARTS).long().clamp(max=PARTS - 1)
    found = [chosen[at == k] for k in at.unique().tolist()]
    return found if len(found) > 1 else list(chosen.split(1))


def _least(t: Tensor) -> Tensor:
    return t.amin(0)


def _most(t: Tensor) -> Tensor:
    return t.amax(0)
