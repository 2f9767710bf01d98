"""verdicts.py - the verdict on each example: verified, falsified with a point that proves it, or timeout with bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from nonsingular.threat.perturbation import Perturbation

Status = Literal["verified", "falsified", "timeout"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Verdicts:
    """What is known of each example over the whole ball, each with its own W' (scope `sample`).

    status: (B,) "verified": no point of the ball changes the prediction; "falsified": `perturbation` does, or
    makes another class equal; "timeout": undecided so far.
    lower: (B, K) sound lower bounds of logit_y - logit_j so far.  upper: (B,) the smallest margin attained, by `perturbation`.
    parts: (B,) parts that were bounded.
    """

    status: tuple[Status, ...]
    lower: Tensor
    upper: Tensor
    perturbation: Perturbation
    parts: Tensor
