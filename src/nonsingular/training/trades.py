"""trades.py - objectives that hold the predictions at the worst inputs against those at the inputs as they are: TRADES, MART."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.margins import cross_entropy
from nonsingular.threat.ball import JointBall
from nonsingular.training.objectives import (
    RADII,
    STEPS,
    Domain,
    Loss,
    check_steps,
    check_warmup,
    evaluating,
    ramp,
    worst_inputs,
)


@dataclass(frozen=True)
class _Held:
    """What both share.

    eps_x: one radius of all inputs.  beta: weight of the second term.  steps: of PGD from a random start; each moves
    2.5 eps_x / steps.  warmup: the radius grows linearly from zero over this first part of the training.
    Cost: steps + 2 passes forward and backward.  Raises InvalidInput for invalid settings.
    """

    eps_x: float
    beta: float = 6.0
    steps: int = STEPS
    warmup: float = RADII
    domain: Domain = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_warmup(self.warmup)
        self.ball.eps_x_number("training")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InvalidInput(f"beta is {self.beta}; give a finite number that is 0 or larger")

    @property
    def ball(self) -> JointBall:
        """At its full size."""
        return JointBall(self.eps_x, 0.0, self.domain)

    def worst(self, model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], progress: float, g: Generator) -> Tensor:
        """Inputs within the radius that the warmup has reached."""
        return worst_inputs(model, x, loss, self.ball.scaled(ramp(progress, self.warmup), 0.0), self.steps, g)


@dataclass(frozen=True)
class Trades(_Held):
    """Cross-entropy of the inputs, and beta times KL(p(x) || p(x')) at the x' that PGD finds for it.

    Source: Zhang et al., arXiv:1901.08573.
    """

    def __call__(self, model: nn.Module) -> Loss:
        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            with evaluating(model), torch.no_grad():
                clean = model(x).softmax(1)
            moved = self.worst(model, x, lambda z: F.kl_div(z.log_softmax(1), clean, reduction="sum"), progress, generator)
            natural, worst = model(x), model(moved)
            apart = F.kl_div(worst.log_softmax(1), natural.log_softmax(1), reduction="batchmean", log_target=True)
            return F.cross_entropy(natural, y) + self.beta * apart

        return loss


@dataclass(frozen=True)
class Mart(_Held):
    """Boosted cross-entropy at the worst inputs, and beta times KL(p(x) || p(x')) of each example by 1 - p_y(x).

    The boosted one adds -log(1 - max_{j != y} p_j(x')).  Wang et al., Improving Adversarial Robustness Requires Revisiting
    Misclassified Examples, ICLR 2020.
    """

    def __call__(self, model: nn.Module) -> Loss:
        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            moved = self.worst(model, x, partial(cross_entropy, y=y), progress, generator)
            natural, worst = model(x), model(moved)
            p, q = natural.softmax(1), worst.softmax(1)
            other = q.scatter(1, y[:, None], 0.0).amax(1)
            boosted = F.cross_entropy(worst, y) - torch.log1p(-other.clamp(max=1 - 1e-6)).mean()
            apart = F.kl_div(worst.log_softmax(1), natural.log_softmax(1), reduction="none", log_target=True).sum(1)
            return boosted + self.beta * (apart * (1 - p.gather(1, y[:, None])[:, 0])).mean()

        return loss
