"""neuron_pgd.py - joint attack on a dense network where each example has its own weights: a scalar per neuron (row_lemma.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.calling import recording
from nonsingular.network.channels import Channels
from nonsingular.network.heads import classifier
from nonsingular.network.margins import check_labels, margins, negative_margin, worst_margin
from nonsingular.network.passes import count
from nonsingular.network.row_lemma import Shifts, shifts
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.perturbation import Perturbation


def neuron_ascent(
    network: Shifts | Channels, x: Tensor, y: Tensor, ball: JointBall, *, steps: int, step: float,
    loss: Callable[[Tensor, Tensor], Tensor], decay: bool = False, generator: Generator | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Signed gradient ascent on (x, s); the last iterate.

    `step` is a fraction of each radius, falling linearly to 0 with `decay`.
    The start is (x, W), or a uniform random point with a `generator`.  Cost: `steps` forward and backward passes on inputs only.
    """
    box, reach = ball.input_box(x), ball.reach(x)
    if generator is None:
        x_adv, s = x.detach().clone(), network.start(x)
    else:
        x_adv = box.sample(generator)
        s = [t.uniform_(-1, 1, generator=generator) for t in network.zeros(x)]
    for i in range(steps):
        scale = step * (1 - i / steps) if decay else step
        with torch.enable_grad():
            point = [t.detach().requires_grad_() for t in (x_adv, *s)]
            count(forward=len(x), backward=len(x))
            g_x, *g_s = torch.autograd.grad(
                loss(network(point[0], point[1:]), y), point, allow_unused=True, materialize_grads=True
            )
        box.project_(x_adv.add_(g_x.sign_().mul_(scale * reach)))
        for t, g in zip(s, g_s, strict=True):
            t.add_(g.sign_(), alpha=scale).clamp_(-1, 1)
    return x_adv, s


def neuron_pgd(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 40, restarts: int = 2, scope: Scope = "sample",
    generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Signed gradient ascent on the margin over the input and one scalar per neuron; each example has its own W'.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: a dense network, in eval mode.
    The first run starts at (x, W), each restart at a random point of the ball (seed 0 without a `generator`);
    per example the run with the smallest final margin is kept, and the starting point if no run lowers it.
    Returns a Perturbation of scope "sample" with the weights written out: memory B x parameters.  Never changes `model`.
    Raises UnsupportedModel if the model is not dense, InvalidInput if x leaves the domain or for another scope.
    Cost: (1 + restarts) x steps passes forward and backward to the inputs; no gradient on a weight matrix.
    """
    if scope != "sample":
        raise InvalidInput(f"attack 'neuron' gives each example its own weights (scope sample); use 'paper' for scope {scope}")
    with recording(), torch.no_grad():
        model = classifier(model, x, ball)
        network = shifts(model, ball, x)
        check_labels(y, len(x), network.net.classes)
        x, y = x.detach().clone(), y.long().clone()
        generator = generator or torch.Generator(x.device).manual_seed(0)
        best_x, best_s = x, network.start(x)
        best = worst_margin(margins(network(best_x, best_s), y), y)
        for run in range(1 + restarts):
            x_adv, s = neuron_ascent(
                network, x, y, ball, steps=steps, step=0.5, loss=negative_margin, decay=True, generator=generator if run else None
            )
            margin = worst_margin(margins(network(x_adv, s), y), y)
            lower = margin < best
            best = torch.where(lower, margin, best)
            best_x = torch.where(lower.view(-1, *[1] * (x.dim() - 1)), x_adv, best_x)
            best_s = [torch.where(lower[:, None], new, old) for new, old in zip(s, best_s, strict=True)]
        return Perturbation(best_x, network.realise(best_x, best_s, ball), "sample").check(model, x, ball)
