"""moved.py - objectives at other weights than the network's own: moved against it, drawn at random, or as a device stores them.

`AtMovedWeights(base, by)` takes the gradient of `base` at the weights that `by` gives, and steps with it from the weights as they
are (straight through).  What is known by a name is a composition:

    SAM             AtMovedWeights(natural, Sharpness(rho))
    ASAM            AtMovedWeights(natural, Sharpness(rho, adaptive=True))
    AWP             Adversarial(eps, base=AtMovedWeights(natural, Relative(rho)))
    RWP             Adversarial(eps, base=AtMovedWeights(natural, Relative(rho, steps=10), climbs=Easy(1.7)))
    in a box        Adversarial(eps, base=AtMovedWeights(natural, Signed(eps_w)))
    QAT             AtMovedWeights(natural, AsStored(UniformRounding(bits)))
    RandBET         Mean((QAT, AtMovedWeights(natural, AsStored(BitErrors(rate)))))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.faults.bit_errors import BitErrors
from nonsingular.faults.fault import Fault
from nonsingular.faults.uniform import UniformRounding
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius
from nonsingular.training.objectives import RADII, STEPS, Adversarial, Domain, Loss, LossOf, check_steps, natural, ramp

Weights = Mapping[str, Tensor]
Slopes = Callable[[Weights], Mapping[str, Tensor]]
"""Weights -> the gradient of the loss there, by name."""
Move = Callable[[Weights, Slopes, float, Generator], Mapping[str, Tensor]]
"""(the weights as they are, the gradient elsewhere, progress in [0, 1], generator) -> other values of some of them, by name."""
LEAST = 1e-12
"""Norms below this count as this."""


@dataclass(frozen=True)
class AtMovedWeights:
    """The loss and the gradient of `base` at moved weights; the step is taken from the weights as they are.

    base: an objective.  by: what moves them: (weights, gradient elsewhere, progress, generator) -> other values of some, by name.
    climbs: the objective whose gradient `by` gets; None: `base`.
    Each evaluation draws the same random numbers for it.  Buffers, such as those of BatchNorm, follow the last one alone.
    Never leaves the network moved, also when interrupted.  Cost: `base` once, and once more for each gradient that `by` asks for.
    """

    base: LossOf
    by: Move
    climbs: LossOf | None = None

    def __post_init__(self) -> None:
        for name, value in (("base", self.base), ("by", self.by), ("climbs", self.climbs or natural)):
            if not callable(value):  # what a user gives
                raise InvalidInput(f"{name} is {value!r}; give a function, as training/moved.py describes it")

    def __call__(self, model: nn.Module) -> Loss:
        inner, by = self.base(model), self.by
        climbed = inner if self.climbs is None else self.climbs(model)
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            before = {name: p.detach().clone() for name, p in own.items()}
            state = generator.get_state()

            def slopes_of(lost: Loss, values: Weights) -> tuple[Tensor, Sequence[Tensor]]:
                generator.set_state(state)
                _load(own, before, values)
                return _graded(lost(x, y, progress, generator), [*own.values()])

            def slopes(values: Weights) -> Mapping[str, Tensor]:
                kept = [b.clone() for b in model.buffers()]
                found = slopes_of(climbed, values)[1]
                for b, old in zip(model.buffers(), kept, strict=True):
                    b.copy_(old)
                return dict(zip(own, found, strict=True))

            try:
                value, found = slopes_of(inner, by(before, slopes, progress, generator))
            finally:
                _load(own, before, {})
            return _Given.apply(value, found, *own.values())  # pyright: ignore[reportReturnType]

        return loss


def _load(own: Mapping[str, Tensor], before: Weights, values: Weights) -> None:
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(values.get(name, before[name]))


def _graded(loss: Tensor, own: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """A loss and its gradient."""
    return loss.detach(), torch.autograd.grad(loss, [*own], allow_unused=True, materialize_grads=True)


class _Given(torch.autograd.Function):
    """A loss with a gradient that is known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *(outer[0] * slope for slope in ctx.slopes)


@dataclass(frozen=True)
class Mean:
    """The mean of several objectives, each with the same random numbers."""

    parts: tuple[LossOf, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts or not all(map(callable, self.parts)):
            raise InvalidInput(f"parts is {self.parts!r}; give one objective or more")

    def __call__(self, model: nn.Module) -> Loss:
        losses = [part(model) for part in self.parts]
        own = [p for p in model.parameters() if p.requires_grad]

        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            state, total, slopes = generator.get_state(), torch.zeros(()), [torch.zeros_like(p) for p in own]
            for each in losses:  # each with its gradient at once: another part may move the weights in place
                generator.set_state(state)
                value, found = _graded(each(x, y, progress, generator), own)
                total = total.to(value) + value / len(losses)
                for slope, d in zip(slopes, found, strict=True):
                    slope.add_(d, alpha=1 / len(losses))
            return _Given.apply(total, slopes, *own)  # pyright: ignore[reportReturnType]

        return loss


# --- moves ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharpness:
    """W + rho g / |g| over all weights: sharpness-aware minimisation.  Foret et al., arXiv:2010.01412.

    rho: the length of the move.  adaptive: W + rho T^2 g / |T g| with T = |W| + 0.01, which does not depend on the scale of the
    weights: ASAM, Kwon et al., arXiv:2102.11600.
    """

    rho: float
    adaptive: bool = False

    def __post_init__(self) -> None:
        _positive("rho", self.rho)

    def __call__(self, weights: Weights, slopes: Slopes, progress: float, generator: Generator) -> Mapping[str, Tensor]:
        g = slopes(weights)
        scale = {n: w.abs() + 0.01 if self.adaptive else torch.ones_like(w) for n, w in weights.items()}
        length = math.sqrt(sum(float((scale[n] * d).square().sum()) for n, d in g.items()))
        factor = self.rho / max(length, LEAST)
        return {n: w + factor * scale[n].square() * g[n] for n, w in weights.items()}


@dataclass(frozen=True)
class Relative:
    """Each matrix and kernel W moved by rho |W| along its gradient, in Frobenius norms: adversarial weight perturbation.

    steps: of equal length, projected back to that distance.  Wu et al., arXiv:2004.05884, which takes one.
    """

    rho: float
    steps: int = 1

    def __post_init__(self) -> None:
        _positive("rho", self.rho)
        check_steps(self.steps)

    def __call__(self, weights: Weights, slopes: Slopes, progress: float, generator: Generator) -> Mapping[str, Tensor]:
        moved = {n: w for n, w in weights.items() if w.dim() > 1}
        reach = {n: self.rho * w.norm() for n, w in moved.items()}
        away = {n: torch.zeros_like(w) for n, w in moved.items()}
        for _ in range(self.steps):
            g = slopes({n: w + away[n] for n, w in moved.items()})
            for n, d in away.items():
                d.add_(g[n] * (reach[n] / self.steps / g[n].norm().clamp_min(LEAST)))
                d.mul_((reach[n] / d.norm().clamp_min(LEAST)).clamp(max=1.0))
        return {n: w + away[n] for n, w in moved.items()}


@dataclass(frozen=True)
class Signed:
    """One W' of the ball for the batch: signed steps of 2.5 / steps of each radius, projected.

    eps_w: as in JointBall: its matrices and kernels move, each element by itself.
    warmup: the radii grow linearly from zero over this first part of the training.
    """

    eps_w: float | Mapping[str, Radius]
    steps: int = 1
    warmup: float = RADII

    def __post_init__(self) -> None:
        check_steps(self.steps)
        _ = JointBall(0.0, self.eps_w, None)

    def __call__(self, weights: Weights, slopes: Slopes, progress: float, generator: Generator) -> Mapping[str, Tensor]:
        boxes = JointBall(0.0, self.eps_w, None).scaled(0.0, ramp(progress, self.warmup)).weight_boxes(weights)
        found = {n: weights[n].clone() for n in boxes}
        size = 2.5 / self.steps if self.steps > 1 else 1.0
        for _ in range(self.steps):
            g = slopes(found)
            for n, box in boxes.items():
                box.project_(found[n].add_(g[n].sign() * (box.hi - box.lo) * (size / 2)))
        return found


@dataclass(frozen=True)
class Easy:
    """Mean over the batch of the cross-entropy of those examples where it is below `below`; 0 for the others.

    What robust weight perturbation moves the weights by: Yu et al., arXiv:2205.14826.
    """

    below: float

    def __post_init__(self) -> None:
        _positive("below", self.below)

    def __call__(self, model: nn.Module) -> Loss:
        def loss(x: Tensor, y: Tensor, progress: float, generator: Generator) -> Tensor:
            each = F.cross_entropy(model(x), y, reduction="none")
            return torch.where(each < self.below, each, 0.0).mean()

        return loss


@dataclass(frozen=True)
class AsStored:
    """The weights as a device holds them: one realisation of a fault, another one at each step where it draws."""

    fault: Fault

    def __post_init__(self) -> None:
        if not isinstance(self.fault, Fault):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user gives
            raise InvalidInput(f"fault is {self.fault!r}; give a fault, such as ns.BitErrors(0.01)")

    def __call__(self, weights: Weights, slopes: Slopes, progress: float, generator: Generator) -> Mapping[str, Tensor]:
        return self.fault(weights, generator)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InvalidInput(f"{name} is {value!r}; give a finite number above 0")


# --- by name ----------------------------------------------------------------------------------------------------------------


def sam(*, rho: float) -> AtMovedWeights:
    """Plain training at the worst weights within a distance."""
    return AtMovedWeights(natural, Sharpness(rho))


def asam(*, rho: float) -> AtMovedWeights:
    """The same with distances relative to each weight."""
    return AtMovedWeights(natural, Sharpness(rho, adaptive=True))


def awp(
    *, eps_x: float, rho: float, steps: int = STEPS, warmup: float = RADII, domain: Domain = (0.0, 1.0)
) -> Adversarial:  # fmt: skip
    """Adversarial training with weights moved against it by a part of their norm."""
    return Adversarial(eps_x, steps, warmup, domain, AtMovedWeights(natural, Relative(rho)))


def rwp(
    *, eps_x: float, rho: float, steps: int = STEPS, warmup: float = RADII, domain: Domain = (0.0, 1.0)
) -> Adversarial:  # fmt: skip
    """The same in 10 steps, by the examples alone whose loss is below 1.7."""
    return Adversarial(eps_x, steps, warmup, domain, AtMovedWeights(natural, Relative(rho, steps=10), climbs=Easy(1.7)))


def joint_batch(
    *, eps_x: float, eps_w: float, steps: int = STEPS, warmup: float = RADII, domain: Domain = (0.0, 1.0)
) -> Adversarial:  # fmt: skip
    """Adversarial training at the corner of the weight box that one signed step finds for the batch, at its worst inputs."""
    return Adversarial(eps_x, steps, warmup, domain, AtMovedWeights(natural, Signed(eps_w, warmup=warmup)))


def quantised(
    *, bits: int, eps_x: float = 0.0, steps: int = STEPS, warmup: float = RADII, domain: Domain = (0.0, 1.0)
) -> LossOf:  # fmt: skip
    """Training at the rounded weights; with eps_x at the worst inputs of the network as it is."""
    stored = AtMovedWeights(natural, AsStored(UniformRounding(bits)))
    return Adversarial(eps_x, steps, warmup, domain, stored) if eps_x else stored


def randbet(
    *, rate: float, bits: int = 8, eps_x: float = 0.0, steps: int = STEPS, warmup: float = RADII, domain: Domain = (0.0, 1.0)
) -> LossOf:  # fmt: skip
    """The mean of the loss at the rounded weights and at those after random bit errors.  Stutz et al., arXiv:2006.13977."""
    storage = UniformRounding(bits)
    both = Mean(tuple(AtMovedWeights(natural, AsStored(fault)) for fault in (storage, BitErrors(rate, storage))))
    return Adversarial(eps_x, steps, warmup, domain, both) if eps_x else both
