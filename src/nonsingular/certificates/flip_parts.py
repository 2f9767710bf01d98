"""flip_parts.py - parts of all sets of flips, and how they are bounded.

A part holds some flips to sets of items (an item: one bit of one word) of a row or channel each, and leaves some more free.  What
a held flip adds to an output is an input t of its own, in the box of its set.  What is free is bounded as in bounds/flips.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from nonsingular.bounds.flip_layers import layer_margins
from nonsingular.bounds.flips import Slot, flip_margins, items_of, rows, slots_of
from nonsingular.bounds.interval import Region
from nonsingular.bounds.linear import hidden_bounds
from nonsingular.bounds.shifts import shifted
from nonsingular.bounds.spliced import beside
from nonsingular.certificates.flips import Search, StoredNetwork
from nonsingular.faults.words import Flip
from nonsingular.network.graph import Graph
from nonsingular.network.margins import worst_margin
from nonsingular.threat.interval import Interval


@dataclass(frozen=True, eq=False)
class Listed:
    """The items of a group.  boxes: what each adds to the outputs that the group moves, (N, n); if they are not told apart, what
    any of them adds to all outputs, (N, *shape).  which: (N,) their places in (bits, *w of the group), flat."""

    boxes: Interval
    which: Tensor
    apart: bool


@dataclass(frozen=True, eq=False)
class Held:
    """One flip, of these items (their places in the list of the group) of a group of slot number `slot`."""

    slot: int
    group: int
    items: Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Sets of flips: one of each `held`, in the order of slots and groups, and up to `left` more.  low: a bound, if any."""

    held: tuple[Held, ...]
    left: int
    low: float

    @property
    def alone(self) -> int:
        """How many flips, from the first, are known."""
        return next((k for k, h in enumerate(self.held) if len(h.items) > 1), len(self.held))


@dataclass(frozen=True, eq=False)
class PartSearch(Search):
    """One example, its stored network, and the lists of items of its groups."""

    stored: StoredNetwork
    calm: list[Interval] = field(default_factory=list[Interval], kw_only=True)
    """Boxes of all nodes under one flip less than there are."""
    others: dict[int, list[Slot]] = field(default_factory=lambda: {}, kw_only=True)
    lists: dict[tuple[int, int], Listed] = field(default_factory=lambda: {}, kw_only=True)

    def listed(self, k: int, group: int) -> Listed:
        if (k, group) not in self.lists:
            slot = self.slots[k]
            z = self.calm[slot.node.inputs[0]]
            items = items_of(slot, group, z)
            if items is None:
                fall, rise = rows(slot, z, 1)
                reached = slot.reached()[group]
                changes = slot.changes[:, group] if slot.changes.dim() > 1 else slot.changes
                which = changes.flatten().nonzero().flatten()
                ends = (torch.where(reached, t[0, 0], 0.0).expand(len(which), *reached.shape) for t in (-fall, rise))
                self.lists[k, group] = Listed(Interval(*ends), which, False)
            else:
                self.lists[k, group] = Listed(*items, True)
        return self.lists[k, group]

    def held(self, k: int, group: int) -> Held | None:
        """A flip of some item of a group; None without items."""
        which = self.listed(k, group).which
        return Held(k, group, torch.arange(len(which), device=which.device)) if len(which) else None

    def place(self, held: Held, at: int) -> Flip:
        """The flip at place `at` of (bits, *w of the group), flat."""
        changes = self.slots[held.slot].changes
        size = changes[0, 0].numel() if changes.dim() > 1 else 1
        return Flip(self.slots[held.slot].name, held.group * size + at % size, at // size)

    def flip(self, held: Held, item: int) -> Flip:
        return self.place(held, int(self.listed(held.slot, held.group).which[item]))

    def nearest(self, part: Part, point: Tensor) -> list[Flip]:
        """Flips whose effects are nearest to those of a point of the part."""
        first, found = self.where.x.lo.numel(), list[Flip]()
        shift: dict[int, Tensor] = {}
        for number in self._numbers():
            shape = self.where.graph.nodes[number].shape
            shift[number] = point[first : first + math.prod(shape)].view(shape)
            first += math.prod(shape)
        for h in part.held:
            items, t = self.listed(h.slot, h.group), shift[self.slots[h.slot].number]
            t = t[h.group].flatten() if items.apart else t
            away = ((items.boxes.lo + items.boxes.hi)[h.items] / 2 - t).abs().flatten(1).sum(1)
            found.append(self.flip(h, int(h.items[away.argmin()])))
        return found if len({*found}) == len(found) else []

    def made(self, flips: Sequence[Flip]) -> Graph:
        graph = self.where.graph
        return replace(graph, params={**graph.params, **self.stored.flipped(flips)}) if flips else graph

    def _numbers(self) -> list[int]:
        return sorted({slot.number for slot in self.slots})

    def region(self, parts: Sequence[Part]) -> Region:
        """The network with what held flips add as further inputs, in their boxes."""
        numbers = self._numbers()
        ends: list[Tensor] = []
        for end in ("lo", "hi"):
            box = getattr(self.where.x, end)
            moved = {i: box.new_zeros(len(parts), *self.where.graph.nodes[i].shape) for i in numbers}
            for n, part in enumerate(parts):
                for h in part.held:
                    items, slot = self.listed(h.slot, h.group), self.slots[h.slot]
                    t = getattr(items.boxes, end)[h.items]
                    t = t.amin(0) if end == "lo" else t.amax(0)
                    moved[slot.number][n] += self._at(slot, h.group, t[None])[0] if items.apart else t
            x = box.expand(len(parts), *box.shape[1:])
            ends.append(torch.cat([t.flatten(1) for t in (x, *moved.values())], 1))
        return replace(self.where, graph=beside(self.where.graph, *numbers), x=Interval(*ends))

    def bounded_parts(self, parts: Sequence[Part], settle: Callable[[Tensor], None]) -> list[tuple[Part, float, list[Tensor]]]:
        """Those that bounds leave open: with the worst margin, and, for each slot (K, groups), margins with a free flip there.

        parts: with as many free flips.  settle: told the margins (N, K) of parts that are closed.
        """
        left, where = parts[0].left, self.region(parts)
        y = self.y.expand(len(parts))
        if left not in self.others:
            self.others[left] = slots_of(where.graph, self._changes(), left) if left else []
        others = self.others[left]
        still = shifted(where, self.still)
        if left == 1:
            rough = layer_margins(where, others, y, still)
        else:
            rough = flip_margins(where, others, y, left, linear=False, still=still)
        of, low = rough.of, rough.low
        open_ = (~(worst_margin(low, y) > 0)).nonzero().flatten()
        if len(open_) and not left and self._known:
            for some in open_.split(self._size(where.graph)):
                part = replace(where, x=Interval(where.x.lo[some], where.x.hi[some]))
                better = flip_margins(part, others, y[some], left, still=hidden_bounds(part))
                low[some] = torch.maximum(low[some], better.low)
                for mine, new in zip(of, better.of, strict=True):
                    mine[some] = torch.maximum(mine[some], new)
        worst = worst_margin(low, y)
        settle(low[worst > 0])
        return [(parts[n], worst[n].item(), [t[n] for t in of]) for n in (~(worst > 0)).nonzero().flatten().tolist()]

    @cached_property
    def still(self) -> list[Interval]:
        """Boxes of the network with further inputs, where these are 0."""
        return hidden_bounds(self.region([Part((), 0, 0.0)]))
