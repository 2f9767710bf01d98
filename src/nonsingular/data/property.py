"""property.py - a box of inputs and what outputs must not do there, as a question about a classifier.

Unsafe outputs are a disjunction of conjunctions of linear inequalities, left sides <= 0.  With m_d the largest left side of
conjunction d, a point is safe if all m_d > 0, that is if class 0 wins with the logits (0, -m_1, ..., -m_D):
a margin over classes, which every attack and every bound knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.calling import held_at, outputs
from nonsingular.network.copies import duplicate, effective
from nonsingular.threat.ball import JointBall, Moves
from nonsingular.threat.interval import box_around
from nonsingular.threat.perturbation import Perturbation
from nonsingular.threat.radius import Radius


@dataclass(frozen=True)
class Conjunction:
    """All of A y + b <= 0.  A: (R, K), b: (R,), float64."""

    A: Tensor
    b: Tensor


@dataclass(frozen=True)
class Property:
    """Inputs lo <= x <= hi, and what is unsafe: outputs in one of `unsafe`.  `ns.load_property` reads it from a file.

    lo, hi: (1, *input), float64.
    """

    lo: Tensor
    hi: Tensor
    unsafe: tuple[Conjunction, ...]

    @cached_property
    def label(self) -> int | None:
        """The class y, if what is unsafe is that any other output reaches that of y; else None."""
        A = torch.cat([c.A for c in self.unsafe])
        if len(A) != A.shape[1] - 1 or any(len(c.b) != 1 or c.b.any() for c in self.unsafe):
            return None
        y, one = int(A.sum(0).argmax()), torch.eye(A.shape[1], dtype=A.dtype)
        rows = one[y] - torch.cat([one[:y], one[y + 1 :]])
        return y if sorted(A.tolist()) == sorted(rows.tolist()) else None

    @property
    def y(self) -> Tensor:
        """(1,) the class that must win, of the model that `on` returns."""
        return torch.tensor([0 if self.label is None else self.label])

    @cached_property
    def x(self) -> Tensor:
        """(1, *input) in the box: the middle, or, where no radii around that end where the box does, the point nearest to 0."""
        middle = self.lo + (self.hi - self.lo) / 2
        nearest = torch.zeros_like(self.lo).clamp(self.lo, self.hi)
        box = box_around(middle, *_sides(self, middle), outward=False)
        return torch.where((box.lo == self.lo) & (box.hi == self.hi), middle, nearest)

    def ball(self, eps_w: float | Mapping[str, Radius] = 0.0, *, moves: Moves = "weights", relative: bool = False) -> JointBall:
        """The joint ball around `x` whose inputs are the box, and weights within eps_w (as in `JointBall`).

        Points of the ball that are numbers in float64 are those of the box; `outward`, the ball covers it.
        """
        below, above = (side[0] for side in _sides(self, self.x))
        if isinstance(eps_w, Mapping) and self.label is None:
            eps_w = {INNER + name: radius for name, radius in eps_w.items()}
        return JointBall((below, above), eps_w, None, moves, relative)

    def shaped(self, shape: Sequence[int]) -> Property:
        """The same for a model that takes (B, *shape).  Raises InvalidInput if that is another number of inputs."""
        if math.prod(shape) != self.lo.numel():
            raise InvalidInput(
                f"the property is of {self.lo.numel()} inputs, and the model takes {tuple(shape)}; do they belong together?"
            )
        return Property(self.lo.reshape(1, *shape), self.hi.reshape(1, *shape), self.unsafe)

    def on(self, model: nn.Module) -> nn.Module:
        """A copy of the model in float64 whose class `y` wins where its outputs are safe: what `ns.decide` and all others take.

        Weights that parametrisations compute are parameters of it.  Raises InvalidInput if the model does not take such inputs or
        has another number of outputs, and for values of outputs where a softmax at the end of an ONNX file was left out.
        """
        if (left_out := getattr(model, "left_out", None)) and not all(map(_only_orders, self.unsafe)):
            raise InvalidInput(
                f"the property is about values of outputs, and the {left_out} at the end of the model's file is left out when it "
                "is read; ask for their order, or export the model without it and state the property of its logits"
            )
        network = duplicate(effective(model)).double()
        K = self.unsafe[0].A.shape[1]
        with torch.no_grad():
            found = outputs(network, self.x)
        if found.numel() != K:
            raise InvalidInput(
                f"the property is about {K} outputs, and the model returns shape {tuple(found.shape)} for one input"
            )
        return network if self.label is not None else Margins(network, self.unsafe)

    def outputs(self, network: nn.Module, found: Perturbation) -> Tensor:
        """(K,) what the model returns at a perturbation of one example (scope `sample`).  network: as `on` returns it."""
        inner = network.model if isinstance(network, Margins) else network
        weights = {self.named(name): w[0] for name, w in found.weights.items()}
        with torch.no_grad():
            return held_at(inner, weights)(found.x).reshape(-1)

    def named(self, parameter: str) -> str:
        """The name that a parameter of the network has in the model itself."""
        return parameter if self.label is not None else parameter.removeprefix(INNER)

    def holds_at(self, outputs: Tensor) -> bool:
        """Whether these outputs (K,) are safe."""
        return not any(bool((c.A @ outputs + c.b <= 0).all()) for c in self.unsafe)

    def in_float32(self, found: Perturbation) -> Perturbation:
        """A perturbation with inputs rounded to float32 within the box, where it holds such: runtimes take no others."""
        near = found.x.float()
        down, up = (torch.nextafter(near, torch.full_like(near, end)).double() for end in (-math.inf, math.inf))
        near = near.double()
        near = torch.where(near < self.lo, up, torch.where(near > self.hi, down, near))
        return replace(found, x=torch.where((near >= self.lo) & (near <= self.hi), near, found.x) + 0.0)  # without -0


INNER = "model."
"""Before the names of a model's parameters in `Margins`."""


class Margins(nn.Module):
    """Logits (0, -m_1, ..., -m_D) of a model with outputs y, where m_d = max A_d y + b_d.  Nothing in it moves but the model."""

    rows: Tensor
    offsets: Tensor

    def __init__(self, model: nn.Module, unsafe: Sequence[Conjunction]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", torch.cat([c.A for c in unsafe]))
        self.register_buffer("offsets", torch.cat([c.b for c in unsafe]))
        self.sizes = [len(c.b) for c in unsafe]
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(self.model(x).flatten(1), self.rows, self.offsets)
        if max(self.sizes) > 1:
            z = torch.stack([part.amax(1) for part in z.split(self.sizes, 1)], 1)
        return F.pad(-z, (1, 0))


def _sides(p: Property, x: Tensor) -> tuple[Tensor, Tensor]:
    """(below, above): radii in float64 with x - below <= lo and hi <= x + above exactly, none needlessly large."""
    return _reaching(-x, -p.lo), _reaching(x, p.hi)


def _reaching(x: Tensor, end: Tensor) -> Tensor:
    """The rounded difference r, or its neighbour above where x + r < end."""
    r = end - x
    short = box_around(x, 0.0, r, outward=False).hi < end  # the largest number that is not above x + r
    return torch.where(short, torch.nextafter(r, torch.full_like(r, math.inf)), r)


def _only_orders(c: Conjunction) -> bool:
    """Whether it says nothing but which of two outputs is larger, each time."""
    ends = torch.stack([c.A.amin(1), c.A.amax(1)], 1)
    return bool((c.b == 0).all() & (ends[:, 0] == -ends[:, 1]).all() & (c.A.abs().sum(1) == 2 * ends[:, 1]).all())
