"""certified.py - training on what bounds prove: the cross-entropy of certified margins over the joint ball.

An objective composes with others (objectives.py, moved.py):

    in a box                    Certified(eps, e)
    in a box, and attacked      Certified(eps, e, base=JointlyAdversarial(eps, e))
    small boxes                 Certified(eps, e, part=0.4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from nonsingular.bounds.interval import Region, interval_bounds, interval_margins
from nonsingular.bounds.linear import margin_bounds
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.graph import Graph, trace_graph
from nonsingular.network.margins import cross_entropy
from nonsingular.threat.ball import JointBall
from nonsingular.threat.interval import Interval
from nonsingular.threat.radius import Radius, ends
from nonsingular.training.objectives import STEPS, Domain, Loss, LossOf, check_warmup, evaluating, natural, ramp, worst_inputs

GROWTH = 0.8
"""First part of the training, over which the radii and the weight of the certified term grow: much longer than for attacks."""


@dataclass(frozen=True)
class Certified:
    """(1 - alpha) `base` and alpha times the cross-entropy at certified margins, with radii and alpha growing from 0.

    eps_x, eps_w, domain: as in JointBall, moves="weights".
    alpha: 0 to 1, at the end of the warmup.
    bound: "interval", or "crown-ibp": the mean of the better one of a pass back and of the interval, and of the interval,
        whose weight grows with the radii (Zhang et al., arXiv:1906.06316).
    part: of the input radius that the box has: with less than 1 its centre is moved by PGD first (steps of it), so that the box
        lies in the ball and holds its worst points rather than all (Mueller et al., arXiv:2210.04871); the margins are then no
        certificates any more.
    base: an objective; the cross-entropy.  An attack there, such as JointlyAdversarial, mixes what is found with what is proven
        (De Palma et al., arXiv:2305.13991).
    Cost beyond `base`: "interval" about four passes; "crown-ibp" K passes back more.
    Weights of all operations of network/operators.py.
    Raises InvalidInput for invalid settings, UnsupportedModel for a network without rules and for BatchNorm: its statistics
    change with each batch.  Source: Gowal et al., arXiv:1810.12715; weights: arXiv:2102.11935.
    """

    eps_x: Radius
    eps_w: float | Mapping[str, Radius]
    alpha: float = 0.5
    bound: str = "interval"
    part: float = 1.0
    steps: int = STEPS
    warmup: float = GROWTH
    domain: Domain = (0.0, 1.0)
    base: LossOf = natural

    def __post_init__(self) -> None:
        check_warmup(self.warmup)
        for name, value in (("alpha", self.alpha), ("part", self.part)):
            if not 0 <= value <= 1:
                raise InvalidInput(f"{name} is {value}; give a number from 0 to 1")
        if self.bound not in ("interval", "crown-ibp"):
            raise InvalidInput(f"bound is {self.bound!r}; choose interval or crown-ibp")
        _ = self.ball

    @property
    def ball(self) -> JointBall:
        """At its full size."""
        return JointBall(self.eps_x, self.eps_w, self.domain)

    def __call__(self, model: nn.Module) -> Loss:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                raise UnsupportedModel(f"'{name}' is a BatchNorm, whose statistics change in training; leave it out")
        inner, traced = self.base(model), dict[torch.Size, Graph]()

        def graph_of(x: Tensor) -> Graph:
            if x.shape[1:] not in traced:
                with evaluating(model):
                    traced[x.shape[1:]] = trace_graph(model, x.shape[1:])
            return replace(traced[x.shape[1:]], params=dict(model.named_parameters()))

        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            grown = ramp(progress, self.warmup)
            now, weight = self.ball.scaled(grown, grown), self.alpha * grown
            plain = inner(x, y, progress, generator)
            if not weight:
                return plain
            box = now.input_box(x)
            if self.part < 1:
                box = self._around_worst(model, x, y, now, generator)
            where = Region(graph_of(x), box, _boxes(model, now))
            boxes = interval_bounds(where)
            low = interval_margins(where, y, boxes)
            if self.bound == "crown-ibp":
                low = grown * low + (1 - grown) * torch.maximum(low, margin_bounds(where, boxes, y))
            return (1 - weight) * plain + weight * F.cross_entropy(-low, y)  # margins as logits, that of y is 0

        return loss

    def _around_worst(self, model: nn.Module, x: Tensor, y: Tensor, now: JointBall, generator: Generator) -> Interval:
        """A box of `part` of the radius, in the ball, around inputs that PGD moved within the rest of it."""
        centre = worst_inputs(model, x, partial(cross_entropy, y=y), now.scaled(1 - self.part, 0.0), self.steps, generator)
        return now.scaled(self.part, 0.0).input_box(centre)


def _boxes(model: nn.Module, ball: JointBall) -> dict[str, Interval]:
    """The boxes of the weights, as functions of these, so that a gradient goes through."""
    params = dict(model.named_parameters())
    found: dict[str, Interval] = {}
    for name, radius in ball.radii(params).items():
        below, above = ends(radius)
        found[name] = Interval(params[name] - below, params[name] + above)
    return found
