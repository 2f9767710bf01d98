"""neuron_pgd.py - joint attack on a dense network where each example has its own weights: one scalar per neuron.

Row lemma: for a given z, {(W + D) z + b + d : |D| <= E, |d| <= E_b} is exactly the box W z + b +- (E |z| + E_b): rows are
independent, and D_r = s_r E_r sgn(z) attains s_r in [-1, 1].  So the weight ball of a dense layer is one scalar s_r per neuron,
and the joint problem is an input-only problem of the network (x, s) -> logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.graph import Dense, dense_chain, recording
from nonsingular.margins import check_labels, margins, negative_margin, worst_margin
from nonsingular.threat import JointBall, Perturbation, Scope


@dataclass(frozen=True, eq=False)
class Shifts:
    """A dense network whose layer k computes W z + b + s_k (eps_k ||z||_1 + eps_b_k), with s_k in [-1, 1]^(B, d_k)."""

    net: Dense
    eps_w: list[float]
    eps_b: list[float]

    def zeros(self, x: Tensor) -> list[Tensor]:
        """s = 0 for every neuron: the unperturbed network."""
        return [x.new_zeros(len(x), len(W)) for W in self.net.weights]

    def __call__(self, x: Tensor, s: list[Tensor]) -> Tensor:
        """(B, K) logits at inputs `x` under shifts `s`; differentiable in x, s and the weights."""
        z = x.flatten(1)
        for k, (W, b) in enumerate(zip(self.net.weights, self.net.biases, strict=True)):
            if k:
                z = self.net.activation(z)
            reach = self.eps_w[k] * z.abs().sum(1, keepdim=True) + self.eps_b[k]
            z = F.linear(z, W, b) + s[k] * reach
        return z

    def realise(self, x: Tensor, s: list[Tensor], ball: JointBall) -> dict[str, Tensor]:
        """The weights (B, *shape), inside their boxes, that these shifts stand for at `x`."""
        net, boxes, found, z = self.net, ball.weight_boxes(self.net.params), dict[str, Tensor](), x.flatten(1)
        for k, (W, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            if k:
                z = net.activation(z)
            W, b = W.detach(), None if b is None else b.detach()
            moved, offset = W.expand(len(x), *W.shape), b
            if self.eps_w[k]:  # W_r + s_r eps sgn(z)
                moved = boxes[net.weight_names[k]].project_(
                    torch.baddbmm(moved, s[k][:, :, None] * self.eps_w[k], z.sign()[:, None])
                )
                found[net.weight_names[k]] = moved
            if b is not None and self.eps_b[k]:
                name = net.bias_names[k]
                assert name is not None
                offset = found[name] = boxes[name].project_(b + s[k] * self.eps_b[k])
            z = torch.bmm(moved, z[:, :, None])[:, :, 0] + (0 if offset is None else offset)
        return found


def shifts(model: nn.Module | Dense, ball: JointBall) -> Shifts:
    """The network (x, s) -> logits of `model` under `ball`.

    Raises UnsupportedModel if the model is not dense, or if one tensor is the weight of two layers: these move together,
    which a scalar per neuron cannot express.
    """
    net = dense_chain(model)
    eps_w, eps_b = net.radii(ball)
    for names, radii in ((net.weight_names, eps_w), (net.bias_names, eps_b)):
        moving = [n for n, r in zip(names, radii, strict=True) if r]
        if shared := {n for n in moving if moving.count(n) > 1}:
            raise UnsupportedModel(
                f"layers share the moving tensor {sorted(map(str, shared))}; use attack 'paper', which moves it as one"
            )
    return Shifts(net, eps_w, eps_b)


def neuron_ascent(
    network: Shifts, x: Tensor, y: Tensor, ball: JointBall, *, steps: int, step: float, loss: Callable[[Tensor, Tensor], Tensor],
    decay: bool = False, generator: Generator | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Signed gradient ascent on (x, s); the last iterate.

    `step` is a fraction of each radius, falling linearly to 0 with `decay`.
    The start is (x, 0), or a uniform random point with a `generator`.  Cost: `steps` forward and backward passes on inputs only.
    """
    box = ball.input_box(x)
    x_adv, s = x.detach().clone(), network.zeros(x)
    if generator is not None:
        x_adv = box.sample(generator)
        s = [t.uniform_(-1, 1, generator=generator) for t in s]
    for i in range(steps):
        scale = step * (1 - i / steps) if decay else step
        with torch.enable_grad():
            point = [t.detach().requires_grad_() for t in (x_adv, *s)]
            g_x, *g_s = torch.autograd.grad(
                loss(network(point[0], point[1:]), y), point, allow_unused=True, materialize_grads=True
            )
        box.project_(x_adv.add_(g_x.sign_(), alpha=scale * ball.eps_x))
        for t, g in zip(s, g_s, strict=True):
            t.add_(g.sign_(), alpha=scale).clamp_(-1, 1)
    return x_adv, s


def neuron_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: JointBall,
    *,
    steps: int = 40,
    restarts: int = 2,
    scope: Scope = "sample",
    generator: Generator | None = None,
) -> Perturbation:
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
        network = shifts(model, ball)
        check_labels(y, len(x), len(network.net.weights[-1]))
        x, y = x.detach().clone(), y.long().clone()
        generator = generator or torch.Generator(x.device).manual_seed(0)
        best_x, best_s = x, network.zeros(x)
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
