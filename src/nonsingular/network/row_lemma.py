"""row_lemma.py - the weight box of a dense network as one scalar per neuron: the row lemma.

For a given z, {(C + D) z + c + d : |D| <= E, |d| <= E_c} is exactly the box C z + c +- (E |z| + E_c): rows are independent, and
D_r = s_r E_r sgn(z) attains s_r in [-1, 1].  Where each example has its own weights, the joint problem is an input-only problem
of the network (x, s) -> logits.  C is the centre of the box: W itself, unless [W - below, W + above] reaches further on one side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.errors import UnsupportedModel
from nonsingular.network.dense import Dense, dense_chain
from nonsingular.network.graph import check_chain
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import Radius, Side, ends, largest


@dataclass(frozen=True, eq=False)
class Shifts:
    """A dense network whose layer k computes C z + c + s_k (E_k |z| + E_c_k), with s_k in [-1, 1]^(B, d_k).

    net: the unperturbed network.  centre: the network at the centre of the weight boxes; `net` itself if all are symmetric.
    eps_w, eps_b: half the width of each layer's box, a number or of the tensor's shape; E |z| is eps ||z||_1 for a number.
    positive: the first layer sees nothing negative, which saves a pass.
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
        found, z = self.zeros(x), self.net.enter(x)
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

    def of(self, point: Perturbation) -> list[Tensor]:
        """The shifts that give every layer what a point's own weights give: (W' - C) z + b' - c = s (E |z| + E_c)."""
        net, found, z = self.net, list[Tensor](), self.net.enter(point.x)
        for k, (name, bias) in enumerate(zip(net.weight_names, net.bias_names, strict=True)):
            if k:
                z = net.activation(z)
            y = torch.bmm(of_each(point, net.params, name), z[:, :, None])[:, :, 0]
            y = y if bias is None else y + of_each(point, net.params, bias)
            reach, away = self.reach(k, z), y - F.linear(z, self.centre.weights[k], self.centre.biases[k])
            found.append(torch.where(reach > 0, away / reach, 0.0))
            z = y
        return found

    def __call__(self, x: Tensor, s: list[Tensor]) -> Tensor:
        """(B, K) logits at inputs `x` under shifts `s`; differentiable in x, s and the weights."""
        z = self.net.enter(x)
        for k, (C, c) in enumerate(zip(self.centre.weights, self.centre.biases, strict=True)):
            if k:
                z = self.net.activation(z)
            y = F.linear(z, C, c)
            z = y if self._fixed(k) else y + s[k] * self.reach(k, z)
        return self.net.out(z)

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
        net, boxes, found, z = self.net, ball.weight_boxes(self.net.params), dict[str, Tensor](), self.net.enter(x)
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


def shifts(model: nn.Module | Dense, ball: JointBall, at: Tensor | None = None) -> Shifts:
    """The network (x, s) -> logits of `model` under `ball`.

    at: examples (B, *input) in whose balls the chain of layers is compared with the model.
    Raises UnsupportedModel if the model is not dense, if the two differ, or if one tensor is the weight of two layers: these move
    together, which a scalar per neuron cannot express.
    """
    net = dense_chain(model)
    if at is not None:
        check_chain(net, model, at, ball)
    eps_w, eps_b = net.radii(ball)
    for names, radii in ((net.weight_names, eps_w), (net.bias_names, eps_b)):
        moving = [n for n, r in zip(names, radii, strict=True) if largest(r)]
        if shared := {n for n in moving if moving.count(n) > 1}:
            raise UnsupportedModel(
                f"layers share the moving tensor {sorted(map(str, shared))}; use attack 'paper', which moves it as one"
            )
    weights = [centred(W, r) for W, r in zip(net.weights, eps_w, strict=True)]
    biases = [(None, 0.0) if b is None else centred(b, r) for b, r in zip(net.biases, eps_b, strict=True)]
    centre = net
    if any(isinstance(r, tuple) for r in (*eps_w, *eps_b)):
        centre = replace(net, weights=tuple(C for C, _ in weights), biases=tuple(c for c, _ in biases))
    return Shifts(net, centre, [E for _, E in weights], [E for _, E in biases])


def centred(p: Tensor, radius: Radius) -> tuple[Tensor, Side]:
    """(C, E): the box of `p` is C +- E.  C is `p` itself where the box is symmetric; E is a number, or of the shape of `p`."""
    below, above = ends(radius)
    centre, half = p, below
    if below is not above:
        shift, half = (above - below) / 2, (above + below) / 2
        centre = p + (shift.to(p) if isinstance(shift, Tensor) else shift)
    return centre, half.to(p).expand_as(p).contiguous() if isinstance(half, Tensor) else half


def of_each(point: Perturbation, params: Mapping[str, Tensor], name: str) -> Tensor:
    """(B, *shape) a tensor of a point, whichever scope it has."""
    w = point.weights.get(name, params[name])
    return w if name in point.weights and point.scope == "sample" else w.detach().expand(len(point.x), *w.shape)
