"""starts.py - where an attack begins, and the network at fixed weights: shared by attacks without gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.calling import held_at, logits_of_each, outputs
from nonsingular.network.copies import check_module
from nonsingular.network.margins import check_labels, is_correct, margins, worst_margin
from nonsingular.network.memory import halving
from nonsingular.network.passes import count
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation

Logits = Callable[[Tensor], Tensor]
"""(R B, *input) -> (R B, K): row r B + b is example b."""


def frozen(model: nn.Module, weights: Mapping[str, Tensor], *, each: bool, chunk: int) -> Logits:
    """The network at fixed weights; `each`: they have a leading dimension B, and example b has weights b.

    Memory of a pass: `chunk` examples, or fewer where memory runs out.
    """
    examples = len(next(iter(weights.values()))) if each and weights else 0
    if examples:
        own = logits_of_each(model)

        def apart(x: Tensor, size: int) -> Tensor:
            count(forward=len(x))
            parts = [{n: w[i : i + size] for n, w in weights.items()} for i in range(0, examples, size)]
            pairs = [pair for run in x.split(examples) for pair in zip(parts, run.split(size), strict=True)]
            return torch.cat([own(w, part) for w, part in pairs])

        return lambda x: halving(partial(apart, x), chunk)
    moved = held_at(model, {} if each else weights)

    def together(x: Tensor, size: int) -> Tensor:
        count(forward=len(x))
        return torch.cat([outputs(moved, part.clone()) for part in x.split(size)])  # its first operation may work in place

    return lambda x: halving(partial(together, x), chunk)


def restarting(run: Callable[[int], Perturbation], chunk: int, generator: Generator | None) -> Perturbation:
    """`run` with `chunk` examples at a time, or fewer where memory runs out; every try draws the same random numbers."""
    before = None if generator is None else generator.get_state()

    def again(size: int) -> Perturbation:
        if generator is not None and before is not None:
            generator.set_state(before)
        return run(size)

    return halving(again, chunk)


def nearest(logits: Tensor, y: Tensor) -> Tensor:
    """(R B,) margin to the runner-up, for labels (B,)."""
    y = y.repeat(len(logits) // max(1, len(y)))
    return worst_margin(margins(logits, y), y)


def spread(flags: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1), which broadcasts over the examples of `like`."""
    return flags.view(-1, *[1] * (like.dim() - 1))


def checked_start(model: nn.Module, x: Tensor, ball: JointBall, scope: Scope, start: Perturbation | None) -> Perturbation:
    """A copy of `start`, or (x, W) without one.  Raises InvalidInput if it is not a point of this ball in this scope."""
    start = usable_start(model, x, ball, scope, start)
    return Perturbation(start.x.clone(), {n: w.clone() for n, w in start.weights.items()}, scope)


def usable_start(
    model: nn.Module, x: Tensor, ball: JointBall, scope: Scope, start: Perturbation | None, box: Interval | None = None
) -> Perturbation:  # fmt: skip
    """The same without a copy, not to be written into.  box: as in `Perturbation.check`."""
    check_scope(scope)
    check_module(model)
    ball.check_domain(x)
    if start is None:
        ball.radii(dict(model.named_parameters()))  # an unknown name in eps_w
        return Perturbation(x.detach(), {}, scope)
    if start.weights and start.scope != scope:
        raise InvalidInput(f"start has weights of scope {start.scope}, the attack has scope {scope}; give both the same scope")
    try:
        start = start.check(model, x, ball, box)
    except AssertionError as e:
        raise InvalidInput(f"start is not a point of this ball: {e}; start from a point of the same or of a smaller ball") from e
    return Perturbation(start.x.detach(), {n: w.detach() for n, w in start.weights.items()}, scope)


def begin(model: nn.Module, x: Tensor, y: Tensor, given: Perturbation, *, moved: bool, chunk: int) -> tuple[Perturbation, Tensor]:
    """The point from which an attack on the inputs begins, and its margins (B,).  given: as `checked_start` returns it.

    moved: whether it may be another point than (x, W).  The weights are those of `given`; each x' is that of `given` or x,
    whichever has the smaller margin at these weights.  W takes the place of the weights of `given` where they have larger
    margins (scope `sample`, per example) or leave a higher accuracy (other scopes).
    """
    scope, each = given.scope, given.scope == "sample"
    logits = frozen(model, given.weights, each=each, chunk=chunk)
    own = logits(x)
    check_labels(y, len(x), own.shape[1])
    if not moved:
        return given, nearest(own, y)
    found, margin, ours = _lower(given.x, logits(given.x), x, own, y)
    if not given.weights:
        return Perturbation(found, {}, scope), margin
    clean = frozen(model, {}, each=False, chunk=chunk)
    x0, margin0, ours0 = _lower(given.x, clean(given.x), x, clean(x), y)
    if each:
        back = margin0 < margin
        params = dict(model.named_parameters())
        weights = {n: torch.where(spread(back, w), params[n].detach(), w) for n, w in given.weights.items()}
        return Perturbation(torch.where(spread(back, x), x0, found), weights, scope), torch.where(back, margin0, margin)
    if is_correct(ours0, y).sum() < is_correct(ours, y).sum():
        return Perturbation(x0, {}, scope), margin0
    return Perturbation(found, given.weights, scope), margin


def _lower(x: Tensor, logits: Tensor, other: Tensor, others: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each example the input of two with the smaller margin; its margin and logits."""
    a, b = nearest(logits, y), nearest(others, y)
    take = b < a
    return torch.where(spread(take, x), other, x), torch.where(take, b, a), torch.where(take[:, None], others, logits)
