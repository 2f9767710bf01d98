"""shared_apgd.py - joint attack where all examples share one W' (batch, dataset): a few large steps, from several starts.

The loss is the mean probability of the true class, softmax(logits / T)_y.  With T small relative to the margins it is a smoothed
accuracy: examples far from the decision boundary hardly influence W', unlike in the cross-entropy.  With T large every example
does; a run that starts there and lowers T crosses the plateaus where all predictions fall into one class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.attacks.search.crew import Crew, Span, folded, nodes
from nonsingular.attacks.search.descent import Budget
from nonsingular.attacks.search.input_unknowns import input_space, seek
from nonsingular.attacks.search.starts import restarting, usable_start
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import Precision, gradient, outputs, precision, products, recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import attained, check_labels, margins, worst_margin
from nonsingular.network.network import Network
from nonsingular.network.passes import count, so_far
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

COLD, HOT = 0.08, 0.5
"""Temperatures of a run's loss, in medians of the clean margins: close to the accuracy, and influenced by every example."""
MEASURED = 512
"""Examples whose clean margins give the unit of temperatures."""
RACES = ((128, 8, 3), (256, 10, 1))
"""Runs that choose another start for W': their examples, their steps, and how many of them go on."""
NEAR = 0.5
"""First step of the run that starts at the best point that is known, in half widths of the boxes; from elsewhere it is 1."""
LONGER = 3
"""Factor on the steps of the run from another start."""
ALONE = 3
"""Factor on the steps where inputs or weights move alone, as in few cells of a grid."""
SIZES = 8
"""Sizes of the batches of those examples of a chunk that are still right, filled up by repeating one.

Libraries keep memory for each size that they met.
"""
CLOSE = 0.3
"""Where inputs move alone: the search goes on with examples of which so much of what the first run lowered is left, or less."""
CLASSES = 10
"""Largest number of classes into which W' is tried to push all predictions: those with the fewest examples."""


def shared_apgd(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 4, scope: Scope = "dataset",
    start: Perturbation | None = None, explore: bool = True, chunk: int = 512, generator: Generator | None = None,
    crew: Crew | None = None,
) -> Perturbation:  # fmt: skip
    """Signed descent on the smoothed accuracy over all inputs and one W', then every input once more against the final W'.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode.
    steps: of the run from the best known point, then twice as many of each input against the best W', on its margin.  ALONE times
        as many where only inputs or only weights move.  Where only inputs move, with explore, the search of `apgd` follows, with
        steps + 5 of each run and 4 steps restarts, for those examples that are CLOSE: all have the same weights anyway.
    start: a point of the ball (default: x, W).  explore: whether another start is sought, instead of that run.  Short runs on a
        few examples begin at `start`, at W with a loss that cools, and at corners of the box that push predictions into one
        class: where W' may move far, which class decides more than all steps that follow.  The best goes on over all examples,
        for LONGER times the steps.
    chunk: examples per forward and backward pass, halved where memory runs out.
    crew: workers that do the chunks of these examples; None: they are done here.  The bits are the same.
    generator: given, it begins at a random point where that is worse than `start`.
    Returns the best point seen by accuracy, one W' for all of `x`: never worse than that from which it began.
    Never changes `model`.
    Raises InvalidInput for scope "sample", if x leaves the domain, or if the model gives no gradient.
    Cost: forward and backward, `steps` over all examples (with explore LONGER times as many, after those of RACES), then twice as
    many over those that are still right; forward, 4 more.  Steps shrink as a half cosine: no worse than momentum, Adam or
    Frank-Wolfe from the same start (benchmarks).  Source: signed steps, arXiv:2102.11935, section 4.1.
    """
    if scope == "sample":
        raise InvalidInput(
            "attack 'shared_apgd' has one W' for all examples (scope batch or dataset); use 'apgd' for scope sample"
        )
    if steps < 1 or chunk < 1:
        raise InvalidInput(f"steps is {steps} and chunk is {chunk}; give 1 or more")
    network = classifier(model, x, ball)
    box = ball.input_box(x) if crew is None else crew.box(ball)
    begun = usable_start(network, x, ball, scope, start, box)

    def run(chunk: int) -> Perturbation:
        with network.lent() as moving:
            shared = replace(_shared(moving, x.detach(), y.long(), ball, box, chunk), crew=crew)
            best = shared.at(
                shared.seen(begun.x), [begun.weights.get(name, W) for name, W in zip(shared.names, shared.home, strict=True)]
            )
            if generator is not None:
                scattered = [box.sample(generator) for box in shared.boxes]
                best = min(best, shared.at(shared.seen(box.sample(generator)), scattered), key=_Point.rank)
            if best.right.any() and (shared.free or shared.boxes):
                with products("medium"):
                    found = _search(shared, best, steps, explore)
                best = min(best, shared.at(found.x, found.W), key=_Point.rank)
            moved = dict(zip(shared.names, best.W, strict=True))
        own = {name: w.clone() for name, w in moved.items()}  # nothing of `start` or `model`
        return Perturbation(best.x.clone() if best.x is begun.x else best.x, own, scope).check(network, x, ball, box)

    with recording():
        return restarting(run, chunk, generator)


@dataclass(frozen=True, eq=False)
class _Point:
    """x' and W', with the margins that they leave, as `attained`: above 0 where the prediction is right."""

    x: Tensor
    W: list[Tensor]
    margin: Tensor

    @property
    def right(self) -> Tensor:
        return self.margin > 0

    def rank(self) -> tuple[int, float]:
        """Smaller is better: examples that are right, then by how much."""
        return int(self.right.sum()), self.margin.clamp(min=0).sum().item()


@dataclass(frozen=True, eq=False)
class _Shared:
    """The problem: a network whose parameters `live` are moved in place within `boxes`, and inputs within `box`.

    home, x: the unperturbed values.  median: of the clean margins, the unit of temperatures.  free: whether inputs move.
    """

    network: Callable[[Tensor], Tensor]
    names: list[str]
    live: list[Tensor]
    home: list[Tensor]
    boxes: list[Interval]
    box: Interval
    y: Tensor
    median: float
    free: bool
    chunk: int
    x: Tensor
    crew: Crew | None = None

    def part(self, at: Tensor | slice) -> _Shared:
        """That of some examples, done here."""
        return replace(self, box=Interval(self.box.lo[at], self.box.hi[at]), y=self.y[at], x=self.x[at], crew=None)

    def load(self, W: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for live, w in zip(self.live, W, strict=True):
                live.copy_(w)

    def seen(self, t: Tensor) -> Tensor:
        return t if self.crew is None else self.crew.seen(t)

    def like(self, x: Tensor) -> Tensor:
        """A tensor like these inputs of all examples, not filled."""
        return torch.empty_like(x) if self.crew is None else self.crew.empty()

    def over(self, act: _Act, x: Tensor, into: Tensor | None = None) -> _Sum:
        """What an act returns for all chunks of x, at the weights that are loaded: margins joined, gradients summed."""
        whole = (0, -(-len(x) // self.chunk))
        if not len(x):
            return x.new_zeros(0), []
        if self.crew is None:
            return self.of(act, x, into, whole)
        W = {name: w.detach() for name, w in zip(self.names, self.live, strict=True)}
        told = replace(self, network=_nowhere, live=[], home=[], boxes=[], y=self.y[:0], x=self.x[:0], crew=None), W, precision()
        todo, most = nodes(whole, self.crew.workers)
        found = self.crew.do(_there, [(told, act, x, into, span) for span in todo])
        return folded(whole, most, dict(zip(todo, found, strict=True)).__getitem__, _added)

    def of(self, act: _Act, x: Tensor, into: Tensor | None, span: Span) -> _Sum:
        """The same for some chunks, done here."""

        def one(node: Span) -> _Sum:
            at = slice(node[0] * self.chunk, min(node[1] * self.chunk, len(x)))
            return act(self, at, x[at], None if into is None else into[at])

        return folded(span, 1, one, _added)

    def margins(self, x: Tensor) -> Tensor:
        """(B,) margins attained at x and the weights that are loaded."""
        count(forward=len(x))
        return self.over(_looked, x)[0]

    def at(self, x: Tensor, W: list[Tensor]) -> _Point:
        self.load(W)
        return _Point(x, W, self.margins(x))


_Sum = tuple[Tensor, list[Tensor]]
"""Margins of some examples, and the sum of a gradient over them."""
_Act = Callable[[_Shared, slice, Tensor, Tensor | None], _Sum]
"""What is done to a chunk: (the problem, its place, its x', where the x' that follow are written)."""


def _added(a: _Sum, b: _Sum) -> _Sum:
    return torch.cat([a[0], b[0]]), [t + d for t, d in zip(a[1], b[1], strict=True)]


def _nowhere(x: Tensor) -> Tensor:
    raise AssertionError("a worker calls its own network")


def _there(
    network: Network, x: Tensor, y: Tensor, told: tuple[_Shared, dict[str, Tensor], Precision | None], act: _Act, *args: Any
) -> _Sum:  # fmt: skip
    """`_Shared.of` in a worker.  told: the problem without what it has there, the weights, the precision of products."""
    shared, W, wanted = told
    with recording(), products(wanted), network.lent(W) as moving:
        params = dict(moving.named_parameters())
        live = [params[name].requires_grad_() for name in W]
        return replace(shared, network=partial(outputs, moving), live=live, y=y, x=x).of(act, *args)


def _shared(moving: nn.Module, x: Tensor, y: Tensor, ball: JointBall, box: Interval, chunk: int) -> _Shared:
    network = partial(outputs, moving)
    params = dict(moving.named_parameters())
    boxes = ball.weight_boxes(params)
    live = [params[name].requires_grad_() for name in boxes]
    home = [W.detach().clone() for W in live]
    shared = _Shared(network, list(boxes), live, home, list(boxes.values()), box, y, 1.0, ball.moves_inputs, chunk, x)
    with torch.no_grad():
        check_labels(y, len(x), network(x[:1].clone()).shape[1] if len(x) else 0)
    some = _spread(x, MEASURED)
    clean = shared.part(some).margins(x[some])
    ahead = clean[torch.isfinite(clean) & (clean > 0)]
    return replace(shared, median=ahead.median().item() if len(ahead) else 1.0)


def _spread(x: Tensor, most: int) -> Tensor:
    """At most so many of the examples, spread evenly."""
    return torch.arange(0, len(x), max(1, -(-len(x) // most)), device=x.device)


# --- the search -----------------------------------------------------------------------------------------------------------


def _search(shared: _Shared, best: _Point, steps: int, explore: bool) -> _Point:
    if not shared.boxes:
        best = min(best, _descend(shared, best, ALONE * steps, hot=HOT), key=_Point.rank)
        best = _again(shared, best, ALONE * steps)
        return _each(shared, best, steps) if explore else best
    steps *= 1 if shared.free else ALONE
    if explore:
        other = _Point(best.x, _other(shared, best), torch.full_like(best.margin, torch.inf))
        best = min(best, _descend(shared, other, LONGER * steps), key=_Point.rank)
    else:
        best = min(best, _descend(shared, best, steps, first=NEAR), key=_Point.rank)
    return _again(shared, best, 2 * steps) if shared.free else best


def _descend(shared: _Shared, start: _Point, steps: int, *, hot: float = COLD, first: float = 1.0) -> _Point:
    """The best of the points on the way from `start`: signed steps on softmax(logits / T)_y, T from `hot` down to COLD.

    first: the first step, in half widths of the boxes; they shrink as half a cosine.
    """
    x, W, best = start.x, start.W, start
    for i in range(steps):
        T = shared.median * hot * (COLD / hot) ** (i / max(1, steps - 1))
        scale = first * (1 + math.cos(math.pi * i / steps)) / 2
        shared.load(W)
        count(forward=len(x), backward=len(x))
        moved = shared.like(x) if shared.free else x
        seen, total = shared.over(partial(_moved, T=T, scale=scale), x, moved if shared.free else None)
        best = min(best, _Point(x, W, seen), key=_Point.rank)
        W = [_step(w, b, g, scale) for w, b, g in zip(W, shared.boxes, total, strict=True)]
        x = moved
    return min(best, shared.at(x, W), key=_Point.rank)


def _moved(shared: _Shared, at: slice, x: Tensor, into: Tensor | None, *, T: float, scale: float) -> _Sum:
    """Margins at x', the gradient of the weights, and x' after one step."""
    point, labels = x.detach().requires_grad_(into is not None), shared.y[at]
    logits = shared.network(point.clone())  # a copy: the model's first operation may work in place
    g = gradient(logits, shared.live if into is None else [point, *shared.live], _rise(logits.detach(), labels, T))
    if into is not None:
        into.copy_(_step(point.detach(), Interval(shared.box.lo[at], shared.box.hi[at]), g.pop(0), scale))
    return attained(logits.detach(), labels), g


def _looked(shared: _Shared, at: slice, x: Tensor, into: Tensor | None) -> _Sum:
    """Margins at x' alone."""
    with torch.no_grad():
        return attained(shared.network(x.clone()), shared.y[at]), []


def _step(w: Tensor, box: Interval, g: Tensor, scale: float) -> Tensor:
    return (w - g.sign().mul_(box.hi - box.lo).mul_(scale / 2)).clamp_(box.lo, box.hi)


def _rise(logits: Tensor, y: Tensor, T: float) -> Tensor:
    """The gradient of the sum of softmax(logits / T)_y, not lost to rounding where that is near 0 or 1: p (1 - p) / T apart."""
    z = (logits / T).scatter(1, y[:, None], -torch.inf)
    others = z.logsumexp(1, keepdim=True)
    p = torch.sigmoid(-(others - logits.gather(1, y[:, None]) / T).abs())
    down = (p - 1) * p
    return (down * (z - others).exp()).scatter(1, y[:, None], -down) / T


def _other(shared: _Shared, best: _Point) -> list[Tensor]:
    """Another start for W': where the run on some of the examples ends that leaves the fewest of them right.

    Runs begin at the best known W', at its home with a loss that cools, and at corners of its box, each of which pushes
    predictions into one class: for the CLASSES with the fewest examples.  The best go on, on more examples.
    """
    classes = torch.bincount(shared.y, minlength=int(shared.network(best.x[:1].clone()).shape[1])).argsort()[:CLASSES]
    some = _spread(best.x, RACES[0][0])
    corners = [_corner(shared.part(some), best.x[some], label) for label in classes]
    starts = [(best.W, COLD), (shared.home, HOT), *((W, COLD) for W in corners)]
    for examples, steps, kept in RACES:
        some = _spread(best.x, examples)
        few, x = shared.part(some), best.x[some]
        ends = [_descend(few, few.at(x, W), steps, hot=hot) for W, hot in starts]
        starts = [(end.W, COLD) for end in sorted(ends, key=_Point.rank)[:kept]]
    return starts[0][0]


def _corner(few: _Shared, x: Tensor, label: Tensor) -> list[Tensor]:
    """The corner of the weight box that pushes all predictions into this class: in the last layer, row shifts."""
    few.load(few.home)
    count(forward=len(x), backward=len(x))
    _, total = few.over(partial(_towards, label=label), x)
    return [torch.where(d > 0, b.lo, torch.where(d < 0, b.hi, w)) for d, b, w in zip(total, few.boxes, few.home, strict=True)]


def _towards(few: _Shared, at: slice, x: Tensor, into: Tensor | None, *, label: Tensor) -> _Sum:
    """The gradient of the cross-entropy with this label."""
    logits = few.network(x.clone())
    loss = F.cross_entropy(logits, label.expand(len(logits)), reduction="sum")
    return logits.detach()[:, 0], gradient(loss, few.live)


def _again(shared: _Shared, best: _Point, steps: int) -> _Point:
    """Attack the inputs that are still correct once more, at the final W': signed steps on the margin; the best point of each."""
    shared.load(best.W)
    right = int(best.right.sum())
    count(forward=steps * right, backward=steps * right)
    x = shared.like(best.x)
    margin, _ = shared.over(partial(_lowered, before=shared.seen(best.margin), steps=steps), best.x, x)
    return _Point(x, best.W, margin)


def _lowered(shared: _Shared, at: slice, x: Tensor, into: Tensor | None, *, before: Tensor, steps: int) -> _Sum:
    assert into is not None
    found, margin, part = x.clone(), before[at].clone(), (before[at] > 0).nonzero().flatten()
    part = torch.cat([part, part[:1].expand(-len(part) % -(-len(x) // SIZES) if len(part) else 0)])
    lo, hi, y, now = shared.box.lo[at][part], shared.box.hi[at][part], shared.y[at][part], x[part]
    for i in range(steps if len(part) else 0):
        point = now.detach().requires_grad_()
        logits = shared.network(point.clone())
        (g,) = gradient(worst_margin(margins(logits, y), y).sum(), [point])
        _keep_lower(found, margin, part, point.detach(), attained(logits.detach(), y))
        now = torch.clamp(point.detach() - g.sign_().mul_(hi - lo).mul_((1 - i / steps) / 2), lo, hi)
    if len(part):
        with torch.no_grad():
            _keep_lower(found, margin, part, now, attained(shared.network(now.clone()), y))
    into.copy_(found)
    return margin, []


def _each(shared: _Shared, best: _Point, steps: int) -> _Point:
    """The search of `apgd` for each example by itself, as all have the same weights anyway: those that are CLOSE."""
    budget = Budget(5 + steps, 4 * steps, targets=9, keep=4, rounds=3, verdict=True)
    shared.load(best.W)
    x, begun = shared.like(best.x), so_far()
    margin, passes = shared.over(partial(_searched, before=shared.seen(best.margin), budget=budget), best.x, x)
    for asked in passes:  # of workers: what was done here is counted
        count(*(n - m for n, m in zip(asked.tolist(), so_far().since(begun), strict=True)))
    return _Point(x, best.W, margin)


def _searched(shared: _Shared, at: slice, x: Tensor, into: Tensor | None, *, before: Tensor, budget: Budget) -> _Sum:
    """Margins and x' after the search, and how many passes it took."""
    assert into is not None
    begun, found, margin, few = so_far(), x.clone(), before[at].clone(), shared.part(at)
    with torch.no_grad():
        clean = attained(few.network(few.x.clone()), few.y)
        part = ((margin > 0) & (margin <= CLOSE * (clean - margin))).nonzero().flatten()
        count(forward=len(x) + len(part))
        if len(part):
            few = few.part(part)
            point = seek(input_space(few.network, few.x, few.y, few.box, few.chunk), x[part], budget)
            _keep_lower(found, margin, part, point, attained(few.network(point.clone()), few.y))
    into.copy_(found)
    return margin, [torch.tensor(so_far().since(begun))]


def _keep_lower(x: Tensor, margin: Tensor, part: Tensor, point: Tensor, reached: Tensor) -> None:
    lower = reached < margin[part]
    into = part[lower]
    x[into], margin[into] = point[lower], reached[lower]
