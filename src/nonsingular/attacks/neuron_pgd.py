"""neuron_pgd.py - joint attack on a dense network where each example has its own weights: one scalar per neuron.

Row lemma: for a given z, {(C + D) z + c + d : |D| <= E, |d| <= E_c} is exactly the box C z + c +- (E |z| + E_c): rows are
independent, and D_r = s_r E_r sgn(z) attains s_r in [-1, 1].  So the weight box of a dense layer is one scalar s_r per neuron,
and the joint problem is an input-only problem of the network (x, s) -> logits.  C is the centre of the box: W itself, unless the
box [W - below, W + above] reaches further on one side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.graph import Dense, dense_chain, recording
from nonsingular.margins import check_labels, margins, negative_margin, worst_margin
from nonsingular.threat import JointBall, Perturbation, Radius, Scope, Side, ends, largest


@dataclass(frozen=True, eq=False)
class Shifts:
    """A dense network whose layer k computes C z + c + s_k (E_k |z| + E_c_k), with s_k in [-1, 1]^(B, d_k).

    net: the unperturbed network.  centre: the network at the centre of the weight boxes; `net` itself if all are symmetric.
    eps_w, eps_b: half the width of each layer's box, a number or of the tensor's shape; E |z| is eps ||z||_1 for a number.
    positive: no input is negative, which saves a pass.
    """

    net: Dense
    centre: Dense
    eps_w: list[Side]
    eps_b: list[Side]
    positive: bool = False

    def zeros(self, x: Tensor) -> list[Tensor]:
        """s = 0 for every neuron: the centre of the boxes."""
        return [x.new_zeros(len(x), len(W)) for W in self.net.weights]

    def start(self, x: Tensor) -> list[Tensor]:
        """The shifts that stand for the unperturbed network at `x`: 0 where the box is symmetric."""
        found, z = self.zeros(x), x.flatten(1)
        if self.centre is self.net:
            return found
        with torch.no_grad():
            for k, (W, b) in enumerate(zip(self.net.weights, self.net.biases, strict=True)):
                if k:
                    z = self.net.activation(z)
                # W z + b = C z + c + s reach; |(W - C) z + b - c| <= E |z| + E_c = reach, as (W, b) lies in its box
                reach, offset = self.reach(k, z), None if b is None else b - cast(Tensor, self.centre.biases[k])
                away = F.linear(z, W - self.centre.weights[k], offset)
                found[k] = torch.where(reach > 0, away / reach, 0.0).clamp_(-1, 1)
                z = F.linear(z, W, b)
        return found

    def __call__(self, x: Tensor, s: list[Tensor]) -> Tensor:
        """(B, K) logits at inputs `x` under shifts `s`; differentiable in x, s and the weights."""
        z = x.flatten(1)
        for k, (C, c) in enumerate(zip(self.centre.weights, self.centre.biases, strict=True)):
            if k:
                z = self.net.activation(z)
            y = F.linear(z, C, c)
            z = y if self._fixed(k) else y + s[k] * self.reach(k, z)
        return z

    def _fixed(self, k: int) -> bool:
        E, E_b = self.eps_w[k], self.eps_b[k]
        return not (isinstance(E, Tensor) or isinstance(E_b, Tensor) or E or E_b)

    def reach(self, k: int, z: Tensor) -> Tensor:
        """(B, d_k or 1): how far weights and bias of layer k move each of its neurons at `z`."""
        E = self.eps_w[k]
        size = z if k or self.positive else z.abs()  # an activation is not negative
        return (F.linear(size, E) if isinstance(E, Tensor) else E * size.sum(1, keepdim=True)) + self.eps_b[k]

    def realise(self, x: Tensor, s: list[Tensor], ball: JointBall) -> dict[str, Tensor]:
        """The weights (B, *shape), inside their boxes, that these shifts stand for at `x`."""
        net, boxes, found, z = self.net, ball.weight_boxes(self.net.params), dict[str, Tensor](), x.flatten(1)
        for k, (C, c) in enumerate(zip(self.centre.weights, self.centre.biases, strict=True)):
            if k:
                z = net.activation(z)
            C, c = C.detach(), None if c is None else c.detach()
            offset, y = c, None
            if (name := net.weight_names[k]) in boxes:  # C_r + s_r E_r sgn(z)
                E, sign = self.eps_w[k], z.sign()[:, None]
                moved = C.expand(len(x), *C.shape)
                moved = found[name] = boxes[name].project_(
                    moved + E * torch.bmm(s[k][:, :, None], sign)
                    if isinstance(E, Tensor)
                    else torch.baddbmm(moved, s[k][:, :, None] * E, sign)
                )
                y = torch.bmm(moved, z[:, :, None])[:, :, 0]
            if c is not None and (name := net.bias_names[k]) in boxes:
                offset = found[name] = boxes[name].project_(c + s[k] * self.eps_b[k])
            z = (F.linear(z, C) if y is None else y) + (0 if offset is None else offset)
        return found


def shifts(model: nn.Module | Dense, ball: JointBall) -> Shifts:
    """The network (x, s) -> logits of `model` under `ball`.

    Raises UnsupportedModel if the model is not dense, or if one tensor is the weight of two layers: these move together,
    which a scalar per neuron cannot express.
    """
    net = dense_chain(model)
    eps_w, eps_b = net.radii(ball)
    for names, radii in ((net.weight_names, eps_w), (net.bias_names, eps_b)):
        moving = [n for n, r in zip(names, radii, strict=True) if largest(r)]
        if shared := {n for n in moving if moving.count(n) > 1}:
            raise UnsupportedModel(
                f"layers share the moving tensor {sorted(map(str, shared))}; use attack 'paper', which moves it as one"
            )
    weights = [_centred(W, r) for W, r in zip(net.weights, eps_w, strict=True)]
    biases = [(None, 0.0) if b is None else _centred(b, r) for b, r in zip(net.biases, eps_b, strict=True)]
    centre = net
    if any(isinstance(r, tuple) for r in (*eps_w, *eps_b)):
        centre = replace(net, weights=tuple(C for C, _ in weights), biases=tuple(c for c, _ in biases))
    return Shifts(net, centre, [E for _, E in weights], [E for _, E in biases])


def _centred(p: Tensor, radius: Radius) -> tuple[Tensor, Side]:
    """(C, E): the box of `p` is C +- E, and C is differentiable in `p`.  E is a number, or of the shape of `p`."""
    below, above = ends(radius)
    centre, half = p, below
    if below is not above:
        shift, half = (above - below) / 2, (above + below) / 2
        centre = p + (shift.to(p) if isinstance(shift, Tensor) else shift)
    return centre, half.to(p).expand_as(p).contiguous() if isinstance(half, Tensor) else half


def neuron_ascent(
    network: Shifts, x: Tensor, y: Tensor, ball: JointBall, *, steps: int, step: float, loss: Callable[[Tensor, Tensor], Tensor],
    decay: bool = False, generator: Generator | None = None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Signed gradient ascent on (x, s); the last iterate.

    `step` is a fraction of each radius, falling linearly to 0 with `decay`.
    The start is (x, W), or a uniform random point with a `generator`.  Cost: `steps` forward and backward passes on inputs only.
    """
    box = ball.input_box(x)
    if generator is None:
        x_adv, s = x.detach().clone(), network.start(x)
    else:
        x_adv = box.sample(generator)
        s = [t.uniform_(-1, 1, generator=generator) for t in network.zeros(x)]
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
