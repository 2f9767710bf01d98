"""corners.py - search on the weights without gradients: random corners of their box, then random blocks to one of their ends.

Every trial moves a random block of one tensor (rows, columns or a window of its matrix) to the ends of its box and is kept where
it lowers the objective; blocks shrink as those of the Square attack do, down to single weights.  In scope `sample` a dense
network is searched over one shift per neuron (neuron_pgd.py): for a given input the corners of the weight box reach no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.search.starts import checked_start, frozen, nearest, spread
from nonsingular.attacks.square import share
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.calling import logits_of_each, outputs, recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import check_labels, is_correct
from nonsingular.network.passes import count
from nonsingular.network.row_lemma import Shifts, shifts
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

AT_ONCE = 2**22
"""Weights of all examples held at once in scope `sample`: 16 MB a copy in float32.  No knob, as in search/descent.py."""

Score = Callable[[Sequence[Tensor], Tensor], Tensor]
"""(tensors with a leading dimension N, which rows these are) -> (N,), to be made small; below 0 the search is over."""


def corners(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, draws: int = 32, steps: int = 300, chunk: int = 1024,
    scope: Scope = "batch", start: Perturbation | None = None, generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Random search on the weights at fixed inputs: x, or those of `start`.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode.
    draws: random corners of the whole box, with one sign for each weight, row, column or tensor.
    steps: moves of a random block to its ends, of shrinking size, each kept where it helps.
    scope: "batch" and "dataset" search one W' for all of x that lowers the accuracy, among equal ones the mean clipped margin;
        "sample" one W' for each example that lowers its margin, until its prediction is wrong.
    start: a point of the ball; the result is never worse, and never worse than (x, W).  generator: by default of seed 0.
    Returns a point with the inputs of `start`, or x where these do better.  Never changes `model`.
    Raises InvalidInput if x leaves the domain, or if `start` is not a point of the ball.
    Cost: at most `draws` + `steps` forward passes; memory B x parameters in scope `sample`.
    """
    if draws < 0 or steps < 0 or chunk < 1:
        raise InvalidInput(f"draws, steps, chunk are {draws}, {steps}, {chunk}; give at least 0, 0 and 1")
    with recording(), torch.no_grad():
        model = classifier(model, x, ball)
        point, y = checked_start(model, x, ball, scope, start), y.long()
        check_labels(y, len(x), outputs(model, x[:1].clone()).shape[1] if len(x) else 0)
        boxes = ball.weight_boxes(dict(model.named_parameters()))
        search = _Search(draws, steps, chunk, generator or torch.Generator(x.device).manual_seed(0))
        if scope != "sample":
            with model.lent() as moving:
                return _shared(moving, x, y, boxes, point, search).check(model, x, ball)
        run = _chooser(model, x, ball, boxes)
        at_once = max(1, min(chunk, AT_ONCE // max(1, sum(box.lo.numel() for box in boxes.values()))))
        parts: list[Perturbation] = []
        for at in torch.arange(len(x), device=x.device).split(at_once):
            begin = Perturbation(point.x[at], {n: w[at] for n, w in point.weights.items()}, scope)
            reached = run(begin, y[at], search) if boxes else {}
            parts.append(_best_of_each(model, x[at], y[at], begin, reached))
        weights = {n: torch.cat([part.weights[n] for part in parts]) for n in boxes}
        return Perturbation(torch.cat([part.x for part in parts]), weights, scope).check(model, x, ball)


# --- one W' for all examples ----------------------------------------------------------------------------------------------


def _shared(
    moving: nn.Module, x: Tensor, y: Tensor, boxes: Mapping[str, Interval], point: Perturbation, search: _Search
) -> Perturbation:
    """One W' for all of x, written into the parameters of `moving`."""
    params = {name: p for name, p in moving.named_parameters() if name in boxes}
    logits = frozen(moving, {}, each=False, chunk=search.chunk)
    scale = 4 * nearest(logits(x), y).double().clamp(min=0).mean().clamp(min=1e-30)

    def score(inputs: Tensor, tensors: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """The number of right examples, less one, and between whole numbers their mean clipped margin."""
        for p, w in zip(params.values(), tensors, strict=True):
            p.copy_(w[0])
        out = logits(inputs)
        clipped = (nearest(out, y).double() / scale).nan_to_num(0, 0, 0).clamp(0, 0.999)
        return (is_correct(out, y).sum() - 1 + clipped.mean())[None]

    W = [p.clone()[None] for p in params.values()]
    given = [point.weights.get(name, w[0])[None].clone() for name, w in zip(params, W, strict=True)]
    begins = [(point.x, given), (point.x, W), (x.clone(), W)]
    inputs, begin = min(begins, key=lambda at: score(*at).item())
    found = search.run(begin, list(boxes.values()), partial(score, inputs)) if boxes else begin
    return Perturbation(inputs, {name: w[0] for name, w in zip(params, found, strict=True)}, point.scope)


# --- a W' for each example ------------------------------------------------------------------------------------------------

Run = Callable[[Perturbation, Tensor, "_Search"], Mapping[str, Tensor]]
"""(where to begin, labels, search) -> weights (B, *shape)."""


def _chooser(model: nn.Module, x: Tensor, ball: JointBall, boxes: Mapping[str, Interval]) -> Run:
    """The search over neurons where the network is dense, else over weights."""
    try:
        return partial(_over_neurons, shifts(model, ball, x), ball)
    except UnsupportedModel:
        return partial(_over_weights, model, boxes)


def _over_weights(
    model: nn.Module, boxes: Mapping[str, Interval], begin: Perturbation, y: Tensor, search: _Search
) -> dict[str, Tensor]:
    params = dict(model.named_parameters())
    each = logits_of_each(model)

    def score(tensors: Sequence[Tensor], rows: Tensor) -> Tensor:
        count(forward=len(rows))
        return nearest(each(dict(zip(boxes, tensors, strict=True)), begin.x[rows]), y[rows])

    given = [begin.weights.get(n, params[n].expand(len(y), *params[n].shape)).clone() for n in boxes]
    return dict(zip(boxes, search.run(given, list(boxes.values()), score), strict=True))


def _over_neurons(network: Shifts, ball: JointBall, begin: Perturbation, y: Tensor, search: _Search) -> dict[str, Tensor]:
    """For every z all margins are smallest at once where the last layer has s_y = -1 and s_j = 1 for j != y."""
    given = _as_shifts(network, begin)
    last = network.net.worst_outputs(y)
    one = last.new_ones(())

    def score(s: Sequence[Tensor], rows: Tensor) -> Tensor:
        count(forward=len(rows))
        return nearest(network(begin.x[rows], [*s, last[rows]]), y[rows])

    hidden = search.run(given[:-1], [Interval(-one, one)] * (len(given) - 1), score)
    return network.realise(begin.x, [*hidden, last], ball)


def _as_shifts(network: Shifts, point: Perturbation) -> list[Tensor]:
    return [s.clamp(-1, 1) for s in network.of(point)] if point.weights else network.start(point.x)


def _best_of_each(model: nn.Module, x: Tensor, y: Tensor, begin: Perturbation, reached: Mapping[str, Tensor]) -> Perturbation:
    """For each example the point with the smallest margin: `reached`, `begin`, or W at the inputs of either or at x."""
    params = dict(model.named_parameters())
    W = {n: params[n].detach().expand(len(y), *params[n].shape) for n in reached}
    points = [(begin.x, reached), (begin.x, {**W, **begin.weights}), (begin.x, W), (x, W)]
    values = [nearest(frozen(model, w, each=True, chunk=max(1, len(y)))(inputs), y) for inputs, w in points]
    best, found, weights = values[0], begin.x, dict(reached)
    for margin, (inputs, w) in zip(values[1:], points[1:], strict=True):
        lower = margin < best
        best = torch.where(lower, margin, best)
        found = torch.where(spread(lower, x), inputs, found)
        weights = {n: torch.where(spread(lower, t), w[n], t) for n, t in weights.items()}
    return Perturbation(found, weights, "sample")


# --- the search -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Search:
    """draws: random corners.  steps: moves of a block.  chunk: examples in a pass, where all share one W'."""

    draws: int
    steps: int
    chunk: int
    generator: Generator

    def run(self, begin: Sequence[Tensor], boxes: Sequence[Interval], score: Score) -> list[Tensor]:
        """The best tensors (N, *shape) for each of N problems."""
        found = [t.clone() for t in begin]
        if not found or not len(found[0]):
            return found
        todo = torch.arange(len(found[0]), device=found[0].device)
        now, best = list(begin), score(begin, todo)
        for i in range(self.draws + self.steps):
            still = best >= 0
            if not still.all():
                for whole, t in zip(found, now, strict=True):
                    whole[todo] = t
                todo, best, now = todo[still], best[still], [t[still] for t in now]
            if not len(todo):
                return found
            tried = [self._corner(t, box, i) for t, box in zip(now, boxes, strict=True)] if i < self.draws else list(now)
            if i >= self.draws:
                k = int(torch.randint(len(now), (), generator=self.generator, device=todo.device))
                tried[k] = self._moved(now[k], boxes[k], i - self.draws)
            reached = score(tried, todo)
            lower = reached < best
            best = torch.where(lower, reached, best)
            now = [old if new is old else torch.where(spread(lower, old), new, old) for old, new in zip(now, tried, strict=True)]
        for whole, t in zip(found, now, strict=True):
            whole[todo] = t
        return found

    def _corner(self, t: Tensor, box: Interval, draw: int) -> Tensor:
        """All of a tensor at the ends of its box: one sign for each weight, row, column, or one for all."""
        R, C = _matrix(t.shape[1:])
        shape = ((R, C), (R, 1), (1, C), (1, 1))[draw % 4]
        return torch.where(self._signs(t, shape), box.hi, box.lo)

    def _moved(self, t: Tensor, box: Interval, step: int) -> Tensor:
        """A block at the ends of its box: whole rows, whole columns, or a window, with one sign for each row or column."""
        (R, C), part = _matrix(t.shape[1:]), share(step, self.steps)
        kind = step % 4 if C > 1 else 0  # rows every other time: they do most
        rows, columns = ((part, 1.0), (1.0, part), (part, 1.0), (math.sqrt(part), math.sqrt(part)))[kind]
        signs = self._signs(t, (1, C) if kind == 1 else (R, 1))
        inside = self._chosen(t, R, rows)[:, :, None] & self._chosen(t, C, columns)[:, None, :]
        return torch.where(inside.view_as(t), torch.where(signs, box.hi, box.lo), t)

    def _signs(self, t: Tensor, shape: tuple[int, int]) -> Tensor:
        """Whether the upper end is taken: one random answer for each entry of `shape`, spread over the shape of `t`."""
        high = torch.rand(len(t), *shape, generator=self.generator, device=t.device) < 0.5
        return high.expand(len(t), *_matrix(t.shape[1:])).reshape(t.shape)

    def _chosen(self, t: Tensor, count: int, part: float) -> Tensor:
        """(N, count) a random choice of this part, at least one."""
        if part >= 1:
            return torch.ones(len(t), count, dtype=torch.bool, device=t.device)
        order = torch.rand(len(t), count, generator=self.generator, device=t.device).argsort(1)
        return order < max(1, round(part * count))


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter: its first dimension, and all others."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
