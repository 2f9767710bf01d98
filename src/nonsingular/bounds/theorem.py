"""theorem.py - Theorem 1 of arXiv:2102.11935 on a dense network, as printed and repaired.

For every |x' - x| <= eps_x and |W'^m - W^m| <= eps_m:   f'_i(x') - f'_j(x')  <=  f_i(x) - f_j(x) + tau_ij + zeta_ij(x).

The printed zeta is no upper bound for three layers or more: it propagates h* through W^m + eps_m, and where that has a negative
entry a larger h* *lowers* the next one.  The repaired zeta replaces ||h^k*||_1 by the sum of true upper bounds of the
perturbed activations (interval.py); the telescoping proof then holds word for word.

eps_m is one number per tensor.  For a box with other ends (per channel, per element, asymmetric) it is the largest distance of an
end: the box lies inside that ball, so the bound holds and is looser than one that knows the box.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.bounds.interval import hidden_upper_bounds
from nonsingular.graph import Dense, check_chain, dense_chain
from nonsingular.margins import check_labels, margins
from nonsingular.threat import JointBall, largest


def tau(model: nn.Module | Dense, ball: JointBall) -> Tensor:
    """(K, K) what moving the input costs the margin of every class pair, eq. (2); differentiable in the weights.

    tau_ij = eps_x s (||W^L_i - W^L_j||_1 + 2 d_L eps_L) prod_{m<L} (||W^m||_inf + d_m eps_m); the diagonal is 0.
    s is 1, or by how much a normalisation of the inputs widens distances: 1 / the smallest std.
    Raises UnsupportedModel for a model that is not dense with a non-negative, monotone, 1-Lipschitz activation.
    """
    net = dense_chain(model)
    eps, _ = _largest_radii(net, ball)
    outer = net.weights[-1]
    gain = _gap(outer) + 2 * outer.shape[1] * eps[-1]
    for W, e in zip(net.weights[:-1], eps[:-1], strict=True):
        gain = gain * (_norm(W) + W.shape[1] * e)
    return _off_diagonal(ball.eps_x * net.stretch * gain)


def zeta(model: nn.Module | Dense, x: Tensor, ball: JointBall) -> Tensor:
    """(B, K, K) what moving the weights costs the margin of every class pair at the natural `x`; sound for every depth.

    x: (B, *input).  Differentiable in weights and inputs.  Cost: an interval forward pass.
    """
    net = dense_chain(model)
    eps_w, eps_b = _largest_radii(net, ball)
    upper = hidden_upper_bounds(net, x, eps_w, eps_b)
    return _zeta(net, [net.enter(x).abs().sum(1), *(u.sum(1) for u in upper)], eps_w, eps_b)


def zeta_printed(model: nn.Module | Dense, x: Tensor, ball: JointBall) -> Tensor:
    """(B, K, K) eq. (3) as printed: for reproduction and training.  Not a bound for three layers or more."""
    net = dense_chain(model)
    eps_w, eps_b = _largest_radii(net, ball)
    z = net.enter(x)
    norms = [z.abs().sum(1)]
    for k, (W, b) in enumerate(zip(net.weights[:-1], net.biases[:-1], strict=True)):
        # W* z for W^1* = W^1 + eps_1 sgn(x)^T and W^m* = W^m + eps_m: both add eps * ||z||_1 to every row
        z = net.activation(F.linear(z, W, b) + eps_w[k] * norms[-1][:, None] + eps_b[k])
        norms.append(z.abs().sum(1))
    return _zeta(net, norms, eps_w, eps_b)


def theorem1(model: nn.Module | Dense, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) lower bounds of logit_y - logit_j over the joint ball, by the repaired theorem; column y is 0.

    Guarantee: holds for every x' in the input ball (with or without a domain) and every W' in the weight ball, each example with
    its own W' (scope `sample`), up to the rounding of the arithmetic.
    A box of weights that is not one number either way is widened to the smallest such ball around it.
    x: (B, *input).  y: (B,).  Raises UnsupportedModel outside the hypotheses.  Cost: about three forward passes and O(B K^2).
    """
    net = dense_chain(model)
    ball.check_domain(x)
    check_chain(net, model, x, ball)
    return _lower_margins(net, x, y, ball, zeta(net, x, ball))


def theorem1_printed(model: nn.Module | Dense, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) the margins that the theorem claims as printed.  No certificate: false for three layers or more."""
    net = dense_chain(model)
    return _lower_margins(net, x, y, ball, zeta_printed(net, x, ball))


def _largest_radii(net: Dense, ball: JointBall) -> tuple[list[float], list[float]]:
    """One number for each layer's weight and bias: |W' - W| <= E elementwise  =>  |W' - W| <= max E."""
    eps_w, eps_b = net.radii(ball)
    return [largest(r) for r in eps_w], [largest(r) for r in eps_b]


def _lower_margins(net: Dense, x: Tensor, y: Tensor, ball: JointBall, zeta_ij: Tensor) -> Tensor:
    ball.check_domain(x)
    check_labels(y, len(x), len(net.weights[-1]))
    y = y.long()
    rise = tau(net, ball) + zeta_ij  # of f_j - f_y, so the column of y
    return margins(net(x), y) - rise[torch.arange(len(y)), :, y]


def _zeta(net: Dense, norms: Sequence[Tensor], eps_w: Sequence[float], eps_b: Sequence[float]) -> Tensor:
    """||W^L_i - W^L_j||_1 sum_{k<L} (eps_k n_{k-1} + eps_b_k) prod_{k<m<L} ||W^m||_inf  +  2 (eps_L n_{L-1} + eps_b_L).

    norms: n_0..n_{L-1}, each (B,).  One layer is changed at a time, the layers outside it unperturbed.
    """
    spread = torch.zeros_like(norms[0])
    for k, W in enumerate(net.weights[:-1]):
        spread = spread * _norm(W) + eps_w[k] * norms[k] + eps_b[k]
    last = 2 * (eps_w[-1] * norms[-1] + eps_b[-1])
    gap = _gap(net.weights[-1])
    return _off_diagonal(gap * spread[:, None, None] + last[:, None, None])


def _norm(W: Tensor) -> Tensor:
    return W.abs().sum(1).amax()  # the induced infinity norm: largest row sum


def _gap(W: Tensor) -> Tensor:
    return (W[:, None] - W[None]).abs().sum(2)  # ||W_i - W_j||_1


def _off_diagonal(t: Tensor) -> Tensor:
    """The same with 0 for the pairs (i, i), whose margin is 0 whatever moves."""
    return t.masked_fill(torch.eye(t.shape[-1], dtype=torch.bool, device=t.device), 0)
