"""joint_pgd.py - the paper's attack: signed gradient ascent on inputs and weights at once.  arXiv:2102.11935, section 4.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from nonsingular.attacks.search.starts import restarting
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import gradient, logits_of_each, outputs, recording
from nonsingular.network.heads import classifier
from nonsingular.network.margins import check_labels, cross_entropy
from nonsingular.network.network import Network
from nonsingular.network.passes import count
from nonsingular.threat.ball import JointBall, Scope, check_scope
from nonsingular.threat.interval import Interval
from nonsingular.threat.perturbation import Perturbation


def joint_pgd(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, steps: int = 100, step_x: float = 0.01, step_w: float = 5e-4,
    scope: Scope = "batch", chunk: int = 1024, generator: Generator | None = None,
) -> Perturbation:  # fmt: skip
    """Signed gradient ascent on the mean cross-entropy over input and weights at once, projected onto `ball`; the last iterate.

    x: (B, *input) inside ball.domain.  y: (B,) class indices.  model: (B, *input) -> (B, K) logits, in eval mode.
    scope: "batch" and "dataset" give one W' for all of `x`; "sample" gives each example its own (memory B x parameters).
    chunk: examples per forward and backward pass, halved where memory runs out; gradients on W are summed before the sign.
    generator: given, starts at a uniform random point of the ball; otherwise at (x, W).
    A zero radius makes it an attack on the inputs alone or on the weights alone.  The step on the inputs is the paper's, in the
    units of the data, whatever the radii: for columns with radii far above steps * step_x use another attack.
    Returns a point of the ball, checked from the tensors that it holds.  Never changes `model`, also when interrupted.
    Raises InvalidInput if x leaves the domain, eps_w names an unknown tensor, or the model gives no gradient.
    Cost: `steps` forward and backward passes.  Source: arXiv:2102.11935, section 4.1 (100 steps, 0.01, 0.0005).
    """
    check_scope(scope)
    network = classifier(model, x, ball)
    if steps < 0 or chunk < 1:
        raise InvalidInput(f"steps is {steps} and chunk is {chunk}; give steps >= 0 and chunk >= 1")

    def run(chunk: int) -> Perturbation:
        with torch.no_grad():
            check_labels(y, len(x), outputs(network, x[:1].clone()).shape[1] if len(x) else 0)
        ascent = _Ascent(ball, steps, step_x, step_w, chunk, generator)
        ascend = ascent.each if scope == "sample" else ascent.together
        return Perturbation(*ascend(network, x.detach().clone(), y.long().clone()), scope).check(network, x, ball)

    with recording():
        return restarting(run, chunk, generator)


@dataclass(frozen=True, eq=False)
class _Ascent:
    """The settings of `joint_pgd`.  Both ways move the inputs x that they are given in place, and return them with W'."""

    ball: JointBall
    steps: int
    step_x: float
    step_w: float
    chunk: int
    generator: Generator | None

    def together(self, network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One W' for all of x: it lives in the parameters of a lent copy, and both moves happen in place."""
        with network.lent() as moving:
            params = dict(moving.named_parameters())
            boxes, box = self.ball.weight_boxes(params), self.ball.input_box(x)
            W = {name: params[name].requires_grad_() for name in boxes}
            self._scatter_(x, box)
            for name, b in boxes.items():
                self._scatter_(W[name].data, b)
            for _ in self._steps(W):
                total: list[Tensor] | None = None
                for at in self._pieces(x):
                    point = x[at].detach().requires_grad_(self.ball.moves_inputs)
                    count(forward=len(point), backward=len(point))
                    logits = outputs(moving, point.clone())  # a copy: the model's first operation may work in place
                    loss = cross_entropy(logits, y[at]) / len(x)  # the mean, whatever the chunks
                    g = gradient(loss, [point, *W.values()] if self.ball.moves_inputs else [*W.values()])
                    if self.ball.moves_inputs:  # W is still the W of this step, so both moves are simultaneous
                        Interval(box.lo[at], box.hi[at]).project_(x[at].add_(g.pop(0).sign(), alpha=self.step_x))
                    total = g if total is None else [a.add_(b) for a, b in zip(total, g, strict=True)]
                for w, b, g in zip(W.values(), boxes.values(), total or [], strict=True):
                    b.project_(w.data.add_(g.sign(), alpha=self.step_w))
            return x, {name: w.detach().clone() for name, w in W.items()}

    def each(self, network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each example its own W', with a leading dimension B."""
        params = dict(network.named_parameters())
        boxes, box = self.ball.weight_boxes(params), self.ball.input_box(x)
        W = {name: params[name].detach().expand(len(x), *params[name].shape).clone() for name in boxes}
        self._scatter_(x, box)
        for name, b in boxes.items():
            for w in W[name]:
                self._scatter_(w, b)
        logits = logits_of_each(network)
        for _ in self._steps(W):
            for at in self._pieces(x):
                count(forward=len(x[at]), backward=len(x[at]))
                point = x[at].detach().requires_grad_(self.ball.moves_inputs)
                own = {name: w[at].detach().requires_grad_() for name, w in W.items()}
                loss = cross_entropy(logits(own, point), y[at])  # a sum: every example has its own gradient
                g = gradient(loss, [point, *own.values()] if self.ball.moves_inputs else [*own.values()])
                if self.ball.moves_inputs:
                    Interval(box.lo[at], box.hi[at]).project_(x[at].add_(g.pop(0).sign(), alpha=self.step_x))
                for w, b, d in zip(W.values(), boxes.values(), g, strict=True):
                    b.project_(w[at].add_(d.sign(), alpha=self.step_w))
        return x, W

    def _steps(self, W: Mapping[str, Tensor]) -> range:
        """No steps where nothing moves."""
        return range(self.steps if W or self.ball.moves_inputs else 0)

    def _pieces(self, x: Tensor) -> list[slice]:
        return [slice(i, i + self.chunk) for i in range(0, max(1, len(x)), self.chunk)]

    def _scatter_(self, t: Tensor, box: Interval) -> None:
        if self.generator is not None:
            t.copy_(box.sample(self.generator))
