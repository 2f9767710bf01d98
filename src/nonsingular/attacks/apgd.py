"""apgd.py - adaptive gradient descent on the margin over inputs and weights, for every network.

Each example minimises its own margin over its own (x', W').  search/descent.py searches a `Space`: the inputs, and of the weights
one scalar per neuron (dense layers), one per output channel and then every element (kernels), or every element at once (networks
whose operations are not known).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.search.descent import Budget, search
from nonsingular.attacks.search.graph_unknowns import graph_space
from nonsingular.attacks.search.neuron_unknowns import shift_space
from nonsingular.attacks.search.starts import checked_start
from nonsingular.attacks.search.unknowns import Space
from nonsingular.attacks.search.weight_unknowns import tensor_space
from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.errors import UnsupportedModel
from nonsingular.network.calling import logits_at, outputs, products, recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import attained, check_labels
from nonsingular.network.row_lemma import of_each
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.perturbation import Perturbation


def apgd(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope = "sample", start: Perturbation | None = None,
    steps: int | None = None, restarts: int = 24, targets: int = 9, keep: int = 4, rounds: int = 3, verdict: bool = False,
    generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Adaptive gradient descent over inputs and weights.  Each example has its own W' (sample), or all share one: `shared_apgd`.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, differentiable, in eval mode.
    start: a point of the ball, such as what was found in a smaller one: two of the random runs begin there instead.
    steps: of each run, 8 by default (`shared_apgd`: 4).  First comes a run from (x, W) on the cross-entropy, with those from
        `start`, and moves of all unknowns to the ends that the gradient points to.  Then runs from (x, W) on the margin to each
        of the `targets` nearest classes, and from `restarts` random points, every other one a corner (default seed 0).
    keep: runs with the smallest margins that go on: `steps` more on the margin, then `rounds` of a local search, which flips
        the best single neuron (output channel) and moves to the ends.  0: nothing but the first run.
    verdict: stop with an example once its prediction has changed; otherwise its margin is minimised to the end.
    Scopes batch and dataset use `steps` and `start` alone.  What follows is for scope sample.
    Returns a Perturbation with the weights written out; memory: a few times B x parameters.
    Its worst margins are never above those at `start` and at (x, W).  Never changes `model`.
    Raises InvalidInput if x or `start` leaves the ball, or if the logits carry no gradient.
    Cost: about (targets + 1 + restarts + keep) x steps passes forward and backward, and rounds x keep x FLIPS forward; in dense
    layers and in the runs over few unknowns without a gradient on a weight matrix.
    Source: the steps, arXiv:2003.01690; the scalars, the row lemma of network/row_lemma.py.
    """
    check_scope(scope)
    model = classifier(model, x, ball)
    if scope != "sample":
        given: dict[str, Any] = {} if steps is None else {"steps": steps}
        return shared_apgd(model, x, y, ball, scope=scope, start=start, generator=generator, **given)
    with recording(), torch.no_grad():
        check_labels(y, len(x), outputs(model, x[:1].clone()).shape[1] if len(x) else 0)
        x, y = x.detach().clone(), y.long().clone()
        space = _space(model, x, y, ball)
        known = [Perturbation(x, scope="sample")]
        if start is not None:
            known.append(checked_start(model, x, ball, scope, start))
        budget = Budget(8 if steps is None else steps, restarts, targets, keep, rounds, verdict)
        generator = generator or torch.Generator(x.device).manual_seed(0)
        with products("medium"):
            v = search(space, _begin(space, start), budget, generator)
        return _best(model, y, space, v, known).check(model, x, ball)


def _space(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Space:
    for known in (shift_space, graph_space):
        try:
            return known(model, x, y, ball)
        except UnsupportedModel:
            continue
    return tensor_space(model, x, y, ball)


def _begin(space: Space, start: Perturbation | None) -> Tensor:
    """(S, B, n) the start, and the start rounded to ends."""
    if start is None:
        return space.origin[None][:0]
    v = space.at(start)
    return torch.stack([v, _rounded(space.origin, v)])


def _rounded(origin: Tensor, v: Tensor) -> Tensor:
    """v with each unknown that is nearer to an end of [-1, 1] than to the origin moved to that end."""
    end = (v - origin).sign()
    return torch.where((v - origin).abs() > (end - origin).abs() / 2, end, v)


def _best(model: nn.Module, y: Tensor, space: Space, v: Tensor, known: list[Perturbation]) -> Perturbation:
    """For each example the point with the lowest margin: that of v, or one of `known`.  Margins are those of the tensors."""
    found = space.realise(v)
    if not len(y):
        return found
    x, weights = found.x, dict(found.weights)
    lowest = _worst(model, found, y)
    params = dict(model.named_parameters())
    for point in known:
        margin = _worst(model, point, y)
        rows = (margin <= lowest).nonzero().flatten()
        lowest[rows], x[rows] = margin[rows], point.x[rows]
        for name, w in weights.items():
            w[rows] = of_each(point, params, name)[rows]
    return Perturbation(x, weights, "sample")


def _worst(model: nn.Module, point: Perturbation, y: Tensor) -> Tensor:
    return attained(logits_at(model, point), y)
