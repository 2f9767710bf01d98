"""certify.py - what is proven of each example: at one ball, and the largest radii."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nonsingular.bounds.branch import search
from nonsingular.bounds.interval import region
from nonsingular.bounds.rounding import rounding
from nonsingular.bounds.verdicts import Verdicts
from nonsingular.catalog import ATTACKS, lookup, sound
from nonsingular.errors import InvalidInput, UnsupportedModel, renamed
from nonsingular.network.calling import products
from nonsingular.network.casts import at_least
from nonsingular.network.dense import dense_chain
from nonsingular.network.graph import lower_outputs, precise
from nonsingular.network.heads import classifier
from nonsingular.network.margins import worst_margin
from nonsingular.network.memory import halving
from nonsingular.network.network import Network
from nonsingular.network.precision import Floats, Precision, precision
from nonsingular.network.preconditions import check_inputs
from nonsingular.threat.ball import JointBall, Scope
from nonsingular.threat.perturbation import Perturbation

AT_ONCE = 500
"""Examples bounded together, so that memory does not grow with the data set."""
ROUNDED = ("best", "interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
"""Bounds that allow for the rounding of a deployed network."""
FAR = 4
"""An example whose bound in float32 is so many times the possible effect of rounding below 0 is not tried in float64."""


@dataclass(frozen=True)
class Certificate:
    """Lower bounds that hold for every point of the ball, each example with its own W' (scope `sample`).

    margins: (B, K) lower bounds of logit_y - logit_j, column y is 0.  verified: (B,) no class can overtake y.
    deployed: the type that the network is computed in, in any order of summation; None: exactly.
    """

    margins: Tensor
    verified: Tensor
    bound: str
    scope: Scope = "sample"
    deployed: str | None = None

    @property
    def method(self) -> str:
        """The old name of `bound`."""
        warnings.warn("Certificate.method is called bound now", DeprecationWarning, stacklevel=2)
        return self.bound

    @property
    def accuracy(self) -> float:
        """Certified accuracy in [0, 1]: a lower bound of robust accuracy in every scope."""
        return self.verified.double().mean().item()


@renamed(method="bound")
def certify(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, bound: str = "best", dtype: torch.dtype = torch.float64,
    deployed: str | None = None,
) -> Certificate:  # fmt: skip
    """Proves, where it can, that no input and no weights in `ball` change the prediction.

    x: (B, *input) in ball.domain.  y: (B,).
    bound: a sound bound of the catalog; by default the best of all of them, cheapest first, until each example is decided.
    dtype: in which the bound is computed.  In float32, about twice as fast on a CPU, what rounding can do (bounds/rounding.py) is
        taken off, and examples that it leaves open are computed again in float64.
    deployed: "float64", "float32", "bfloat16", "float16", or the last two with "+float32" (sums in float32): the network as
        computed in that type, in any order of summation (docs/certificates/README.md: under which assumptions).  None: its exact
        function.
    Guarantee: that of the bound, in exact arithmetic.  With `deployed` the rounding of the bound is taken off, too, and the exact
        function is covered beside the computed one; "float64" is the least that does so.
    A bound that is not finite verifies nothing.  Cost: that of the bound.
    Raises UnsupportedModel if the bound has no rule for a part of the model, or none for its rounding, InvalidInput for a bound
    that is not sound.
    """
    model = classifier(model, x, ball)
    check_inputs(model, x, y, ball)
    lower = Prover(model, bound, dtype, deployed)(x, y.long(), ball)
    return Certificate(lower, verified(lower, y.long()), bound, deployed=deployed)


def verified(lower: Tensor, y: Tensor) -> Tensor:
    """(B,) whether these (B, K) lower margins prove the label.  A bound that is not finite proves nothing."""
    return (worst_margin(lower, y) > 0) & torch.isfinite(lower).all(1)


class Prover:
    """A sound bound of the catalog on one model: (x, y, ball) -> (B, K) lower margins, computed as `certify` says."""

    def __init__(self, model: nn.Module, bound: str, dtype: torch.dtype = torch.float64, deployed: str | None = None) -> None:
        self.bound = sound(bound).load()
        if dtype not in (torch.float32, torch.float64):
            raise InvalidInput(f"dtype is {dtype}; bounds are computed in torch.float32 or torch.float64")
        if deployed is not None and bound not in ROUNDED:
            raise UnsupportedModel(
                f"{bound} has no term for the rounding of a deployed network; choose one of {', '.join(ROUNDED)}"
            )
        self.models = {d: precise(model, d) for d in {dtype, torch.float64}}
        self.dtype, self.deployed = dtype, precision(deployed)
        self.kinds = {p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()}

    def __call__(self, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
        ball = ball.rounded(x.dtype)
        with torch.no_grad(), products("highest"):
            lower = self._in(self.dtype, x, y, ball).double()
            if self.dtype == torch.float32 and len(x):
                off = rounding(region(self.models[torch.float64], x.double(), y, ball), torch.float32)
                worst = worst_margin(lower, y)
                close = (~((worst > off) | (worst < -FAR * off))).nonzero().flatten()  # ~(>): NaN is close
                lower = (lower - off[:, None]).scatter(1, y[:, None], 0.0)
                if len(close):
                    lower.index_copy_(0, close, self._in(torch.float64, x[close], y[close], ball))
            return lower

    def _in(self, dtype: torch.dtype, x: Tensor, y: Tensor, ball: JointBall) -> Tensor:
        network = allowing(self.models[dtype], self.deployed, (x.dtype, *self.kinds))

        def run(size: int) -> Tensor:
            cuts = zip(x.split(size), y.split(size), strict=True)
            lower = [self.bound(network, part.to(dtype), labels, ball) for part, labels in cuts]
            return lower_outputs(self.models[dtype], x, torch.cat(lower))

        return halving(run, AT_ONCE)


def allowing(network: Network, deployed: Precision | None, given: Iterable[torch.dtype]) -> Network:
    """The network whose bounds allow for rounding: that of the deployed type, and their own.  Without a type: as it is.

    given: types of its inputs, parameters and buffers.
    """
    if deployed is None:
        return network
    return network.allowing(Floats(deployed, narrowed=not all(at_least(deployed.dtype, own) for own in given)))


def decide(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, attack: str | None = None, parts: int = 2000,
    seconds: float = float("inf"), report: Callable[[int], None] = lambda decided: None, deployed: str | None = None,
) -> Verdicts:  # fmt: skip
    """`verified`, `falsified` with the perturbation that does it, or `timeout` with the bounds so far, for each example.

    x: (B, *input) in ball.domain.  y: (B,).  Everything is computed in float64, where `perturbation` changes the prediction.
    attack: the attack to try first, a name of the catalog that supports scope `sample`; by default `apgd` where the model is
        dense, else none.  Then branch and bound (bounds/branch.py) on what is neither broken nor verified by linear bounds.
    parts, seconds: budget of an example: parts of the region bounded, and time on average.
    report: called with the number of examples decided since the last call.
    Guarantee: `verified` holds for every x' and every W' of the ball, each example with its own W', in exact arithmetic.
        `deployed`: as in `certify`, for `verified`; `falsified` is what float64 computes.
    Raises UnsupportedModel without a rule for an operation.  Cost: on the default MNIST network milliseconds to seconds each.
    Memory: the perturbation holds the moving parameters once for each example; give a large set in parts.
    """
    model = classifier(model, x, ball)
    check_inputs(model, x, y, ball)
    given = (x.dtype, *(p.dtype for p in [*model.parameters(), *model.buffers()] if p.is_floating_point()))
    exact, x, y, ball = precise(model, torch.float64), x.double(), y.long(), ball.rounded(x.dtype)
    known = _attacked(exact, x, y, ball, attack)
    network = allowing(exact, precision(deployed), given)
    found = search(network, x, y, ball, known=known, parts=parts, seconds=seconds, report=report)
    return replace(found, lower=lower_outputs(exact, x, found.lower))


def _attacked(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, attack: str | None) -> Perturbation | None:
    if attack is None and not _is_dense(model):
        return None
    return lookup(ATTACKS, attack or "apgd", "attack")(model, x, y, ball, scope="sample")


def _is_dense(model: nn.Module) -> bool:
    try:
        dense_chain(model)
    except UnsupportedModel:
        return False
    return True
