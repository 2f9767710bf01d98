"""perturbation.py - a point of the joint ball, and who shares its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from nonsingular.errors import NotInBall
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.interval import KEPT, Interval


@dataclass(frozen=True)
class Perturbation:
    """A point of the joint ball: perturbed inputs and the perturbed values of the tensors that moved.

    x: (B, *input).  weights: name -> tensor of the parameter's shape, or (B, *shape) in scope "sample".
    Unpacks as `x_adv, w_adv = perturbation`.
    """

    x: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    scope: Scope = "batch"

    def __iter__(self) -> Iterator[Tensor | Mapping[str, Tensor]]:
        return iter((self.x, self.weights))

    def part(self, at: Tensor | slice) -> Perturbation:
        """The perturbation of some of its examples; a W' that all share stays as it is."""
        own = self.scope == "sample"
        return Perturbation(self.x[at], {n: w[at] if own else w for n, w in self.weights.items()}, self.scope)

    @staticmethod
    def joined(parts: Sequence[Perturbation]) -> Perturbation:
        """Joins the perturbations of examples attacked separately, in their order: of scope sample, unless there is one part."""
        first, *others = parts
        if not others:
            return first
        weights = {n: torch.cat([p.weights[n] for p in parts]) for n in first.weights}
        return Perturbation(torch.cat([p.x for p in parts]), weights, first.scope)

    def check(self, model: nn.Module, x: Tensor, ball: JointBall, box: Interval | None = None) -> Perturbation:
        """Itself, after the stored tensors are compared with the boxes of `ball` around `x` and the model's parameters.

        box: that of the inputs, `ball.input_box(x)`, where it is known; otherwise it is made for some examples at a time.

        Values outside by rounding alone, such as x + eps_x in the dtype of x, are moved onto the box.
        Raises NotInBall if a tensor has another shape or has left its box: a fault of the attack.
        """
        params = dict(model.named_parameters())
        boxes = ball.weight_boxes(params)
        own = (len(x),) if self.scope == "sample" else ()
        if self.x.shape != x.shape:
            raise NotInBall(
                f"the attack returned x' of shape {tuple(self.x.shape)}; give the shape of the inputs, {tuple(x.shape)}"
            )
        inputs = _inputs_within(self.x, x, ball, box)
        if inputs is None:
            raise NotInBall("the attack left the input ball; clamp x' to ball.input_box(x)")
        if fixed := sorted(set(self.weights) - set(boxes)):
            raise NotInBall(f"the attack moved {fixed}, which the ball holds fixed; it may move {sorted(boxes)}")
        found: dict[str, Tensor] = {}
        for name, w in self.weights.items():
            if w.shape != (wanted := (*own, *params[name].shape)):
                who = "each example has its own W'" if own else "all examples share one W'"
                raise NotInBall(
                    f"the attack returned '{name}' with shape {tuple(w.shape)}; in scope {self.scope} {who}: give {tuple(wanted)}"
                )
            inside = _within(w, boxes[name], partial(_wide, ball, params, name))
            if inside is None:
                raise NotInBall(f"the attack left the weight ball at '{name}'; clamp it to ball.weight_boxes(params)['{name}']")
            found[name] = inside
        same = inputs is self.x and all(w is self.weights[name] for name, w in found.items())
        return self if same else Perturbation(inputs, found, self.scope)


def _wide(ball: JointBall, params: Mapping[str, Tensor], name: str) -> Interval:
    return ball.weight_boxes(params, outward=True)[name]


def _inputs_within(t: Tensor, x: Tensor, ball: JointBall, box: Interval | None) -> Tensor | None:
    """As `_within`, for inputs: some examples at a time, as boxes of many would take twice their room."""
    if box is not None:
        return _within(t, box, lambda: ball.input_box(x, outward=True))
    size, found = max(1, KEPT // max(1, x[:1].numel()) + 1), t
    for at in (slice(i, i + size) for i in range(0, max(1, len(x)), size)):
        inside = _within(part := t[at], ball.input_box(x[at]), partial(ball.input_box, x[at], outward=True))
        if inside is None:
            return None
        if inside is not part:
            found = t.clone() if found is t else found
            found[at] = inside
    return found


def _within(t: Tensor, box: Interval, wide: Callable[[], Interval]) -> Tensor | None:
    """`t` in the box: moved there from the wide one; None from further away."""
    return t if box.contains(t) else torch.clamp(t, box.lo, box.hi) if wide().contains(t) else None
