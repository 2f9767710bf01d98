"""best.py - the best of all sound bounds, cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from nonsingular.bounds.alpha import alpha_crown
from nonsingular.bounds.branch import branch_and_bound
from nonsingular.bounds.interval import interval
from nonsingular.bounds.linear import crown, crown_ibp
from nonsingular.bounds.theorem import theorem1
from nonsingular.errors import UnsupportedModel
from nonsingular.network.heads import classifier
from nonsingular.network.margins import margins, worst_margin
from nonsingular.threat.ball import JointBall

Bound = Callable[[nn.Module, Tensor, Tensor, JointBall], Tensor]
CHEAPEST_FIRST: tuple[Bound, ...] = (theorem1, interval, crown_ibp, crown, alpha_crown, partial(branch_and_bound, parts=200))


def best(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball: element by element the largest of all sound bounds.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode, of the operations in network/operators.py.
    Bounds are computed cheapest first, each only for examples that are not decided: verified by a bound before it (all margins
    above 0), or misclassified already at x.  It certifies what any single bound certifies; the margins of a decided example
    may be below what a dearer bound would give.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic.
    Raises UnsupportedModel if no bound has rules for the model.  Cost: up to that of all of them, and 200 parts of branch and
    bound, for an undecided example.
    """
    y, model = y.long(), classifier(model, x, ball)
    found: Tensor | None = None
    refusal: UnsupportedModel | None = None
    todo = torch.arange(len(x), device=x.device)
    for bound in CHEAPEST_FIRST:
        if found is not None and not len(todo):
            break
        try:
            with torch.no_grad():
                low = bound(model, x[todo], y[todo], ball).nan_to_num(nan=-torch.inf)  # not a number: no bound
        except UnsupportedModel as e:
            refusal = e
            continue
        if found is None:
            found = low
            with torch.no_grad():
                todo = (worst_margin(margins(model(x.clone()), y), y) > 0).nonzero().flatten()
        else:
            found = found.index_copy(0, todo, torch.maximum(found[todo], low))
        todo = todo[worst_margin(found[todo], y[todo]) <= 0]
    if found is None:
        assert refusal is not None
        raise refusal
    return found
