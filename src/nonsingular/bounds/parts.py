"""parts.py - a region cut into parts, each bounded and searched for a point that falsifies it, until it is decided.

A part fixes the signs s of some neurons z: it is where s z >= 0 for all of them.  The parts of one split cover the whole, so the
smallest of their bounds is a bound.  Bound of a part (beta-CROWN, arXiv:2103.06624): linear bounds on the boxes of the whole, cut
to the signs, with every lower slope and one multiplier beta >= 0 for each fixed sign moved by gradient ascent:

    where s z >= 0:     f  >=  f - beta s z.

With all signs fixed, non-negative inputs and dense layers this is the dual of a linear program: its supremum over beta is the
exact worst margin, which a fixed number of ascent steps approaches.  Where weights meet signals of either sign, or kernels
are shared, a gap can remain whatever is split.
Which neuron is split: of those with the largest loss by relaxation, the one whose halves bound best (arXiv:2104.06718).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from nonsingular.bounds.activations import lines
from nonsingular.bounds.alpha import raised_among
from nonsingular.bounds.interval import Boxed, Region, propagate
from nonsingular.bounds.linear import alive, differences, hidden_bounds, lowest_over, margin_bounds, pull_back
from nonsingular.bounds.products import sensitivities
from nonsingular.bounds.signs import Parts
from nonsingular.bounds.verdicts import STATUSES, Verdicts
from nonsingular.network.calling import gradient, logits_of_each
from nonsingular.network.margins import attained, worst_margin
from nonsingular.network.memory import room
from nonsingular.network.nodes import Activation, Product
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

TRIES = 3
"""Neurons whose halves are bounded before one is split."""
STEPS = 3
"""Steps of gradient ascent on slopes and multipliers of a part, from those of the part that was split."""
FIRST_STEPS = 12
"""The same for a part that is not split yet, and with new boxes."""
SPLIT_FIRST, RAISED, RAISE_STEPS = 16, 0.5, 4
"""After so many parts of an example: this share of its open neurons has its ends raised, in so many steps of ascent."""
ROUNDS = 4
"""Moves of all inputs and weights to an end of their boxes, from the point that a relaxation suggests."""
LAST_STEPS = 200
"""The same for a part with nothing left to split."""


def part_of(point: Perturbation, at: slice) -> Perturbation:
    return Perturbation(point.x[at], {n: w[at] for n, w in point.weights.items()}, point.scope)


class Search:
    """The open parts of some examples, and what is known so far.  where: a region, with boxes of its nodes if these are known."""

    def __init__(
        self,
        where: Region | Boxed,
        y: Tensor,
        model: nn.Module,
        x: Tensor,
        known: Perturbation | None = None,
        lower: Tensor | None = None,
    ) -> None:
        known_boxes = where.boxes if isinstance(where, Boxed) else None
        where = where.where if isinstance(where, Boxed) else where
        self.where, self.y, self.logits = where, y, logits_of_each(model)
        nodes = where.graph.nodes
        self.hinges = {i: n for i, n in enumerate(nodes) if isinstance(n, Activation) and n.form == "hinge"}
        self.split = sorted({n.inputs[0] for n in self.hinges.values()})
        """Nodes whose elements have signs to fix."""
        self.size = max(1, min(512, room(where.x.lo) // (4 * alive(where.part(slice(1)), len(nodes) - 1))))
        """Parts treated at a time."""
        with torch.no_grad():
            self.boxes = [Interval(b.lo.clone(), b.hi.clone()) for b in known_boxes or hidden_bounds(where)]
            root = margin_bounds(where, self.boxes, y)
            self.lower = root if lower is None else torch.maximum(root, lower.to(root))
            self.point = known or Perturbation(x.clone(), {n: self._own(where.graph.params[n]) for n in where.boxes}, "sample")
            self.upper = self._attained(self.point, y)
        B, K = self.lower.shape
        self.parts = torch.zeros(B, dtype=torch.long, device=y.device)
        self.raised = torch.zeros(B, dtype=torch.bool, device=y.device)
        self.closed = self.lower.new_full((B, K), torch.inf)
        """Smallest bound of the parts that are settled, of each pair."""
        example, other = ((self.lower <= 0) & (torch.arange(K, device=y.device) != y[:, None])).nonzero().unbind(1)
        count = sum(self._flat(i).shape[1] for i in self.split)
        empty = root.new_zeros(len(example), count)
        slopes = [self._default_slopes(i)[example] for i in self.split]
        self.open = Parts(
            example, other, empty.to(torch.int8), torch.cat(slopes, 1) if slopes else empty, empty.clone(),
            self.lower[example, other],
        )  # fmt: skip

    def _own(self, w: Tensor) -> Tensor:
        return w.expand(len(self.y), *w.shape).clone()

    def _flat(self, node: int) -> Tensor:
        return self.boxes[node].lo.flatten(1)

    def _default_slopes(self, node: int) -> Tensor:
        kind = next(n for n in self.hinges.values() if n.inputs[0] == node)
        box = self.boxes[node]
        found: list[Tensor] = []

        def take(default: Tensor) -> Tensor:
            found.append(default)
            return default

        lines(kind, box, take)
        return found[0][0].flatten(1).clone()

    # --- the search -------------------------------------------------------------------------------------------------------

    def run(self, parts: int, seconds: float = math.inf, report: Callable[[int], None] = lambda decided: None) -> None:
        """Splits until every example is decided or the budget of `search` is spent."""
        end = time.monotonic() + seconds
        reported = 0
        if parts > 0 and seconds > 0:
            rows = torch.arange(len(self.open), device=self.y.device).split(self.size)
            self.open = Parts.join([self._bounded(self.open[at], FIRST_STEPS) for at in rows])
        while True:
            self._drop_decided()
            decided = len(self.y) - len(self.open.example.unique())
            report(decided - reported)
            reported = decided
            spent = self.parts[self.open.example] >= parts
            ready = (~spent).nonzero().flatten()
            if not len(ready) or time.monotonic() > end:
                report(len(self.y) - decided)
                return
            chosen = ready[self._fair(ready)[: self.size]]
            kept = torch.ones(len(self.open), dtype=torch.bool, device=self.y.device)
            kept[chosen] = False
            now, self.open = self.open[chosen], self.open[kept.nonzero().flatten()]
            halves = self._bounded(self._halves(now), STEPS)
            self.parts += torch.bincount(halves.example, minlength=len(self.parts))
            stuck = (halves.low <= 0) & ~self._splittable(halves).any(1)
            self.open = Parts.join([self.open, halves[~stuck], self._bounded(halves[stuck], LAST_STEPS)])
            worth = (self.parts >= SPLIT_FIRST) & (self.parts < parts) & ~self.raised
            for example in worth.nonzero().flatten().tolist():
                if time.monotonic() <= end:
                    self._raise(example)

    def _raise(self, example: int) -> None:
        """Raises the ends of the hidden neurons where the open parts of an example lose most, and bounds these parts again."""
        self.raised[example] = True
        mine = (self.open.example == example) & (self.open.low <= 0) & ~self.wrong[example]
        if not self.split or not bool(mine.any()):
            return
        parts = self.open[mine.nonzero().flatten()]
        with torch.no_grad():
            losses = torch.cat([self._losses(parts[at]) for at in torch.arange(len(parts)).split(self.size)]).sum(0)
            losses = losses * self._open()[example]
        count = int(RAISED * int((losses > 0).sum()))
        wanted = torch.zeros_like(losses, dtype=torch.bool)[None]
        wanted[0, losses.topk(count).indices] = True
        at = slice(example, example + 1)
        inside = Boxed(self.where.part(at), [Interval(b.lo[at], b.hi[at]) for b in self.boxes])
        found = raised_among(inside, dict(zip(self.split, self._unflatten(wanted), strict=True)), RAISE_STEPS)
        with torch.no_grad():
            for box, new in zip(self.boxes, found, strict=True):
                for end, better in ((box.lo, new.lo), (box.hi, new.hi)):
                    end[at] = better
        rows = torch.arange(len(parts)).split(self.size)
        again = [self._bounded(parts[r], FIRST_STEPS) for r in rows]
        self.open = Parts.join([self.open[(~mine).nonzero().flatten()], *again])

    def _fair(self, ready: Tensor) -> Tensor:
        """The order in which parts are treated: each example's worst first, examples in turn."""
        example, low = self.open.example[ready], self.open.low[ready]
        by_bound = low.argsort(stable=True)
        by_bound = by_bound[example[by_bound].argsort(stable=True)]
        of = example[by_bound]
        first = torch.searchsorted(of, of.unique())
        rank = torch.arange(len(of), device=of.device) - first.repeat_interleave(of.unique(return_counts=True)[1])
        return by_bound[rank.argsort(stable=True)]

    def _drop_decided(self) -> None:
        """Settles parts above 0, all parts of falsified examples, and parts that have nothing left to split."""
        pair = (self.open.example, self.open.other)
        verified = self.open.low > 0
        settled = verified | self.wrong[self.open.example] | ~self._splittable(self.open).any(1)
        low = self.closed.flatten().scatter_reduce(
            0, (pair[0] * self.closed.shape[1] + pair[1])[settled], self.open.low[settled], "amin"
        )
        self.closed = low.view_as(self.closed)
        self.open = self.open[(~settled).nonzero().flatten()]

    def _splittable(self, parts: Parts) -> Tensor:
        """(N, neurons) hinges that may still have either sign."""
        if not self.split:
            return torch.zeros_like(parts.sign, dtype=torch.bool)
        return self._open()[parts.example] & (parts.sign == 0)

    def _open(self) -> Tensor:
        """(B, neurons) hinges whose box has either sign."""
        return torch.cat([((self.boxes[i].lo < 0) & (self.boxes[i].hi > 0)).flatten(1) for i in self.split], 1)

    @property
    def wrong(self) -> Tensor:
        """(B,) the example is falsified."""
        return self.upper <= 0

    def verdicts(self) -> Verdicts:
        pair = self.open.example * self.closed.shape[1] + self.open.other
        low = self.closed.flatten().scatter_reduce(0, pair, self.open.low, "amin").view_as(self.closed)
        lower = torch.where(torch.isfinite(low), torch.maximum(low, self.lower), self.lower)
        worst = worst_margin(lower, self.y)
        status = torch.where(self.wrong, 1, torch.where(worst > 0, 0, 2)).tolist()
        return Verdicts(tuple(STATUSES[s] for s in status), lower, self.upper, self.point, self.parts)

    # --- one part ---------------------------------------------------------------------------------------------------------

    def _halves(self, parts: Parts) -> Parts:
        """Both halves of each part, split at the neuron whose halves bound best."""
        splittable = self._splittable(parts)
        with torch.no_grad():
            losses = self._losses(parts).masked_fill(~splittable, -1)
            candidates = losses.topk(min(TRIES, losses.shape[1]), 1).indices  # (N, tries)
            tries = candidates.shape[1]
            rows = torch.arange(len(parts), device=losses.device).repeat_interleave(tries)
            low = torch.stack([self._lows(parts[rows].signed(candidates.flatten(), s)) for s in (1, -1)])
            low = low.view(2, len(parts), tries)
            gain = low.clamp(max=0).sum(0) + 1e-3 * low.amin(0)  # what is above 0 needs no more
            gain = gain.masked_fill(~splittable.gather(1, candidates), -torch.inf)
            chosen = candidates.gather(1, gain.argmax(1, keepdim=True)).flatten()
        return Parts.join([parts.signed(chosen, s) for s in (1, -1)])

    def _lows(self, parts: Parts) -> Tensor:
        """(N,) bounds of the parts with the slopes and multipliers that they have."""
        rows = torch.arange(len(parts), device=parts.low.device).split(2 * self.size)
        return torch.cat([self._lowest(p, self._relaxed(p), p.slope, p.multiplier) for at in rows for p in [parts[at]]])

    def _bounded(self, parts: Parts, steps: int) -> Parts:
        """The same parts with better slopes and multipliers, and their bounds; tries their worst corners."""
        if not len(parts):
            return parts
        slope, multiplier = (t.clone().requires_grad_() for t in (parts.slope, parts.multiplier))
        rates = torch.optim.Adam([{"params": [slope], "lr": 0.2}, {"params": [multiplier], "lr": 0.05}], maximize=True)
        schedule = torch.optim.lr_scheduler.ExponentialLR(rates, 0.3 ** (1 / steps))
        best, relaxed = parts, self._relaxed(parts)
        for step in range(steps + 1):
            low = self._lowest(parts, relaxed, slope, multiplier)
            better = low.detach() > best.low
            best = replace(
                best, low=torch.where(better, low.detach(), best.low),
                slope=torch.where(better[:, None], slope.detach(), best.slope),
                multiplier=torch.where(better[:, None], multiplier.detach(), best.multiplier),
            )  # fmt: skip
            if step == steps or not low.requires_grad or bool((best.low > 0).all()):
                break
            rates.zero_grad()
            low.clamp(max=0.1).sum().backward()  # parts that are verified move no more
            rates.step()
            schedule.step()
            with torch.no_grad():
                slope.clamp_(0, 1)
                multiplier.clamp_(0).mul_(parts.sign != 0)
        self._try(best)
        return best

    def _lowest(self, parts: Parts, relaxed: Boxed, slope: Tensor, multiplier: Tensor) -> Tensor:
        """(N,) bounds of the parts."""
        return lowest_over(relaxed.where.x, *self._pull(parts, relaxed, slope, multiplier))[0]

    def _pull(
        self, parts: Parts, relaxed: Boxed, slope: Tensor, multiplier: Tensor, heard: dict[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A linear function of the input below the margin of each part."""
        where = relaxed.where
        last = len(where.graph.nodes) - 1
        A = differences(self.y[parts.example], parts.other, slope.new_zeros(self.lower.shape[1]))[None]
        slopes = dict(zip(self.split, self._unflatten(slope), strict=True))
        penalties = dict(zip(self.split, self._unflatten(-multiplier * parts.sign), strict=True))

        def choose(at: int, default: Tensor) -> Tensor:
            node = where.graph.nodes[at]
            if not isinstance(node, Activation):
                return default
            return slopes[node.inputs[0]].clamp(min=node.slope)[None]

        return pull_back(relaxed, last, A, choose, {i: p[None] for i, p in penalties.items()}, heard)

    def _unflatten(self, values: Tensor) -> list[Tensor]:
        sizes = [self._flat(i).shape[1] for i in self.split]
        return [v.view(-1, *self.boxes[i].lo.shape[1:]) for i, v in zip(self.split, values.split(sizes, 1), strict=True)]

    def _relaxed(self, parts: Parts) -> Boxed:
        """The region of each part, its boxes cut to the signs."""
        at = parts.example
        where = replace(self.where, x=Interval(self.where.x.lo[at], self.where.x.hi[at]))
        boxes = [Interval(b.lo[at], b.hi[at]) for b in self.boxes]
        for i, sign in zip(self.split, self._unflatten(parts.sign), strict=True):
            lo, hi = boxes[i].lo, boxes[i].hi
            boxes[i] = Interval(torch.where(sign > 0, lo.clamp(min=0), lo), torch.where(sign < 0, hi.clamp(max=0), hi))
        for i, node in self.hinges.items():
            boxes[i] = propagate(node, where, boxes)
        return Boxed(where, boxes)

    def _losses(self, parts: Parts) -> Tensor:
        """(N, neurons) how far the two lines of each hinge may be off, weighted by the coefficient that reaches it."""
        heard: dict[int, Tensor] = {}
        relaxed = self._relaxed(parts)
        boxes = relaxed.boxes
        self._pull(parts, relaxed, parts.slope, parts.multiplier, heard)
        slopes = dict(zip(self.split, self._unflatten(parts.slope), strict=True))
        losses = {i: torch.zeros_like(boxes[i].lo) for i in self.split}
        for at, node in self.hinges.items():
            i = node.inputs[0]
            if at not in heard:
                continue
            A, lo, hi, s = heard[at][0], boxes[i].lo, boxes[i].hi, node.slope
            a = slopes[i].clamp(min=s)
            above = (1 - s) * hi * -lo / (hi - lo).clamp(min=1e-30)  # the chord at 0
            below = torch.minimum((1 - a) * hi, (a - s) * -lo)
            losses[i] = losses[i] + A.clamp(max=0).abs() * above + A.clamp(min=0) * below
        return torch.cat([t.flatten(1) for t in losses.values()], 1)

    # --- points -----------------------------------------------------------------------------------------------------------

    def _try(self, parts: Parts) -> None:
        """The point that the relaxation of each example's worst part is smallest at; then ends of all boxes by the gradient."""
        order = parts.low.argsort(descending=True)
        worst = torch.full((len(self.y),), -1, device=order.device).scatter(0, parts.example[order], order)
        at = worst[(worst >= 0) & ~self.wrong]
        at = at[parts.low[at] <= 0]
        if not len(at):
            return
        parts = parts[at]
        example, where = parts.example, self.where
        lo, hi = where.x.lo[example], where.x.hi[example]
        with torch.no_grad():
            x, weights = self._relaxed_point(parts)
            self._keep(example, Perturbation(x, weights, "sample"))
            for _ in range(ROUNDS):
                g_x, *g_w = self._slopes(x, weights, self.y[example], parts.other)
                x = torch.where(g_x > 0, lo, torch.where(g_x < 0, hi, x))
                weights = {n: _end(where.boxes[n], g, w) for (n, w), g in zip(weights.items(), g_w, strict=True)}
                self._keep(example, Perturbation(x, weights, "sample"))

    def _slopes(self, x: Tensor, weights: dict[str, Tensor], y: Tensor, other: Tensor) -> list[Tensor]:
        """The derivatives of each margin of y over `other`: (N, *input), then (N, *shape) for each of the weights."""
        with torch.enable_grad():
            at = [t.detach().clone().requires_grad_() for t in (x, *weights.values())]
            f = self.logits(dict(zip(weights, at[1:], strict=True)), at[0])
            return gradient((f.gather(1, y[:, None]) - f.gather(1, other[:, None])).sum(), at)

    def _relaxed_point(self, parts: Parts) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs (N, *input) and weights (N, *shape) at the ends that the coefficients of the relaxation point to."""
        heard: dict[int, Tensor] = {}
        relaxed = self._relaxed(parts)
        where, boxes = relaxed.where, relaxed.boxes
        A, _ = self._pull(parts, relaxed, parts.slope, parts.multiplier, heard)
        slopes = {
            n: torch.zeros(len(parts), *p.shape, dtype=A.dtype, device=A.device)
            for n in where.boxes
            for p in [where.graph.params[n]]
        }
        for i, A_i in heard.items():
            node = where.graph.nodes[i]
            if isinstance(node, Product):
                z = boxes[node.inputs[0]]
                for name, S in sensitivities(node, where, A_i[0].expand(len(parts), *node.shape), (z.lo + z.hi) / 2):
                    slopes[name] = slopes[name] + S
        x = torch.where(A[0] >= 0, where.x.lo, where.x.hi)
        return x, {n: _end(where.boxes[n], S, where.graph.params[n]) for n, S in slopes.items()}

    def _keep(self, example: Tensor, point: Perturbation) -> None:
        upper = self._attained(point, self.y[example])
        better = upper < self.upper[example]
        at = example[better]
        self.upper = self.upper.index_copy(0, at, upper[better])
        self.point = Perturbation(
            self.point.x.index_copy(0, at, point.x[better]),
            {n: w.index_copy(0, at, point.weights[n][better]) for n, w in self.point.weights.items()}, "sample",
        )  # fmt: skip

    def _attained(self, point: Perturbation, y: Tensor) -> Tensor:
        """(N,) smallest margins at a point, by the model itself."""
        return attained(self.logits(point.weights, point.x), y)


def _end(box: Interval, slope: Tensor, value: Tensor) -> Tensor:
    """The end of the box where a function of that slope is smaller; `value` where it is flat."""
    return torch.where(slope > 0, box.lo, torch.where(slope < 0, box.hi, value))
