"""branch.py - branch and bound: the signs of open hinges are fixed, one at a time, until every part of the region is decided.

How a part is bounded, and which neuron is split: parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nonsingular.bounds.interval import region
from nonsingular.bounds.linear import pieces
from nonsingular.bounds.parts import Search, part_of
from nonsingular.bounds.verdicts import Verdicts
from nonsingular.network.calling import recording
from nonsingular.network.heads import classifier
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation


def branch_and_bound(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, parts: int = 2000) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball, by branch and bound until all signs are known; column y is 0.

    x: (B, *input) inside ball.domain.  y: (B,).  model: in eval mode, of the operations in network/operators.py.
    parts: largest number of parts bounded for an example.
    Guarantee: holds for every x' and every W' of the ball, each example with its own W' (scope `sample`), in exact arithmetic.
    Raises UnsupportedModel without a rule for an operation.  Cost: that of crown, and for each part about 30 passes back from
    one logit.  Source: arXiv:2103.06624 on inputs; weights: the rules of products.py.
    """
    return search(model, x, y, ball, parts=parts).lower


def search(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, known: Perturbation | None = None, lower: Tensor | None = None,
    parts: int = 2000, seconds: float = math.inf, report: Callable[[int], None] = lambda decided: None,
) -> Verdicts:  # fmt: skip
    """A verdict for each example.  Arguments and errors: as in `branch_and_bound`.

    known: an attack's perturbation (scope "sample"), to start from.  lower: (B, K) sound bounds that are known already.
    seconds: time for an example on average; the search ends after len(x) times that, or `parts` parts an example.
    """
    y, model = y.long(), classifier(model, x, ball)
    verdicts: list[Verdicts] = []
    with recording():
        whole, still = region(model, x.clone(), y, ball), model
        done = 0
        for part, labels in pieces(whole, y, 64):
            at = slice(done, done + len(labels))
            tree = Search(part, labels, still, x[at], known and part_of(known, at), None if lower is None else lower[at])
            tree.run(parts, seconds * len(labels), report)
            verdicts.append(tree.verdicts())
            done += len(labels)
    points = [v.perturbation for v in verdicts]
    weights = {n: torch.cat([p.weights[n] for p in points]) for n in points[0].weights}
    return Verdicts(
        tuple(s for v in verdicts for s in v.status), torch.cat([v.lower for v in verdicts]),
        torch.cat([v.upper for v in verdicts]), Perturbation(torch.cat([p.x for p in points]), weights, "sample"),
        torch.cat([v.parts for v in verdicts]),
    )  # fmt: skip
