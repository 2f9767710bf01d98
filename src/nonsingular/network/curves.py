"""curves.py - how smooth activations bend, with the proofs: what a bound must know of them.

An activation is described by its derivative and by the points where it turns between convex and concave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Curve:
    """How a continuous function rho bends; its derivative is monotone on every piece between two turns.

    slope_at: rho'.  turns: where it changes between convex and concave, in order.  convex: whether the first piece is.
    At a kink inside a convex (concave) piece: any slope between those beside it.  At a kink on a turn: where a convex piece
    begins, the smaller of the two; where a concave piece begins, the larger.
    bottom: rho does not rise before it and does not fall after it; -inf for a monotone rho.
    slack: the function that torch computes is rho up to this, and rho itself up to `exact_to`.
    defined: from the ends of boxes, whether rho is defined (and as told here) on all of each; None: on every box, and rho and
    its slopes are numbers there.
    steep: the slope from which on lines are taken level, because arithmetic would lose more than they give.
    positive: neither rho nor what is computed for it is ever below 0.
    rounds: (largest |z|, largest |rho(z)|) -> how far the function as computed in floating point may be from rho, in units of
        the last rounding; an assumption on the library, with the reasons below.  None: nothing is known.
    terms: where rho is what remains of a sum that the network computes: as many numbers, whose rounding comes on top.
    """

    slope_at: Callable[[Tensor], Tensor]
    turns: tuple[float, ...] = ()
    convex: bool = True
    bottom: float = -math.inf
    slack: float = 0.0
    exact_to: float = math.inf
    defined: Callable[[Tensor, Tensor], Tensor] | None = None
    steep: float = math.inf
    rounds: Callable[[Tensor, Tensor], Tensor] | None = None
    positive: bool = False
    terms: int = 0

    def error(self, hi: Tensor) -> Tensor | float:
        """How far the computed function may be from rho below `hi`."""
        return torch.where(hi > self.exact_to, torch.full_like(hi, self.slack), 0.0) if self.slack else 0.0

    def slopes(self, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest slope over [lo, hi]: monotone between turns, it has them at ends or at turns within."""
        within = [torch.minimum(torch.maximum(lo, lo.new_tensor(turn)), hi) for turn in self.turns]
        found = torch.stack([self.slope_at(z) for z in (lo, hi, *within)])
        return found.amin(0), found.amax(0)


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _tanh_slope(z: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * z)


ROUNDS = 16.0
"""Units of rounding of an activation: exp, expm1, log1p, tanh and erf are within 4, the steps around them 1 each."""


def _of_value(z: Tensor, y: Tensor) -> Tensor:
    """A relative error: 1 / (1 + exp(-z)), tanh z, z / (1 + |z|) have no cancellation."""
    return ROUNDS * y


def _beside_one(z: Tensor, y: Tensor) -> Tensor:
    return ROUNDS * (1 + y)


def _of_argument(z: Tensor, y: Tensor) -> Tensor:
    """z times a factor in [0, 1] (up to 1.2) with an absolute error, as 1 + erf and 1 + tanh cancel below 0.

    What goes into erf or tanh is off by up to 7 units, relatively.  It moves by half as many: |t| erf'(t), |t| tanh'(t) < 0.5.
    """
    return ROUNDS * z


SIGMOID, TANH = Curve(_sigmoid_slope, (0.0,), rounds=_of_value, positive=True), Curve(_tanh_slope, (0.0,), rounds=_of_value)
SOFTSIGN = Curve(lambda z: (1 + z.abs()) ** -2, (0.0,), rounds=_of_value)
# min(z, 0) - log1p(exp(-|z|)) or log(1 + exp(-|z|)): 1 + e rounds absolutely
LOG_SIGMOID = Curve(lambda z: torch.sigmoid(-z), convex=False, rounds=lambda z, y: ROUNDS * (1 + z + y))


# For the three below: rho' -> 0 at -inf, falls to the first turn (so it is negative there), rises to the second, then falls to
# its limit 1.  So rho' has one zero, the bottom: rho falls before it and rises after it.


def _gelu_slope(z: Tensor) -> Tensor:
    """rho = z Phi(z): rho' = Phi + z phi."""
    return torch.special.ndtr(z) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    """rho = z (1 + tanh u) / 2 with u = c (z + a z^3), c = sqrt(2 / pi), a = 0.044715."""
    c, a = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(c * (z + a * z**3))
    return (1 + t) / 2 + z / 2 * (1 - t) * (1 + t) * c * (1 + 3 * a * z * z)


def _silu_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


# rho'' = phi(z) (2 - z^2)
GELU = Curve(_gelu_slope, (-math.sqrt(2), math.sqrt(2)), False, bottom=-0.7517915246935645, rounds=_of_argument)
# rho'' = (1 - tanh^2 u) u'^2 (r(z) - z tanh u), r = (1 + 6 a z^2) / (c (1 + 3 a z^2)^2).  Even in z; for z > 0 r does not rise
# (its derivative by w = a z^2 is -18 w / (c (1 + 3 w)^3)) and z tanh u rises: one zero.
GELU_TANH = Curve(
    _gelu_tanh_slope, (-1.4185040087908284, 1.4185040087908284), False, bottom=-0.7524614220710163, rounds=_of_argument
)  # fmt: skip
# rho = z s(z), s the sigmoid: rho'' = s (1 - s) (2 - z tanh(z / 2)), and z tanh(z / 2) is even and rises for z > 0
SILU = Curve(
    _silu_slope, (-2.3993572805154677, 2.3993572805154677), False, bottom=-1.2784645427610738, rounds=_of_argument
)  # fmt: skip
# 0, then the parabola z (z + 3) / 6 on [-3, 3], then z.  rho' = 0, from -1/2 to 3/2, then 1: at -3 and 3 the turns' slopes
HARDSWISH = Curve(
    lambda z: torch.where(z < -3, 0.0, torch.where(z > 3, 1.0, (2 * z + 3) / 6)), (-3.0, 3.0), False, bottom=-1.5,
    rounds=_of_argument,
)  # fmt: skip


def elu(alpha: float, scale: float, rate: float) -> tuple[Callable[[Tensor], Tensor], Curve]:
    """scale z above 0, scale alpha (exp(rate z) - 1) below: rho' rises to `left` at 0, then it is `right`."""
    left, right = scale * alpha * rate, scale

    def apply(z: Tensor) -> Tensor:
        return torch.where(z > 0, scale * z, scale * alpha * torch.expm1(rate * z.clamp(max=0)))

    def slope_at(z: Tensor) -> Tensor:
        return torch.where(z > 0, right, left * torch.exp(rate * z.clamp(max=0)))

    def rounds(z: Tensor, y: Tensor) -> Tensor:
        """exp(rate z) - 1 has an absolute error, of exp(rate z) |rate z| < 1 by the argument; the factors round relatively."""
        return ROUNDS * (y + 2 * scale * alpha)

    return apply, Curve(slope_at, () if left <= right else (0.0,), rounds=rounds)


def softplus(beta: float, threshold: float) -> tuple[Callable[[Tensor], Tensor], Curve]:
    """log(1 + exp(beta z)) / beta, convex.  torch takes z itself above the threshold: less by up to exp(-threshold) / beta."""

    def apply(z: Tensor) -> Tensor:
        return torch.logaddexp(beta * z, torch.zeros_like(z)) / beta

    def rounds(z: Tensor, y: Tensor) -> Tensor:
        """An argument beta z that rounds by u |beta z| moves log1p(exp(beta z)) / beta by u |z|; 1 + e rounds absolutely."""
        return ROUNDS * (z + y + 2 / beta)

    slack, exact_to = math.exp(-threshold) / beta, threshold / beta
    return apply, Curve(lambda z: torch.sigmoid(beta * z), slack=slack, exact_to=exact_to, rounds=rounds, positive=True)


STEEP = 1e9
# exp'' = exp > 0; large values are no numbers any more
EXP = Curve(torch.exp, defined=lambda lo, hi: torch.ones_like(lo, dtype=torch.bool), rounds=_of_value, positive=True)
# as a part of exp(z) - 1, which is computed at once
EXPM1 = replace(EXP, rounds=_beside_one, positive=False)
# log'' = -1 / z^2 < 0
LOG = Curve(torch.reciprocal, convex=False, defined=lambda lo, hi: lo > 0, steep=STEEP, rounds=_of_value)
# sqrt'' = -z^(-3/2) / 4 < 0; at 0 its slope is infinite
SQRT = Curve(
    lambda z: torch.rsqrt(z) / 2, convex=False, defined=lambda lo, hi: lo >= 0, steep=STEEP, rounds=_of_value, positive=True
)  # fmt: skip
# z^(-1/2) falls, and bends up: 3/4 z^(-5/2) > 0
RSQRT = Curve(
    lambda z: -(z**-1.5) / 2, bottom=math.inf, defined=lambda lo, hi: lo > 0, steep=STEEP, rounds=_of_value, positive=True
)  # fmt: skip
# 1/z falls on either side of its pole, where it bends down for z < 0 and up for z > 0: 2 / z^3
RECIPROCAL = Curve(
    lambda z: -(z**-2.0), (0.0,), False, bottom=math.inf, defined=lambda lo, hi: (lo > 0) | (hi < 0), steep=STEEP,
    rounds=_of_value,
)  # fmt: skip


def of_softmax(n: int, curve: Curve) -> Curve:
    """RECIPROCAL or -LOG of t_i = sum_j exp(x_j - x_i), as the softmax of x in R^n or its logarithm is computed.

    That is e_i / S with e_j = exp(x_j - m), m the largest, S = sum_j e_j.  An argument that rounds by u |x_j - m| makes e_j round
    by as much, relatively; so does S by the mean of |x_j - m| under the softmax, which is at most its entropy, and that at most
    log n.  m - x_i <= log t_i.  The exponentials, the division and what goes in and out round ROUNDS times, the sum as its n
    terms do, or up to 6 n where blocks are added up that have an m of their own.  The logarithm: x_i - m - log S, log S <= log n.
    """

    def rounds(z: Tensor, y: Tensor) -> Tensor:
        k = ROUNDS + math.log(n) + z.clamp(min=1.0).log()
        k = k * (1 + k / 200)  # (1 + u)^k - 1 for every type
        return k * y if curve is RECIPROCAL else 2 * k + ROUNDS * (y + math.log(n))

    return replace(curve, rounds=rounds, terms=6 * n, positive=curve is RECIPROCAL)


def power(n: int) -> Curve:
    """z^n for n >= 2: convex with its bottom at 0 for even n; otherwise it rises, and turns from concave to convex at 0."""
    even = n % 2 == 0
    return Curve(
        lambda z: n * z ** (n - 1), () if even else (0.0,), even, bottom=0.0 if even else -math.inf, rounds=_of_value,
        positive=even,
    )  # fmt: skip
