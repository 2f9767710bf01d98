"""radii.py - the largest radii at which each example is certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular.certificates.certify import Prover, verified
from nonsingular.errors import InvalidInput, renamed
from nonsingular.network.heads import classifier
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import axis

Along = Literal["eps_x", "eps_w"]


@renamed(method="bound")
def certified_radius(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, along: Along = "eps_w", bound: str = "crown", bits: int = 8,
    deployed: str | None = None,
) -> Tensor:  # fmt: skip
    """(B,) the largest radius along one axis at which each example is certified, the other radius being that of `ball`.

    along: "eps_w", the largest weight radius at ball.eps_x, or "eps_x", the largest input radius at ball.eps_w.
    ball: also the limit of the search: radii are multiples of ball's own radius / 2^bits, up to it.  With radii by tensor, or by
        element of the input, the answer along that axis is the share of them, 0 to 1.
    deployed: as in `certify`.
    NaN where not even radius 0 along that axis is certified (for example misclassified at x).
    Guarantee: that of `certify` at the radius returned, hence at every smaller one.  Cost: about `bits` bounds of every example.
    """
    model = classifier(model, x, ball)
    check_inputs(model, x, y, ball)
    if along not in ("eps_x", "eps_w"):
        raise InvalidInput(f"along is {along!r}; choose eps_x or eps_w")
    radius = ball.eps_x if along == "eps_x" else ball.eps_w
    unit = radius if isinstance(radius, float) else 1.0

    def shrunk(t: float) -> JointBall:
        return ball.scaled(t, 1.0) if along == "eps_x" else ball.scaled(1.0, t)

    steps = _steps(Prover(model, bound, deployed=deployed), x, y.long(), shrunk, bits, torch.full((len(x),), 2**bits))
    return torch.where(steps >= 0, steps.double() / 2**bits * unit, torch.nan)


@dataclass(frozen=True)
class Front:
    """The largest certified weight radius of each example at each of some input radii.

    eps_x: radii, increasing.  eps_w: (len(eps_x), B), NaN where not even 0 is certified; it never grows with eps_x.
    """

    eps_x: tuple[float, ...]
    eps_w: Tensor

    def at(self, accuracy: float) -> tuple[float, ...]:
        """For each eps_x the largest weight radius at which that share of the examples is certified; NaN where there is none."""
        if not 0 < accuracy <= 1:
            raise InvalidInput(f"accuracy is {accuracy}; give a share above 0 and up to 1")
        radii = self.eps_w.nan_to_num(nan=-1.0).sort(1, descending=True).values
        needed = radii[:, int(np.ceil(accuracy * radii.shape[1] - 1e-9)) - 1]
        return tuple(torch.where(needed >= 0, needed, torch.nan).tolist())


@renamed(method="bound")
def certified_front(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, eps_x: Sequence[float] | None = None, bound: str = "crown",
    bits: int = 8, deployed: str | None = None,
) -> Front:  # fmt: skip
    """The Pareto front of (eps_x, eps_w) for each example: as `certified_radius` along eps_w, at each of `eps_x`.

    eps_x: increasing radii, or fractions of ball.eps_x where that is not one number; by default 11 up to ball.eps_x.
        An example is not tried above its radius at a smaller eps_x.
    deployed: as in `certify`.
    `Front.at(accuracy)` is the front for a required accuracy.  Cost: at most len(eps_x) times `bits` bounds of every example.
    """
    model = classifier(model, x, ball)
    check_inputs(model, x, y, ball)
    one = ball.eps_x if isinstance(ball.eps_x, float) else None
    columns = axis((1.0 if one is None else one) if eps_x is None else eps_x, "eps_x")
    prove, top = Prover(model, bound, deployed=deployed), torch.full((len(x),), 2**bits)
    found: list[Tensor] = []
    for radius in columns:
        at = replace(ball, eps_x=radius) if one is not None else ball.scaled(radius, 1.0)
        top = _steps(prove, x, y.long(), lambda t, at=at: at.scaled(1.0, t), bits, top)
        found.append(top)
    unit = 1.0 if isinstance(ball.eps_w, Mapping) else ball.eps_w
    steps = torch.stack(found)
    return Front(columns, torch.where(steps >= 0, steps.double() / 2**bits * unit, torch.nan))


def _steps(prove: Prover, x: Tensor, y: Tensor, ball: Callable[[float], JointBall], bits: int, top: Tensor) -> Tensor:
    """(B,) the largest i <= top for which ball(i / 2^bits) is certified, by bisection; -1 if not even 0 is."""
    low, high = torch.full_like(top, -1), top + 1  # certified, and not (or not to be tried)
    while bool((open_ := high - low > 1).any()):
        middle = (low + high) // 2
        for i in middle[open_].unique().tolist():
            who = (open_ & (middle == i)).nonzero().flatten()
            lower = prove(x[who], y[who], ball(i / 2**bits))
            good = verified(lower, y[who]).cpu()
            low[who[good]], high[who[~good]] = i, i
    return low
