"""descent.py - how a loss is lowered: the optimiser, its learning rate over the training, epochs, batches and the seed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from nonsingular.errors import InvalidInput

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "step": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,  # He et al., arXiv:1512.03385
}
"""Name -> (part of the training that is done, in [0, 1]) -> factor of the learning rate."""
OPTIMIZERS = ("adam", "adamw", "sgd")
Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True)
class Descent:
    """Everything but the network, the examples and the objective that trained weights depend on.

    optimizer: a name, or a function (parameters) -> torch optimiser, which sets its own learning rates, decays and so on: lr,
        weight_decay and momentum are then None.
    schedule: a name, or a function (part of the training that is done) -> factor of the learning rate.
    weight_decay: as in torch: adam and sgd add it to the gradient, adamw applies it separately.  momentum: of sgd.
    average: 0 to below 1: the network that is left is an exponential moving average, to which each step adds this part less
        of what was: 0.999 is about the last 1,000 steps.  None: the last weights.  Source: Polyak and Juditsky, 1992.
    clip: weight matrices and kernels are cut to [-clip, clip] after each step: a step of a stored integer is a part of its range,
        so smaller errors follow from a flipped bit.  None: not cut.  Source: Stutz et al., arXiv:2006.13977.
    accumulate: each batch is taken in so many parts, whose gradients are summed before the step, in a part of the memory.  The
        step is that of the whole batch but for rounding, and but for what an objective does once for each part: weights that
        move for all examples together (joint-batch, awp, sam, ...), BatchNorm.
    amp: "bfloat16": losses and gradients in mixed precision (torch.autocast), weights and steps in their own type.
    Raises InvalidInput for impossible values.
    """

    epochs: int = 12
    seed: int = 0
    batch_size: int = 128
    lr: float | None = 1e-3
    optimizer: str | Callable[[Parameters], Optimizer] = "adam"
    schedule: str | Callable[[float], float] = "cosine"
    weight_decay: float | None = None
    momentum: float | None = None
    average: float | None = None
    clip: float | None = None
    accumulate: int = 1
    amp: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("accumulate", self.accumulate)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidInput(f"{name} is {value!r}; give a whole number of 1 or more")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"seed is {self.seed!r}; give a whole number from 0 to 2**32 - 1")
        _check_named("optimizer", self.optimizer, OPTIMIZERS, "parameters -> torch optimiser")
        _check_named("schedule", self.schedule, tuple(SCHEDULES), "part of the training -> factor of lr")
        if self.average is not None and not 0 <= self.average < 1:
            raise InvalidInput(f"average is {self.average}; give a number from 0 to below 1, such as 0.999")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise InvalidInput(f"clip is {self.clip}; give a finite number above 0")
        if self.amp not in (None, "bfloat16"):
            raise InvalidInput(f"amp is {self.amp!r}; give 'bfloat16', or None for the type of the weights")
        self._check_numbers()

    def _check_numbers(self) -> None:
        numbers = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        if not isinstance(self.optimizer, str):
            if given := [name for name, value in numbers.items() if value is not None]:
                raise InvalidInput(f"optimizer is a function, and {given[0]} is {numbers[given[0]]}; let the function set it")
            return
        if self.lr is None or not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidInput(f"lr is {self.lr}; give a finite number above 0")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidInput(f"weight_decay is {self.weight_decay}; give a finite number that is 0 or larger")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InvalidInput(f"momentum is {self.momentum}; give a number from 0 to below 1, such as 0.9")
        if self.momentum and self.optimizer != "sgd":
            raise InvalidInput(f"momentum is {self.momentum}, which {self.optimizer} does not use; leave it out, or choose sgd")

    def optimiser(self, parameters: list[nn.Parameter]) -> Optimizer:
        """A new optimiser of these parameters."""
        if not isinstance(self.optimizer, str):
            made = self.optimizer(parameters)
            if not isinstance(made, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]  # what a user's function gives
                raise InvalidInput(f"optimizer returns a {type(made).__name__}; return a torch.optim.Optimizer")
            return made
        lr, decay = self.lr or 0.0, self.weight_decay or 0.0
        match self.optimizer:
            case "adam":
                return torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
            case _:
                return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=self.momentum or 0.0)

    def factor(self, progress: float) -> float:
        """The factor of the learning rate when this part of the training is done."""
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        factor = schedule(progress)
        if not (isinstance(factor, int | float) and math.isfinite(factor) and factor >= 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"schedule gives {factor!r} at {progress:.3g} of the training; give a finite factor, 0 or larger")
        return factor


def _check_named(what: str, value: Any, names: tuple[str, ...], else_: str) -> None:
    if callable(value) or value in names:
        return
    near = difflib.get_close_matches(str(value), names, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    raise InvalidInput(f"{what} is {value!r}{hint} choose one of {', '.join(names)}, or give a function ({else_})")
