"""theorem.py - Theorem 1 of arXiv:2102.11935 on a dense network, as printed and repaired.

For every |x' - x| <= eps_x and |W'^m - W^m| <= eps_m:   f'_i(x') - f'_j(x')  <=  f_i(x) - f_j(x) + tau_ij + zeta_ij(x).

The printed zeta is not an upper bound for three layers or more: it propagates h* through W^m + eps_m, and where that has a
negative entry a larger h* *lowers* the next one.  The repaired zeta replaces ||h^k*||_1 by the sum of true upper bounds of the
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
from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.network.dense import Dense, dense_chain
from nonsingular.network.graph import check_chain
from nonsingular.network.heads import classifier, two_classes
from nonsingular.network.margins import check_labels, margins
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import largest


def tau(model: nn.Module | Dense, ball: JointBall, shape: Sequence[int] | None = None) -> Tensor:
    """(K, K) what moving the input costs the margin of every class pair, eq. (2); differentiable in the weights.

    tau_ij = eps_x s (||W^L_i - W^L_j||_1 + 2 d_L eps_L) prod_{m<L} (||W^m||_inf + d_m eps_m); the diagonal is 0.
    s is 1, or by how much a normalisation of the inputs widens distances: 1 / the smallest std.
    With a radius r_c for each element of the input, as the first layer sees it, the innermost factor and eps_x s become
    max_r sum_c (|W^1_rc| + eps_1) r_c; with one layer ||W_i - W_j||_1 eps_x becomes sum_c |W_ic - W_jc| r_c.
    shape: of one input; needed in that case.  Of a pair (below, above) the larger counts.
    A network with one logit z, seen as (0, z), has one row that moves where others have two.
    Raises UnsupportedModel for a model that is not dense with a non-negative, monotone, 1-Lipschitz activation.
    """
    net = dense_chain(model)
    eps, _ = _largest_radii(net, ball)
    outer = _outer(net)
    if not isinstance(ball.eps_x, float):
        return _off_diagonal(_tau_of_each(net, eps, _input_radii(net, ball, shape)))
    gain = _gap(outer) + _rows(net) * outer.shape[1] * eps[-1]
    for W, e in zip(net.weights[:-1], eps[:-1], strict=True):
        gain = gain * (_norm(W) + W.shape[1] * e)
    return _off_diagonal(ball.eps_x * net.stretch * gain)


def _tau_of_each(net: Dense, eps: Sequence[float], r: Tensor) -> Tensor:
    """(K, K) tau where element c of what the first layer sees moves by r_c.  r: (d,)."""
    outer = _outer(net)
    if len(net.weights) == 1:
        return ((outer[:, None] - outer[None]).abs() * r).sum(2) + _rows(net) * eps[0] * r.sum()
    gain = (_gap(outer) + _rows(net) * outer.shape[1] * eps[-1]) * ((net.weights[0].abs() @ r).amax() + eps[0] * r.sum())
    for W, e in zip(net.weights[1:-1], eps[1:-1], strict=True):
        gain = gain * (_norm(W) + W.shape[1] * e)
    return gain


def _input_radii(net: Dense, ball: JointBall, shape: Sequence[int] | None) -> Tensor:
    """(d,) how far each element of what the first layer sees moves."""
    if shape is None:
        raise InvalidInput("eps_x has a radius for each element; give the shape of one input, shape=x.shape[1:]")
    x = net.weights[0].new_zeros(1, *shape).detach()
    return net.widened(torch.as_tensor(ball.reach(x)).to(x).expand_as(x).contiguous())[0]


def zeta(model: nn.Module | Dense, x: Tensor, ball: JointBall) -> Tensor:
    """(B, K, K) what moving the weights costs the margin of every class pair at the natural `x`; sound for every depth.

    x: (B, *input).  Differentiable in weights and inputs.  Cost: an interval forward pass.
    """
    net = _net(model, x)
    eps_w, eps_b = _largest_radii(net, ball)
    upper = hidden_upper_bounds(net, x, eps_w, eps_b)
    return _zeta(net, [net.enter(x).abs().sum(1), *(u.sum(1) for u in upper)], eps_w, eps_b)


def zeta_printed(model: nn.Module | Dense, x: Tensor, ball: JointBall) -> Tensor:
    """(B, K, K) eq. (3) as printed for L >= 3: for reproduction and training.  Not a bound for three layers or more.

    For L = 2 it is not eq. (3) to the letter.  There the three printed cases name layer 1 twice, as the first and as the
    last-but-one, which would count it twice; this is the sum over layers that they stand for, each layer once, at any L.
    """
    net = _net(model, x)
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
    model = model if isinstance(model, Dense) else classifier(model, x, ball)
    net = dense_chain(model)
    ball.check_domain(x)
    check_chain(net, model, x, ball)
    lower = _lower_margins(net, x, y, ball, zeta(net, x, ball))
    if isinstance(model, Dense) or model.floats is None:
        return lower
    if model.floats.deployed is not None:
        raise UnsupportedModel("theorem1 has no term for the rounding of a deployed network; use 'interval' or 'best'")
    return (lower - _rounding(net, x, ball)[:, None]).scatter(1, y.long()[:, None], 0.0)


def _rounding(net: Dense, x: Tensor, ball: JointBall) -> Tensor:
    """(B,) how far the arithmetic of `theorem1` may move its bounds.

    It adds up terms that are not negative, of relative errors, but for the forward passes, of x and of the upper bounds in zeta:
    these are off by at most that relative error of a pass with the absolute values of everything.
    """
    eps_w, eps_b = _largest_radii(net, ball)
    sizes = [net.enter(x).abs() + net.enter(torch.zeros_like(x[:1])).abs()]
    for W, b, e, f in zip(net.weights, net.biases, eps_w, eps_b, strict=True):
        h = F.linear(sizes[-1], W.abs() + e, None if b is None else b.abs() + f)
        sizes.append(h + net.activation(torch.zeros_like(h)).abs())
    rise = tau(net, ball, x.shape[1:]) + _zeta(net, [t.sum(1) for t in sizes[:-1]], eps_w, eps_b)
    numbers = sum(W.shape[0] + W.shape[1] + 64 for W in net.weights)
    return 8 * numbers * torch.finfo(x.dtype).eps * (2 * sizes[-1].amax(1) + rise.flatten(1).amax(1))


def theorem1_printed(model: nn.Module | Dense, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
    """(B, K) the margins that the theorem claims as printed.  Not a certificate: false for three layers or more.

    For L = 2 layer 1 is counted once, not twice as the printed cases would: see `zeta_printed`.
    """
    net = _net(model, x)
    return _lower_margins(net, x, y, ball, zeta_printed(net, x, ball))


def _net(model: nn.Module | Dense, x: Tensor) -> Dense:
    return model if isinstance(model, Dense) else dense_chain(two_classes(model, x))


def _largest_radii(net: Dense, ball: JointBall) -> tuple[list[float], list[float]]:
    """One number for each layer's weight and bias: |W' - W| <= E elementwise  =>  |W' - W| <= max E."""
    eps_w, eps_b = net.radii(ball)
    return [largest(r) for r in eps_w], [largest(r) for r in eps_b]


def _lower_margins(net: Dense, x: Tensor, y: Tensor, ball: JointBall, zeta_ij: Tensor) -> Tensor:
    ball.check_domain(x)
    check_labels(y, len(x), net.classes)
    y = y.long()
    rise = tau(net, ball, x.shape[1:]) + zeta_ij  # of f_j - f_y, so the column of y
    return margins(net(x), y) - rise[torch.arange(len(y)), :, y]


def _zeta(net: Dense, norms: Sequence[Tensor], eps_w: Sequence[float], eps_b: Sequence[float]) -> Tensor:
    """||W^L_i - W^L_j||_1 sum_{k<L} (eps_k n_{k-1} + eps_b_k) prod_{k<m<L} ||W^m||_inf  +  2 (eps_L n_{L-1} + eps_b_L).

    2: rows i and j of the last layer; with one logit it is one row.
    norms: n_0..n_{L-1}, each (B,).  One layer is changed at a time, the layers outside it unperturbed.
    """
    spread = torch.zeros_like(norms[0])
    for k, W in enumerate(net.weights[:-1]):
        spread = spread * _norm(W) + eps_w[k] * norms[k] + eps_b[k]
    last = _rows(net) * (eps_w[-1] * norms[-1] + eps_b[-1])
    gap = _gap(_outer(net))
    return _off_diagonal(gap * spread[:, None, None] + last[:, None, None])


def _outer(net: Dense) -> Tensor:
    """(K, d) the rows that the logits are products with."""
    return net.weights[-1] if net.from_one is None else net.from_one @ net.weights[-1]


def _rows(net: Dense) -> int:
    """How many rows of the last layer move the margin of a pair of classes."""
    return 2 if net.from_one is None else 1


def _norm(W: Tensor) -> Tensor:
    return W.abs().sum(1).amax()  # the induced infinity norm: largest row sum


def _gap(W: Tensor) -> Tensor:
    return (W[:, None] - W[None]).abs().sum(2)  # ||W_i - W_j||_1


def _off_diagonal(t: Tensor) -> Tensor:
    """The same with 0 for the pairs (i, i), whose margin is 0 whatever moves."""
    return t.masked_fill(torch.eye(t.shape[-1], dtype=torch.bool, device=t.device), 0)
