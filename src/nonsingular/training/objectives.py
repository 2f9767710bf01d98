"""objectives.py - what training lowers, as values that compose attacks and bounds.

An objective is a function model -> Loss: it binds a network once (a dense network is traced once) and gives a Loss of
(x, y, progress, generator), where `progress` in [0, 1] is the part of the training that is done.  Everything that needs a warm-up
derives it from `progress`.  The values here carry all their settings; any other function model -> Loss trains as well.

    standard        natural
    weight perturb  TheoremRegularised(natural, eps_w=e, beta=b)
    AT              Adversarial(eps)
    AT + beta       TheoremRegularised(Adversarial(eps), eps_w=e, beta=b)
    JIWP            TheoremRegularised(natural, eps_x=eps, eps_w=e, alpha=a, beta=b)
    joint           JointlyAdversarial(eps, e)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.attacks.neuron_pgd import neuron_ascent
from nonsingular.bounds.theorem import tau, zeta_printed
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.calling import gradient
from nonsingular.network.channels import Channels, channels
from nonsingular.network.dense import dense_chain
from nonsingular.network.margins import cross_entropy
from nonsingular.network.row_lemma import Shifts, shifts
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius

Loss = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]
"""(x (B, *input), y (B,), progress in [0, 1], generator) -> scalar."""
LossOf = Callable[[nn.Module], Loss]
"""An objective: a network -> its loss."""
Domain = tuple[float, float] | None
STEPS = 7
"""Steps of the inner maximisations."""
RADII, TERMS = 0.6, 0.5
"""The first part of the training, over which radii, and over which alpha and beta, grow from 0."""


def ramp(progress: float, over: float) -> float:
    """Linear warm-up from 0 to 1 over the first part `over` of the training."""
    return 1.0 if over <= 0 else min(1.0, progress / over)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """The model in eval mode inside, in its own afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def worst_inputs(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], ball: JointBall, steps: int, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Inputs of the ball with a large `loss` of the logits (a sum over examples): the last of `steps` of PGD in eval mode.

    From a random start, each step 2.5 eps_x / steps.  As `joint_pgd` with fixed weights, without a copy of the network.
    """
    box, size = ball.input_box(x), 2.5 * ball.eps_x_number("training") / steps
    moved = box.sample(generator)
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            point = moved.detach().requires_grad_()
            (slope,) = gradient(loss(model(point.clone())), [point])  # a copy: its first operation may work in place
            moved = box.project_(point.detach().add_(slope.sign(), alpha=size))
    return moved


def natural(model: nn.Module) -> Loss:
    """Mean cross-entropy on the inputs as they are."""

    def loss(x: Tensor, y: Tensor, progress: float, generator: torch.Generator) -> Tensor:
        return F.cross_entropy(model(x), y)

    return loss


@dataclass(frozen=True)
class Adversarial:
    """`base` at the worst inputs that PGD on the cross-entropy finds from a random start.  Madry et al., arXiv:1706.06083.

    eps_x: one radius of all inputs, in the units of the data.  domain: as in JointBall.  base: an objective; the cross-entropy.
    steps: of PGD; each moves 2.5 eps_x / steps.
    warmup: the radius grows linearly from zero over this first part of the training: without that, a radius of 0.2 leaves the
        default MNIST network near chance.
    Cost: `steps` + 1 passes forward and backward.  Raises InvalidInput for invalid settings.
    """

    eps_x: float
    steps: int = STEPS
    warmup: float = RADII
    domain: Domain = (0.0, 1.0)
    base: LossOf = natural

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_warmup(self.warmup)
        self.ball.eps_x_number("training")

    @property
    def ball(self) -> JointBall:
        """At its full size."""
        return JointBall(self.eps_x, 0.0, self.domain)

    def __call__(self, model: nn.Module) -> Loss:
        ball, steps, warmup, inner = self.ball, self.steps, self.warmup, self.base(model)

        def loss(x: Tensor, y: Tensor, progress: float, generator: torch.Generator) -> Tensor:
            now = ball.scaled(ramp(progress, warmup), 0.0)
            return inner(worst_inputs(model, x, partial(cross_entropy, y=y), now, steps, generator), y, progress, generator)

        return loss


@dataclass(frozen=True)
class TheoremRegularised:
    """`base` + alpha max_{j != y} tau_jy + beta mean max_{j != y} zeta_jy(x): the loss (4) of arXiv:2102.11935.

    base: an objective.  eps_x, eps_w: radii as in JointBall; tau is of both, zeta of eps_w alone.
    zeta is the printed one at the natural x.
    warmup: alpha and beta grow linearly from zero over this first part of the training: from the first step on, beta >= 1e-3
        collapses the default network to chance.
    Cost beyond `base`: one forward and backward pass of a dense network and O(B K^2).  Dense networks only (UnsupportedModel).
    Raises InvalidInput for invalid settings.
    """

    base: LossOf = natural
    eps_x: Radius = 0.0
    eps_w: float | Mapping[str, Radius] = 0.0
    alpha: float = 0.0
    beta: float = 0.0
    warmup: float = TERMS

    def __post_init__(self) -> None:
        if not callable(self.base):  # what a user gives
            raise InvalidInput(f"base is {self.base!r}; give an objective, e.g. Adversarial(eps_x=0.1)")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} is {value}; give a finite number that is 0 or larger")
        check_warmup(self.warmup)
        _ = self.ball  # its radii are checked

    @property
    def ball(self) -> JointBall:
        """tau and zeta are of a ball of any domain."""
        return JointBall(self.eps_x, self.eps_w, None)

    def __call__(self, model: nn.Module) -> Loss:
        inner, net, ball = self.base(model), dense_chain(model), self.ball
        alpha, beta, warmup = self.alpha, self.beta, self.warmup

        def loss(x: Tensor, y: Tensor, progress: float, generator: torch.Generator) -> Tensor:
            rows = torch.arange(len(y), device=y.device)
            total = inner(x, y, progress, generator)
            weight = ramp(progress, warmup)
            if alpha:
                total = total + weight * alpha * tau(net, ball, x.shape[1:])[:, y].amax(0).mean()
            if beta:
                total = total + weight * beta * zeta_printed(net, x, ball)[rows, :, y].amax(1).mean()
            return total

        return loss


@dataclass(frozen=True)
class JointlyAdversarial:
    """Mean cross-entropy at the worst (x, W) of each example, found over (x, s): one scalar s per neuron of a dense network
    (neuron_pgd.py), one per output channel of any other network of linear layers and convolutions (network/channels.py).

    eps_x, eps_w, domain: as in JointBall.  steps: of the inner ascent; each moves 2.5 / steps of each radius.
    warmup: both radii grow linearly from zero over this first part of the training; without that it collapses to chance.
    Cost: `steps` + 1 passes forward and backward, like adversarial training on the inputs alone.
    Raises InvalidInput for invalid settings, UnsupportedModel for a tensor that moves and has neither neurons nor channels.
    """

    eps_x: Radius
    eps_w: float | Mapping[str, Radius]
    steps: int = STEPS
    warmup: float = RADII
    domain: Domain = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_steps(self.steps)
        check_warmup(self.warmup)
        _ = self.ball  # its radii are checked

    @property
    def ball(self) -> JointBall:
        """At its full size."""
        return JointBall(self.eps_x, self.eps_w, self.domain)

    def __call__(self, model: nn.Module) -> Loss:
        ball, steps, warmup = self.ball, self.steps, self.warmup
        bound = _moving(model)

        def loss(x: Tensor, y: Tensor, progress: float, generator: torch.Generator) -> Tensor:
            part = ramp(progress, warmup)
            now = ball.scaled(part, part)
            network = bound(now)
            with evaluating(model):
                x_adv, s = neuron_ascent(
                    network, x, y, now, steps=steps, step=2.5 / steps, loss=cross_entropy, generator=generator
                )
            return F.cross_entropy(network(x_adv, s), y)

        bound(ball)  # what has no rule is refused before the first batch
        return loss


def _moving(model: nn.Module) -> Callable[[JointBall], Shifts | Channels]:
    """The network as a function of its input and one scalar per neuron or channel, in a ball."""
    try:
        return partial(shifts, dense_chain(model))
    except UnsupportedModel:
        return partial(channels, model)


def check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"steps is {steps!r}; give a whole number of 1 or more")


def check_warmup(warmup: float) -> None:
    if not 0 <= warmup <= 1:
        raise InvalidInput(f"warmup is {warmup}; give the part of the training that it lasts, from 0 (none) to 1")


# --- by name: what the entries of the catalog stand for beside the values themselves -----------------------------------------


def standard() -> LossOf:
    """Plain training."""
    return natural


def at_beta(
    *, eps_x: float, eps_w: float, beta: float, steps: int = STEPS, warmup: float | None = None, domain: Domain = (0.0, 1.0)
) -> TheoremRegularised:
    """Adversarial training on the inputs with the beta term.  warmup: of both; by default each has its own."""
    base = Adversarial(eps_x, steps, RADII if warmup is None else warmup, domain)
    return TheoremRegularised(base, eps_w=eps_w, beta=beta, warmup=TERMS if warmup is None else warmup)
