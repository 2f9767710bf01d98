"""objectives.py - what training minimises, as compositions of attacks and bounds.

An Objective binds a model once (a dense network is traced once) and gives a Loss of (x, y, progress, generator), where `progress`
in [0, 1] is the part of the training that is done.  Everything that needs a warm-up derives it from `progress`.

    standard        natural
    weight perturb  theorem_regularised(natural, ball, alpha=0, beta=b)
    AT              adversarial(ball)
    AT + beta       theorem_regularised(adversarial(ball), ball, alpha=0, beta=b)
    JIWP            theorem_regularised(natural, ball, alpha=a, beta=b)
    joint           jointly_adversarial(ball)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.attacks.joint_pgd import joint_pgd
from nonsingular.attacks.neuron_pgd import neuron_ascent
from nonsingular.bounds.theorem import tau, zeta_printed
from nonsingular.errors import InvalidInput
from nonsingular.network.dense import dense_chain
from nonsingular.network.margins import cross_entropy
from nonsingular.network.row_lemma import shifts
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius

Loss = Callable[[Tensor, Tensor, float, Generator], Tensor]
"""(x (B, *input), y (B,), progress in [0, 1], generator) -> scalar."""
Objective = Callable[[nn.Module], Loss]


def ramp(progress: float, over: float) -> float:
    """Linear warm-up from 0 to 1 over the first part `over` of the training."""
    return 1.0 if over <= 0 else min(1.0, progress / over)


def natural(model: nn.Module) -> Loss:
    """Mean cross-entropy on the inputs as they are."""

    def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
        return F.cross_entropy(model(x), y)

    return loss


def adversarial(ball: JointBall, *, steps: int = 7, warmup: float = 0.6) -> Objective:
    """Mean cross-entropy at the worst inputs that PGD finds from a random start.  Madry et al., arXiv:1706.06083.

    Only ball.eps_x counts; it warms up linearly from zero over the first part `warmup` of the training: without that, a radius
    of 0.2 leaves the default MNIST network near chance.  Each step moves 2.5 eps_x / steps.
    Cost: `steps` + 1 passes forward and backward.
    """

    def bind(model: nn.Module) -> Loss:
        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            now = ball.scaled(ramp(progress, warmup), 0.0)
            training = model.training
            model.eval()
            x_adv = joint_pgd(
                model, x, y, now, steps=steps, step_x=2.5 * now.eps_x_number("training") / steps, generator=generator
            ).x
            model.train(training)
            return F.cross_entropy(model(x_adv), y)

        return loss

    return bind


def theorem_regularised(base: Objective, ball: JointBall, *, alpha: float, beta: float, warmup: float = 0.5) -> Objective:
    """`base` + alpha max_{j != y} tau_jy + beta mean max_{j != y} zeta_jy(x): the loss (4) of arXiv:2102.11935.

    zeta is the printed one at the natural x.  alpha and beta warm up linearly: from the first step on, beta >= 1e-3 collapses
    the default network to chance.  Cost beyond `base`: one forward and backward pass of a dense network and O(B K^2).
    """

    def bind(model: nn.Module) -> Loss:
        inner, net = base(model), dense_chain(model)

        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            rows = torch.arange(len(y), device=y.device)
            total = inner(x, y, progress, generator)
            weight = ramp(progress, warmup)
            if alpha:
                total = total + weight * alpha * tau(net, ball, x.shape[1:])[:, y].amax(0).mean()
            if beta:
                total = total + weight * beta * zeta_printed(net, x, ball)[rows, :, y].amax(1).mean()
            return total

        return loss

    return bind


def jointly_adversarial(ball: JointBall, *, steps: int = 7, warmup: float = 0.6) -> Objective:
    """Mean cross-entropy at the worst (x, W) of each example, found over (x, s) with one scalar s per neuron (neuron_pgd.py).

    Both radii warm up linearly from zero over the first part `warmup` of the training; without that it collapses to chance.
    Cost: `steps` + 1 passes forward and backward, like adversarial training on the inputs alone.  Dense networks only.
    """

    def bind(model: nn.Module) -> Loss:
        net = dense_chain(model)

        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            part = ramp(progress, warmup)
            now = ball.scaled(part, part)
            network = shifts(net, now)
            x_adv, s = neuron_ascent(network, x, y, now, steps=steps, step=2.5 / steps, loss=cross_entropy, generator=generator)
            return F.cross_entropy(network(x_adv, s), y)

        return loss

    return bind


# --- the methods of the paper, and the joint one, each as (ball, alpha, beta) -> Objective ---------------------------------


def _need(method: str, **numbers: Radius | Mapping[str, Radius]) -> None:
    for name, value in numbers.items():
        if isinstance(value, tuple | Tensor):
            raise InvalidInput(f"method '{method}' trains with one {name} for all elements; give a number")
        if not value:
            raise InvalidInput(f"method '{method}' with {name} = 0 is another method; give {name} a value above 0")


def standard(ball: JointBall, alpha: float, beta: float) -> Objective:
    """Plain training."""
    return natural


def weight_perturb(ball: JointBall, alpha: float, beta: float) -> Objective:
    """The beta term alone on plain training."""
    _need("weight-perturb", eps_w=ball.eps_w, beta=beta)
    return theorem_regularised(natural, ball, alpha=0, beta=beta)


def at(ball: JointBall, alpha: float, beta: float) -> Objective:
    """Adversarial training on the inputs."""
    _need("at", eps_x=ball.eps_x)
    return adversarial(ball)


def at_beta(ball: JointBall, alpha: float, beta: float) -> Objective:
    """Adversarial training on the inputs with the beta term."""
    _need("at-beta", eps_x=ball.eps_x, eps_w=ball.eps_w, beta=beta)
    return theorem_regularised(adversarial(ball), ball, alpha=0, beta=beta)


def jiwp(ball: JointBall, alpha: float, beta: float) -> Objective:
    """Joint input-weight perturbation: both terms, no inner maximisation."""
    _need("jiwp", eps_x=ball.eps_x, eps_w=ball.eps_w, alpha=alpha, beta=beta)
    return theorem_regularised(natural, ball, alpha=alpha, beta=beta)


def joint(ball: JointBall, alpha: float, beta: float) -> Objective:
    """Adversarial training on inputs and neurons together."""
    _need("joint", eps_x=ball.eps_x, eps_w=ball.eps_w)
    return jointly_adversarial(ball)
