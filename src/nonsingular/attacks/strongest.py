"""strongest.py - the default attack, and its parts: the worst of several attacks, and attacks in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.apgd import apgd
from nonsingular.attacks.search.starts import checked_start, frozen, nearest, spread
from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.catalog import Attack, declared
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import gradient, logits_at, recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import attained, is_correct
from nonsingular.network.passes import count
from nonsingular.network.row_lemma import of_each
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.perturbation import Perturbation


def strongest(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope = "sample", start: Perturbation | None = None,
    generator: Generator | None = None, **budget: Any,
) -> Perturbation:  # fmt: skip
    """The worst of `apgd` on the inputs alone, on the weights alone, and on both from there.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode.
    scope: who shares W'.  The worst is taken per example in scope sample, otherwise of one W' with its inputs.
    start: a point of the ball, such as the worst of a smaller one.  It replaces the attacks on inputs alone and weights alone.
    generator: as its members take it.
    budget: arguments of `apgd` in scope sample, otherwise of `shared_apgd`, such as steps.
    By construction no margin (sample) and no accuracy (batch, dataset) is above that of a member at these radii, or of `start`.
    Never changes `model`.  In scope sample the search on an example stops once its prediction has changed.
    Raises as its members do.  Cost: that of its members; one of three with `start`.
    """
    model = classifier(model, x, ball)
    both = ball.moves_inputs and bool(ball.radii(dict(model.named_parameters())))
    member = (
        partial(apgd, model, verdict=True, generator=generator, **budget)
        if scope == "sample"
        else partial(shared_apgd, model, scope=scope, generator=generator, **budget)
    )
    if start is None and both:
        start = worst(model, y, *(member(x, y, ball.scaled(*part)) for part in ((1.0, 0.0), (0.0, 1.0))))
    return member(x, y, ball, start=start)


def ensemble(*attacks: Attack | Callable[..., Perturbation]) -> Attack:
    """The worst of several attacks: of each example in scope sample, otherwise of one W' with its inputs.

    Each begins from the best of those before it, if it takes a start.  A user's own function is a member like any other.
    """
    if not attacks:
        raise InvalidInput("an ensemble has no attacks; give one or more")
    members = [declared(attack) for attack in attacks]

    def together(
        model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope = "sample", start: Perturbation | None = None,
        generator: Generator | None = None,
    ) -> Perturbation:  # fmt: skip
        """The worst of the members, as an attack."""
        best, model = start, classifier(model, x, ball)
        for member in members:
            options: dict[str, Any] = {"start": best} if best is not None and member.starts else {}
            if generator is not None and member.seeded:
                options["generator"] = generator
            found = member(model, x, y, ball, scope=scope, **options)
            best = found if best is None else worst(model, y, found, best)
        assert best is not None
        return best.check(model, x, ball)

    return Attack("+".join(member.name for member in members), together, starts=True, seeded=any(m.seeded for m in members))


def alternating(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope = "sample", start: Perturbation | None = None,
    first: Literal["inputs", "weights"] = "inputs", rounds: int = 2, steps: int = 20,
) -> Perturbation:  # fmt: skip
    """Inputs against fixed weights and weights against fixed inputs, in turn; one round is the sequential attack.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode.
    first: what moves first.  steps: of each move of the inputs: signed steps on the margin, shrinking linearly from the radius.
    The weights move by `apgd`.
    Returns the worst point on the way, never worse than `start`.  Never changes `model`.
    Raises InvalidInput if x or `start` leaves the ball.  Cost: `rounds` x (`steps` passes and an attack on the weights).
    """
    if rounds < 1 or steps < 1:
        raise InvalidInput(f"rounds is {rounds} and steps is {steps}; give 1 or more")
    weights_alone, model = ball.scaled(0.0, 1.0), classifier(model, x, ball)
    with recording(), torch.no_grad():
        best = now = checked_start(model, x, ball, scope, start)
        for turn in range(2 * rounds):
            if (turn % 2 == 0) == (first == "inputs"):
                now = _inputs(model, x, y.long().clone(), ball, now, steps)
            else:
                now = apgd(model, now.x, y, weights_alone, scope=scope, start=now, keep=1, restarts=0)
            best = worst(model, y, now, best)
        return best.check(model, x, ball)


def _inputs(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, point: Perturbation, steps: int) -> Perturbation:
    """Signed steps on the margins at the weights of `point`, from its inputs; the best of each example."""
    logits = frozen(model, point.weights, each=point.scope == "sample", chunk=256)
    box, now, reach = ball.input_box(x), point.x.clone(), ball.reach(x)
    best, lowest = now.clone(), x.new_full((len(x),), torch.inf)
    for i in range(steps + 1):
        with torch.enable_grad():
            at = now.detach().requires_grad_()
            count(backward=len(x))
            margin = nearest(logits(at), y)
            (g,) = gradient(margin.sum(), [at])
        lower = margin.detach() < lowest
        lowest[lower], best[lower] = margin.detach()[lower], now[lower]
        now = box.project_(now - reach * (1 - i / max(1, steps)) * g.sign())
    return Perturbation(best, point.weights, point.scope)


def worst(model: nn.Module, y: Tensor, first: Perturbation, *others: Perturbation) -> Perturbation:
    """The point with the lowest accuracy, then margins; in scope sample, for each example that with its lowest margin."""
    best, logits = first, logits_at(model, first)
    for point in others:
        found = logits_at(model, point)
        if first.scope == "sample":
            lower = attained(found, y) < attained(logits, y)
            best, logits = _chosen(model, lower, point, best), torch.where(lower[:, None], found, logits)
        elif _rank(found, y) < _rank(logits, y):
            best, logits = point, found
    return best


def _rank(logits: Tensor, y: Tensor) -> tuple[int, float]:
    return int(is_correct(logits, y).sum()), attained(logits, y).clamp(min=0).sum().item()


def _chosen(model: nn.Module, take: Tensor, one: Perturbation, other: Perturbation) -> Perturbation:
    params = {n: p.detach() for n, p in model.named_parameters()}
    weights = {
        n: torch.where(spread(take, params[n][None]), of_each(one, params, n), of_each(other, params, n))
        for n in {**one.weights, **other.weights}
    }
    return Perturbation(torch.where(spread(take, one.x), one.x, other.x), weights, "sample")
