"""adapters.py - input attacks of Foolbox and torchattacks, where installed, as attacks of this library.

They see a copy of the network at fixed weights and return inputs; what they report as success is not used.  Their result is
projected onto the ball, and kept for an example if its margin is below that at the start.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nonsingular.attacks.search.starts import begin, checked_start, frozen, nearest, spread
from nonsingular.catalog import Attack
from nonsingular.errors import InvalidInput
from nonsingular.network.calling import outputs, recording
from nonsingular.network.heads import classifier
from nonsingular.network.network import Network
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.perturbation import Perturbation

Foreign = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(network on inputs in [0, 1], x, y, eps in these units) -> x'."""


def foolbox_attack(attack: Any) -> Attack:
    """An attack object of Foolbox, such as foolbox.attacks.LinfPGD(steps=40), as an attack on the inputs.

    Its radius is the ball's eps_x, one number for all elements, also where it is one in another norm; its result is projected
    onto the ball.
    Raises InvalidInput if Foolbox is not installed; when run, if eps_x is not one number.
    """
    foolbox = _package("foolbox")

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        seen = foolbox.PyTorchModel(network, bounds=(0, 1), device=x.device)
        return attack(seen, x, y, epsilons=eps)[1]  # what lies inside its own ball, successful or not

    return _plugged(run, f"foolbox {attack!r}")


def torchattacks_attack(name: str, **options: Any) -> Attack:
    """An attack of torchattacks by the name of its class, such as "APGD" with n_restarts=5, as an attack on the inputs.

    options: arguments of the class but for `eps`, which is the ball's eps_x; a class without `eps` has no radius, and what it
        finds is projected onto the ball.
    Raises InvalidInput if torchattacks is not installed, for a name or an option that it does not have.
    """
    package = _package("torchattacks")
    kind: Any = getattr(package, name, None)
    if name not in package.__all__:
        near = difflib.get_close_matches(name, package.__all__, 1)
        raise InvalidInput(f"torchattacks has no attack '{name}'; " + (f"did you mean {near[0]!r}?" if near else "see its list"))
    known = [*inspect.signature(kind).parameters][1:]
    if bad := sorted(set(options) - set(known) | set(options) & {"eps"}):
        fit = ", ".join(k for k in known if k != "eps") or "none"
        raise InvalidInput(f"torchattacks' {name} is given {bad}; its options are {fit}, and eps is the ball's eps_x")

    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return kind(network, **options, **({"eps": eps} if "eps" in known else {}))(x, y)

    told = ", ".join(f"{k}={v}" for k, v in sorted(options.items()))
    return _plugged(run, f"torchattacks {name}({told})")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise InvalidInput(f"{name} cannot be imported ({e}); install it with: pip install {name}") from e


class _Unit(nn.Module):
    """The network on inputs scaled from [lo, hi] to [0, 1], the only range that every foreign attack knows."""

    def __init__(self, network: nn.Module, lo: float, hi: float) -> None:
        super().__init__()
        self.network, self.lo, self.width = network, lo, hi - lo

    def forward(self, u: Tensor) -> Tensor:
        return outputs(self.network, u * self.width + self.lo)


def _plugged(foreign: Foreign, name: str) -> Attack:
    """name: identifies the attack in records, so it includes the settings."""

    def attack(
        model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, scope: Scope = "batch",
        start: Perturbation | None = None, generator: torch.Generator | None = None,
    ) -> Perturbation:  # fmt: skip
        """An attack on the inputs at fixed weights: W, or those of `start`; keeps the smaller margin of each example.

        x: (B, *input) inside ball.domain.  y: (B,) class indices.  The weights that come back are those of `start`, or none (W).
        In scope `sample` with weights in `start` the examples are attacked one by one, each at its own.
        generator: seeds what the foreign attack draws (seed 0 without); global generators are left as they were.
        Never changes `model`.
        """
        with recording():
            y, model = y.long(), classifier(model, x, ball)
            with torch.no_grad():
                given = checked_start(model, x, ball, scope, start)
                point, margin = begin(model, x, y, given, moved=start is not None, chunk=1024)
            eps = ball.eps_x_number(f"'{name}'")
            if not eps or not len(x):
                return point.check(model, x, ball)
            each = scope == "sample" and bool(point.weights)
            with _seeded(generator, x.device):
                run = _Inputs(foreign, ball, eps)
                if each:
                    own = ({n: w[i] for n, w in point.weights.items()} for i in range(len(x)))
                    found = torch.cat([run(model, w, *one) for w, *one in zip(own, x.split(1), y.split(1), strict=True)])
                else:
                    found = run(model, point.weights, x, y)
            with torch.no_grad():
                reached = nearest(frozen(model, point.weights, each=each, chunk=1024)(found), y)
                found = torch.where(spread(reached < margin, x), found, point.x)
            return Perturbation(found, point.weights, scope).check(model, x, ball)

    return Attack(name, attack, starts=True)


@dataclass(frozen=True)
class _Inputs:
    """A foreign attack on the inputs of a ball, with its radius in the units of the data."""

    foreign: Foreign
    ball: JointBall
    eps: float

    def __call__(self, network: Network, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The inputs that the attack finds at these weights, projected onto the ball; x where they are not finite."""
        box = self.ball.input_box(x)
        lo, hi = self.ball.domain or (box.lo.min().item(), box.hi.max().item())
        u = ((x.detach() - lo) / (hi - lo)).clamp_(0, 1)
        with network.lent(weights) as moving:
            found = self.foreign(_Unit(moving, lo, hi).eval(), u, y.clone(), self.eps / (hi - lo)).detach().to(x)
        found = torch.where(torch.isfinite(found), found * (hi - lo) + lo, x)
        return box.project_(found)


@contextmanager
def _seeded(generator: torch.Generator | None, device: torch.device) -> Generator[None]:
    """Seed the global generators of torch, NumPy and Python; restore their states afterwards."""
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
