"""preconditions.py - whether a number can be computed for a model and its data, and what looks like a mistake.

A mistake that makes a number impossible or meaningless is an InvalidInput.  What only looks like one is a doubt: a sentence that
is shown (logger "nonsingular", level WARNING) and kept, and the work goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.network.calling import outputs
from nonsingular.network.copies import check_module
from nonsingular.network.margins import check_labels, is_correct
from nonsingular.network.memory import halving
from nonsingular.network.network import network_of
from nonsingular.network.one_logit import flat_of
from nonsingular.network.rounded import unrounded
from nonsingular.threat.ball import JointBall

log = logging.getLogger("nonsingular")

ENOUGH = 20
"""Fewest examples for which labels and accuracy are checked for mistakes."""


def check_inputs(
    model: nn.Module, x: Tensor, y: Tensor, ball: JointBall, *, classes: int | None = None, random: bool = False
) -> list[str]:  # fmt: skip
    """Raises InvalidInput, with a remedy, for data or a model for which no number can be computed.

    x: (N, *input) in ball.domain.  y: (N,).  classes: how many the data set names.  random: forward passes may be.
    Returns doubts: what looks like a mistake (probabilities instead of logits, an accuracy no better than chance, ...).
    Cost: two passes over all examples; logits that differ in the second are random, or depend on the other examples.
    """
    check_module(model)
    _check_tensors(x, y)
    _check_values(x)
    ball.check_domain(x)
    ball.reach(x)  # a shape of eps_x that does not fit
    ball.radii(dict(model.named_parameters()))  # an unknown name in eps_w
    _check_kinds(model, x)
    logits = _logits(model, x)
    if not random:
        _check_repeatable(model, x, logits)
    if (flat := flat_of(model)) is not None:
        _check_two_classes(y, (len(x),) if flat else (len(x), 1))
    _check_classes(y, logits.shape[1])
    check_labels(y, len(x), logits.shape[1])
    bad = (~torch.isfinite(logits).all(1)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the model returns NaN or infinite logits for {len(bad)} examples, first for number {int(bad[0])}; check its weights"
        )
    return [*_doubts_of_data(x, y, ball), *_doubts_of_logits(logits, y.to(logits.device).long(), classes)]


def warn(doubts: Sequence[str]) -> None:
    """Logs the doubts of `check_inputs`."""
    for doubt in doubts:
        log.warning("warning: %s", doubt)


# --- what makes a number impossible ---------------------------------------------------------------------------------------


def _check_tensors(x: Tensor, y: Tensor) -> None:
    """Inputs in floats, labels in whole numbers, one for each."""
    if x.dim() == 0 or not len(x):
        raise InvalidInput("the data set is empty; give at least one example")
    if x.dtype == torch.uint8:
        raise InvalidInput(
            "x is torch.uint8; give floating-point inputs, scaled to the domain: x.float() / 255 for pixels in [0, 1]"
        )
    if not x.is_floating_point():
        raise InvalidInput(
            f"x is {x.dtype}; give floating-point inputs, scaled to the domain. An ℓ∞ radius has no meaning for whole numbers "
            "such as token ids: give their embeddings or one-hot rows, and a model that takes these (docs/inputs.md)"
        )
    given = f"y has shape {tuple(y.shape)} and {y.dtype} for {len(x)} inputs; give one integer class index for each"
    if y.dim() == 2 and len(y) == len(x) and y.shape[1] > 1:
        if bool((y.sum(1) == 1).all()):
            raise InvalidInput(f"{given} (one-hot? give y.argmax(1))")
        raise InvalidInput(f"{given} (several labels at once? Evaluate one label at a time, with a model that returns its logit)")
    if y.dim() == 2 and y.shape == (len(x), 1):
        raise InvalidInput(f"{given} (give y.squeeze(1){'.long()' if y.is_floating_point() else ''})")
    if y.is_floating_point() and y.shape == (len(x),) and bool((y == y.floor()).all()):
        raise InvalidInput(f"{given} (give y.long())")
    if y.dtype == torch.bool:
        raise InvalidInput(f"{given} (give y.long())")


def _check_values(x: Tensor) -> None:
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero() if x.dim() > 1 else (~torch.isfinite(x)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the inputs contain NaN or infinite values in {len(bad)} examples, first in number {int(bad[0])}; remove those first"
        )


def _check_kinds(model: nn.Module, x: Tensor) -> None:
    """Compares device and dtype of inputs and weights.  Weights of several dtypes are left to the model."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    devices = {p.device for p in weights}
    if devices and x.device not in devices:
        raise InvalidInput(
            f"the model is on {', '.join(sorted(map(str, devices)))} and x on {x.device}; move one to the other: x.to(device)"
        )
    kinds = {p.dtype for p in weights}
    if len(kinds) == 1 and x.dtype not in kinds:
        (kind,) = kinds
        raise InvalidInput(
            f"the model does not accept inputs of shape {tuple(x.shape)} and {x.dtype}: its weights are {kind}; give x.to({kind})"
        )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """(N, K) logits of all examples."""
    still = network_of(model)

    def run(size: int) -> Tensor:
        return torch.cat([outputs(still, part.clone()) for part in x.split(size)])

    try:
        with torch.no_grad():
            logits = halving(run, 1024)
    except InvalidInput as e:
        if e.__cause__ is None:  # the output is at fault, not the input
            raise
        raise InvalidInput(f"{e}{_other_shape(still, x[:2])}") from e.__cause__
    if logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise InvalidInput(
            f"the model returns shape {tuple(logits.shape)} for {len(x)} inputs; a classifier returns (B, K) logits with K >= 2, "
            "or one logit for two classes, (B, 1) or (B,)"
        )
    return logits


def _check_repeatable(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """Checks that another pass, over other batches, gives the same logits up to rounding."""
    still, n = network_of(model), len(x)
    other = torch.cat([x, x.flip(0) if n > 1 else 0.5 * x])  # other neighbours in each batch, also for a single example
    slack = 200 * torch.finfo(logits.dtype).eps * (1 + logits.abs().amax().item())

    def moved(inputs: Tensor, cut: int, logits: Tensor = logits) -> float:
        def run(size: int) -> Tensor:
            return torch.cat([outputs(still, part.clone()) for part in inputs.split(size)])[:n]

        try:
            with torch.no_grad():
                return (halving(run, cut) - logits).abs().amax().item()
        except InvalidInput:  # it does not take a batch of another size
            return math.inf

    cut = min(1024, n // 2 + 2)
    if not moved(other, cut) > slack:
        return
    with unrounded():  # where activations are quantised, the last bit of a sum may decide on a whole step
        if not (away := moved(other, cut, _logits(model, x))) > slack:
            return
    if any(moved(x, 1024) > slack for _ in range(8)):  # a random branch may be taken twice in a row
        raise InvalidInput(
            f"the model's forward is random: two passes over the same inputs differ by up to {away:.3g} in a logit. Switch the "
            "randomness off (model.eval(); dropout with training=self.training), or average over passes with fixed seeds: "
            "ns.Averaged(model, passes), --expectation PASSES on the command line"
        )
    raise InvalidInput(
        f"the logits of an example change by up to {away:.3g} with the other examples of its batch, as with BatchNorm in train "
        "mode or a squeeze() that removes the batch; call model.eval(), and treat each example by itself"
    )


def _other_shape(still: nn.Module, x: Tensor) -> str:
    """A hint at the shape that the model would accept, if it is a usual one."""
    tries: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("channels last? Give x.permute(0, 3, 1, 2)", lambda t: t.permute(0, 3, 1, 2)),
        ("channels first? Give x.permute(0, 2, 3, 1)", lambda t: t.permute(0, 2, 3, 1)),
        ("no channel? Give x.unsqueeze(1)", lambda t: t.unsqueeze(1)),
        ("flat inputs? Give x.flatten(1), or put nn.Flatten() first", lambda t: t.flatten(1)),
    ]
    for hint, change in tries:
        try:
            with torch.no_grad():
                logits = still(change(x).contiguous())
            if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(x):
                return f" ({hint})"
        except Exception:  # it does not accept this one either
            continue
    return ""


def _check_two_classes(y: Tensor, shape: tuple[int, ...]) -> None:
    """Checks the labels 0 and 1 of a network whose output has this shape."""
    lo, hi = int(y.min()), int(y.max())
    if lo < 0 or hi > 1:
        hint = " (give (y > 0).long())" if set(y.unique().tolist()) == {-1, 1} else ""
        raise InvalidInput(
            f"the model returns shape {shape}, the logit of class 1 of 0 and 1, but labels span {lo}..{hi}{hint}; "
            "a classifier of more classes returns (B, K) logits with K >= 2, and regression has no classes to lose"
        )


def _check_classes(y: Tensor, k: int) -> None:
    """Raises InvalidInput for labels that count from 1."""
    if y.dim() == 1 and len(y) and not y.is_floating_point() and int(y.min()) >= 1 and int(y.max()) == k:
        raise InvalidInput(
            f"labels span {int(y.min())}..{k}, but the model has {k} classes (0..{k - 1}); do they start at 1? Give y - 1"
        )


# --- what only looks like a mistake ---------------------------------------------------------------------------------------


def _doubts_of_data(x: Tensor, y: Tensor, ball: JointBall) -> list[str]:
    doubts: list[str] = []
    lo, hi = (end.item() for end in x.aminmax())
    if ball.domain is None and x.dim() == 4 and lo >= 0 and 1 < hi <= 255 and hi > 100:
        doubts.append(
            f"images span [{lo:.4g}, {hi:.4g}] without a domain: pixels are limited to [0, 255]; radii are in their units"
        )
    if ball.domain is not None and x.dim() == 4 and lo >= 0 and hi <= 1 and ball.domain[1] >= 100:
        doubts.append(
            f"images span [{lo:.4g}, {hi:.4g}] in the domain {list(ball.domain)}: were they divided by 255? "
            "Radii and domain are in the units of the inputs as they are given"
        )
    if len(y) >= ENOUGH and len(y.unique()) == 1:
        doubts.append(
            f"all {len(y)} labels are {int(y[0])}: every number is of one class alone; is the data sorted, and cut off?"
        )
    return doubts


def _doubts_of_logits(logits: Tensor, y: Tensor, classes: int | None) -> list[str]:
    doubts: list[str] = []
    n, k = logits.shape
    if bool((logits >= 0).all()) and bool(((logits.double().sum(1) - 1).abs() < 1e-3).all()):
        doubts.append(
            "the model returns probabilities (rows sum to 1): gradients vanish through softmax, and attacks then look weaker "
            "than they are; give the logits before it"
        )
    if classes is not None and classes != k:
        doubts.append(f"the model has {k} logits and the data {classes} classes; do the two belong together?")
    accuracy = is_correct(logits, y).double().mean().item()
    if n >= ENOUGH and accuracy <= 1 / k:
        doubts.append(
            f"the model is right for {100 * accuracy:.1f} % of {n} examples, no better than chance ({100 / k:.1f} %): are labels "
            "and inputs in one order, classes numbered as in training, and inputs preprocessed as in training?"
        )
    return doubts
