"""ball.py - the joint ball around an input and the weights, and who shares the perturbed weights.

Non-Singular Adversarial Robustness of Neural Networks, arXiv:2102.11935, section 3: every x' with |x' - x| <= eps_x
and every W' with |W' - W| <= eps_w, element by element, together; here any box W - below <= W' <= W + above.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.threat.interval import Interval, box_around
from nonsingular.threat.radius import (
    Radius,
    Side,
    broadcasts,
    check_shape,
    checked_radius,
    comparable,
    ends,
    largest,
    times,
    told,
)

Scope = Literal["sample", "batch", "dataset"]
"""Who shares the perturbed weights W'.

`sample`: each example gets its own worst W'.  `batch`: one W' per batch.  `dataset`: one W' for the whole evaluation
set (one faulty device).  Robust accuracy is ordered sample <= batch <= dataset; a certificate bounds `sample`.
"""
SCOPES: tuple[Scope, ...] = get_args(Scope)


def check_scope(scope: str) -> None:
    """Raises InvalidInput unless `scope` is one of the three names."""
    if scope not in SCOPES:
        raise InvalidInput(f"scope is {scope!r}; choose one of {', '.join(SCOPES)}")


Moves = Literal["weights", "all"]
"""Which parameters a single radius `eps_w` moves: those of two or more dimensions (matrices, kernels), or every one."""


@dataclass(frozen=True)
class JointBall:
    """Every input within `eps_x` and every weight within `eps_w` (both l-infinity), together.

    eps_x: radius on the input, in the units of the data: a number, a tensor or array that broadcasts to the shape of one input
        (per column of a table, per channel, per pixel; 0 where nothing moves), or a pair (below, above) of these.
    eps_w: one number for all tensors that move, or a mapping from parameter name to its own Radius (then only these move): a
        number, a tensor (per channel, per element), or a pair (below, above) for a box [W - below, W + above].
    domain: the range (lo, hi) that inputs live in, e.g. pixels in [0, 1]; None for inputs without limits.
    moves: with a single radius, which parameters move: "weights" (two or more dimensions) or "all" (biases and scales too).
    relative: radii of weights are multiples of the largest |value| of each tensor.

    A ball is a set of real numbers.  In the dtype of the tensor that it is around, a box holds the points that lie in the ball
    (for attacks) or, `outward`, a smallest box that covers it (for bounds).  The domain is meant as it is rounded in that dtype.
    A ball is a value: radii are copied (tensors in float64 on the CPU), and balls of equal numbers and shapes are equal.
    Raises InvalidInput for a radius that is negative, infinite or NaN, and for an empty domain.
    """

    eps_x: Radius
    eps_w: float | Mapping[str, Radius]
    domain: tuple[float, float] | None = (0.0, 1.0)
    moves: Moves = "weights"
    relative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps_x", checked_radius("eps_x", self.eps_x))
        if isinstance(self.eps_w, Mapping):
            radii = {name: checked_radius(f"eps_w['{name}']", radius) for name, radius in self.eps_w.items()}
            object.__setattr__(self, "eps_w", MappingProxyType(radii))
        elif isinstance(radius := checked_radius("eps_w", self.eps_w), float):
            object.__setattr__(self, "eps_w", radius)
        else:
            raise InvalidInput("eps_w is a tensor or a pair; say of which parameter: eps_w={'name': radius}")
        if self.moves not in get_args(Moves):
            raise InvalidInput(f"moves is {self.moves!r}; choose one of {', '.join(get_args(Moves))}")
        if self.domain is not None and not self.domain[0] < self.domain[1]:
            raise InvalidInput(f"domain is {self.domain}; give (lowest, highest) with lowest < highest, or None")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JointBall) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        """What makes two balls the same, without tensors."""
        return tuple(map(comparable, ends(self.eps_x))), self.domain, self.of_weights

    @property
    def of_weights(self) -> Hashable:
        """A value that is equal for balls with the same boxes of weights."""
        eps_w = self.eps_w
        named = frozenset((n, *map(comparable, ends(r))) for n, r in eps_w.items()) if isinstance(eps_w, Mapping) else eps_w
        return named, self.moves, self.relative

    def __reduce__(self) -> tuple[Any, ...]:
        eps_w = dict(self.eps_w) if isinstance(self.eps_w, Mapping) else self.eps_w
        return JointBall, (self.eps_x, eps_w, self.domain, self.moves, self.relative)

    def scaled(self, x: float, w: float) -> JointBall:
        """The ball with the input radius times `x` and every weight radius times `w`."""
        eps_w = {k: times(r, w) for k, r in self.eps_w.items()} if isinstance(self.eps_w, Mapping) else self.eps_w * w
        return replace(self, eps_x=times(self.eps_x, x), eps_w=eps_w)

    @property
    def moves_inputs(self) -> bool:
        """Whether an element of the input has a radius above 0."""
        return largest(self.eps_x) > 0

    def eps_x_number(self, who: str) -> float:
        """The one radius of all elements.  Raises InvalidInput if elements have different radii, which `who` cannot use."""
        if not isinstance(self.eps_x, float):
            raise InvalidInput(f"{who} takes one input radius for all elements; give eps_x as a number")
        return self.eps_x

    def reach(self, x: Tensor) -> Side:
        """How far each element of the inputs `x` (B, *input) moves at most: a number, or a tensor that broadcasts to x."""
        below, above = self._input_sides(x)
        if isinstance(below, float) and isinstance(above, float):
            return max(below, above)
        return torch.maximum(*(torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in (below, above)))

    def _input_sides(self, x: Tensor) -> tuple[Side, Side]:
        """`ends` of eps_x on the device of the inputs `x`.  Raises InvalidInput if these have another shape."""
        shape = tuple(x.shape[1:])
        for side in ends(self.eps_x):
            if isinstance(side, Tensor) and not broadcasts(side, shape):
                raise InvalidInput(
                    f"eps_x has shape {tuple(side.shape)}, which does not broadcast to the shape of one input, {shape}; "
                    "give that shape, or 1 in the dimensions that share a radius"
                )
        below, above = (side.to(x.device) if isinstance(side, Tensor) else side for side in ends(self.eps_x))
        return below, above

    def rounded(self, dtype: torch.dtype) -> JointBall:
        """The ball for inputs that are numbers of this dtype: the ends of the domain are rounded to it, too."""
        if self.domain is None:
            return self
        lo, hi = torch.tensor(self.domain, dtype=torch.float64).to(dtype).tolist()
        return replace(self, domain=(min(lo, self.domain[0]), max(hi, self.domain[1])))

    def describe(self) -> dict[str, Any]:
        """Everything but a single `eps_x` and a single `eps_w`, for records: JSON."""
        eps_w = self.eps_w
        return {
            "domain": self.domain, "moves": self.moves, "relative": self.relative,
            "eps_w_per_tensor": {n: told(r) for n, r in eps_w.items()} if isinstance(eps_w, Mapping) else None,
            **({} if isinstance(self.eps_x, float) else {"eps_x_per_element": told(self.eps_x)}),
        }  # fmt: skip

    def check_domain(self, x: Tensor) -> None:
        """Raises InvalidInput if an input is not a number or lies outside the domain, by more than rounding."""
        if x.numel() == 0:
            return
        lo, hi = (end.item() for end in x.aminmax())  # NaN if one element is
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise InvalidInput("the inputs contain NaN or infinite values; remove those examples first")
        if self.domain is None:
            return
        first, last = self.domain
        size = max(abs(first), abs(last))
        if lo < first - size * _rounding(first, lo, x.dtype) or hi > last + size * _rounding(last, hi, x.dtype):
            guess = ""
            if self.domain == (0.0, 1.0) and lo >= 0 and 1 < hi <= 255:
                guess = " (0-255 pixels? divide by 255)"
            elif self.domain == (0.0, 1.0) and lo < 0:
                guess = " (normalised inputs? normalisation belongs to the model: ns.Normalized(model, mean, std))"
            raise InvalidInput(
                f"inputs span [{lo:.4g}, {hi:.4g}], outside the domain {list(self.domain)}{guess}; "
                "scale them, or give the range they live in as domain (None for no limits), e.g. --domain=-3,3 or --domain none; "
                "radii are in the units of the inputs"
            )

    def input_box(self, x: Tensor, *, outward: bool = False) -> Interval:
        """The box of inputs around `x`, cut to the domain: points of the ball alone or, `outward`, all of them.

        x itself, which may lie on a rounded border, stays inside.
        """
        self.check_domain(x)
        x = x.detach()
        box = box_around(x, *self._input_sides(x), outward)
        if self.domain is None:
            return box
        first, last = self.domain
        return Interval(torch.maximum(box.lo, x.clamp(max=first)), torch.minimum(box.hi, x.clamp(min=last)))

    def radii(self, params: Mapping[str, Tensor]) -> dict[str, Radius]:
        """Radius of every tensor that moves, by name, in the units of the weights; tensors with radius 0 are left out.

        Raises InvalidInput if `eps_w` names a tensor that `params` does not have, has a radius that does not fit its shape, or
        moves a tensor that is not of floating-point numbers stored one by one.
        """
        for name, p in params.items():
            check_parameter(name, p)
        if isinstance(self.eps_w, Mapping):
            if unknown := sorted(set(self.eps_w) - set(params)):
                raise InvalidInput(f"eps_w names no parameter of this model: {unknown}; it has {sorted(params)}")
            chosen = dict(self.eps_w)
            for name, radius in chosen.items():
                check_shape(name, radius, params[name].shape)
        else:
            chosen = {name: self.eps_w for name, p in params.items() if self.moves == "all" or p.dim() >= 2}
        chosen = {name: r for name, r in chosen.items() if largest(r) > 0}
        for name in chosen:
            _check_moves(name, params[name])
        if not self.relative:
            return chosen
        scaled = {name: times(r, _largest(name, params[name])) for name, r in chosen.items()}
        return {name: r for name, r in scaled.items() if largest(r) > 0}

    def weight_boxes(self, params: Mapping[str, Tensor], *, outward: bool = False) -> dict[str, Interval]:
        """The box of every tensor that moves, by name, in its shape, dtype and device; rounded as in `input_box`."""
        found: dict[str, Interval] = {}
        for name, radius in self.radii(params).items():
            _largest(name, p := params[name].detach())
            found[name] = box_around(p, *ends(radius), outward)
        return found


def check_parameter(name: str, p: Tensor) -> None:
    """Raises InvalidInput for a parameter or buffer without values."""
    if nn.parameter.is_lazy(p):
        raise InvalidInput(f"'{name}' of the model has no size yet; run the model once on one batch, then give it")
    if p.is_meta:
        raise InvalidInput(f"'{name}' of the model is on the meta device and has no values; build the model on a real device")


def _check_moves(name: str, p: Tensor) -> None:
    """Raises InvalidInput for a tensor around which there is no box."""
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InvalidInput(
            f"'{name}' of the model is {p.dtype}, in which there is no ℓ∞ ball; give eps_w by name for those that move"
        )
    check_dense(name, p)


def check_dense(name: str, p: Tensor) -> None:
    """Raises InvalidInput for a tensor of which not every element is stored."""
    if p.layout != torch.strided:
        raise InvalidInput(f"'{name}' of the model is sparse ({p.layout}), so not every weight is stored; give it dense")


def _largest(name: str, p: Tensor) -> float:
    """The largest |value| of a parameter that moves.  Raises InvalidInput if one is not a number or infinite."""
    largest = max(abs(end.item()) for end in p.detach().aminmax()) if p.numel() else 0.0
    if not math.isfinite(largest):
        raise InvalidInput(
            f"'{name}' of the model holds NaN or infinite values, around which there is no ball; give finite ones, or eps_w by "
            "name for those that move"
        )
    return largest


def _rounding(border: float, value: float, dtype: torch.dtype) -> float:
    """How far beyond a border an input computed from a number at that border may lie, relative to the size of the domain.

    A few units of the type it was computed in (a float64 input may come from a type of fewer bits); nothing beyond a border that
    is a number of that type, such as 0, 1 and 255.
    """

    def has(t: torch.dtype, number: float) -> bool:
        return torch.tensor(number, dtype=t).item() == number

    narrower = (torch.bfloat16, torch.float16, torch.float32) if dtype == torch.float64 else ()
    computed = next((t for t in narrower if has(t, value)), dtype)
    return 0.0 if has(computed, border) else 4 * torch.finfo(computed).eps
