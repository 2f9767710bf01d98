"""square.py - search on the inputs without gradients: random squares at the ends of the ball.  Square attack, arXiv:1912.00049.

Every trial writes one end of the box, the same over a square window of a channel, into x' and is kept where it lowers the margin.
No gradient is asked for, so what hides gradients does not help against it.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.search.starts import begin, checked_start, frozen, nearest, spread
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import recording
from nonsingular.network.heads import classifier
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

SHARE = 0.8
"""Part of the positions that the first window covers."""
HALVED = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Parts of the run after which it is halved.  arXiv:1912.00049, section 5 (10, 50, 200, ... of 10,000)."""


def square(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 500, tries: int = 1, chunk: int = 1024,
    scope: Scope = "batch", start: Perturbation | None = None, generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Random search on the inputs at fixed weights: W, or those of `start`; keeps the smallest margin of each example.

    x: (B, *input) inside ball.domain: images (C, H, W) are tried in squares, vectors (d,) in runs of coordinates.  y: (B,).
    steps: trials of each example, one after the other; `tries` proposals a trial, of which the best counts.
    An example is left alone once its prediction is wrong.
    start: a point of the ball; the result is never worse, and never worse than (x, W).  generator: by default of seed 0.
    The weights that come back are those of `start`, or none (W).  Works in every scope.  Never changes `model`.
    Raises InvalidInput if x leaves the domain, or if `start` is not a point of the ball.
    Cost: at most `steps` x `tries` forward passes, on the examples that are still right.  Source: arXiv:1912.00049.
    """
    if steps < 0 or tries < 1 or chunk < 1:
        raise InvalidInput(f"steps, tries, chunk are {steps}, {tries}, {chunk}; give at least 0, 1 and 1")
    with recording(), torch.no_grad():
        y, model = y.long(), classifier(model, x, ball)
        given = checked_start(model, x, ball, scope, start)
        point, best = begin(model, x, y, given, moved=start is not None, chunk=chunk)
        generator = generator or torch.Generator(x.device).manual_seed(0)
        found, box, each = point.x, ball.input_box(x), scope == "sample"
        todo = torch.arange(len(x), device=x.device)
        logits = frozen(model, point.weights, each=each, chunk=chunk)
        for step in range(steps if ball.moves_inputs else 0):
            still = best[todo] >= 0
            if not still.all():
                todo = todo[still]
                if each:  # weights of their own are gathered only when examples drop out
                    logits = frozen(model, {n: w[todo] for n, w in point.weights.items()}, each=True, chunk=chunk)
            if not len(todo):
                break
            part = Interval(box.lo[todo], box.hi[todo])
            tried = torch.cat([_proposal(found[todo], part, step, steps, generator) for _ in range(tries)])
            reached, which = nearest(logits(tried), y[todo]).view(tries, -1).min(0)
            tried = tried.view(tries, len(todo), *x.shape[1:])[which, torch.arange(len(todo), device=x.device)]
            lower = reached < best[todo]
            found[todo] = torch.where(spread(lower, x), tried, found[todo])
            best[todo] = torch.where(lower, reached, best[todo])
        return Perturbation(found, point.weights, scope).check(model, x, ball)


def _proposal(x: Tensor, box: Interval, step: int, steps: int, generator: Generator) -> Tensor:
    """`x` with one window of each example at a random end of its box; at first, stripes over the whole."""
    C, H, W = _plane(x.shape[1:])
    signs_at = (len(x), C, 1, W if step == 0 else 1)  # stripes are columns of width 1
    high = torch.rand(signs_at, generator=generator, device=x.device) < 0.5
    new = torch.where(high, box.hi.view(-1, C, H, W), box.lo.view(-1, C, H, W))
    if step == 0:
        return new.view_as(x)
    h, w = window(H, W, share(step, steps))
    rows, columns = _run(len(x), H, h, x.device, generator), _run(len(x), W, w, x.device, generator)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, new, x.view(-1, C, H, W)).view_as(x)


def share(step: int, steps: int) -> float:
    """Part of the positions that a window covers at `step` of `steps`."""
    return SHARE / 2 ** sum(step > part * steps for part in HALVED)


def window(H: int, W: int, part: float) -> tuple[int, int]:
    """Height and width of the square that covers this part of H x W; a run where there is one row."""
    if H == 1:
        return 1, max(1, round(part * W))
    side = max(1, round(math.sqrt(part * H * W)))
    return min(H, side), min(W, side)


def _plane(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width of an input."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (1, shape[0], shape[1]) if len(shape) == 2 else (1, 1, math.prod(shape))


def _run(examples: int, length: int, width: int, device: torch.device, generator: Generator) -> Tensor:
    """(B, length) a run of `width` places at a random position."""
    first = torch.randint(length - width + 1, (examples, 1), generator=generator, device=device)
    at = torch.arange(length, device=device)
    return (at >= first) & (at < first + width)
