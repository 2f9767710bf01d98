"""checks.py - whether a model and its data can be given a number at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.graph import twin
from nonsingular.margins import check_labels
from nonsingular.memory import halving
from nonsingular.threat import JointBall


def check_inputs(model: nn.Module, x: Tensor, y: Tensor, ball: JointBall) -> None:
    """Raises InvalidInput, with what to do, for data or a model that no number can be computed for."""
    if not len(x):
        raise InvalidInput("the data set is empty; give at least one example")
    if not x.is_floating_point():
        raise InvalidInput(f"x is {x.dtype}; give floating-point inputs, scaled to the domain")
    ball.check_domain(x)
    params = dict(model.named_parameters())
    ball.radii(params)  # an unknown name in eps_w
    still = twin(model)
    try:
        with torch.no_grad():
            logits = halving(lambda size: torch.cat([still(part.clone()) for part in x.split(size)]), 1024)
    except (RuntimeError, TypeError, ValueError, IndexError) as e:
        raise InvalidInput(f"the model does not accept inputs of shape {tuple(x.shape)} and {x.dtype}: {e}") from e
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise InvalidInput(f"the model returns shape {tuple(logits.shape)}; a classifier returns (B, K) logits with K >= 2")
    check_labels(y, len(x), logits.shape[1])
    bad = (~torch.isfinite(logits).all(1)).nonzero()
    if len(bad):
        raise InvalidInput(
            f"the model returns NaN or infinite logits for {len(bad)} examples, first for number {int(bad[0])}; check its weights"
        )
