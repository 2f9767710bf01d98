"""loop.py - the one training loop.  A run that was killed goes on from its last epoch and ends with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nonsingular.data.datasets import Split
from nonsingular.errors import InvalidInput
from nonsingular.network.margins import is_correct
from nonsingular.training.checkpoint import Checkpoint, Epoch
from nonsingular.training.descent import Descent
from nonsingular.training.objectives import Loss, LossOf

Callback = Callable[[Epoch, nn.Module], object]
"""Called after every epoch with its result and the current network, in eval mode, which it must not change."""


@dataclass(frozen=True)
class Examples:
    """Examples to learn from, and examples that are only measured, never used to choose; None: no such examples."""

    train: Split
    val: Split | None = None

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("validation", self.val)):
            if split is not None and not len(split):
                raise InvalidInput(f"training needs examples: the {name} split has 0; give one or more")


def fit(
    model: nn.Module, objective: LossOf, examples: Examples, descent: Descent, *, checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Epoch, ...]:  # fmt: skip
    """Lowers `objective` over the examples, in the parameters of `model` that ask for a gradient; it is left in eval mode.

    checkpoint: written after every epoch, before the callbacks; if the file exists, training goes on from there.
    With descent.average, the model that is left, measured and shown to the callbacks is the average.
    Each epoch draws its order and its attacks from a generator seeded by (seed, epoch), so a resumed run gives the same bits.
    Returns the result of each epoch, also from before an interruption.
    Raises InvalidInput for a damaged or foreign checkpoint, a loss that is not finite, and anything but a loss.
    """
    loss_of = objective(model)
    if not callable(loss_of):  # what a user's function gives
        raise InvalidInput(
            f"the objective returns a {type(loss_of).__name__} for a network; return (x, y, progress, generator) -> loss"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("no parameter of the model asks for a gradient (requires_grad), so there is nothing to train")
    optimiser = descent.optimiser(parameters)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    averaged = None
    if descent.average is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(descent.average), use_buffers=True)
    done, history = checkpoint.restore(model, optimiser, averaged) if checkpoint else (0, [])

    def after() -> None:
        if descent.clip is not None:
            with torch.no_grad():
                for p in (p for p in parameters if p.dim() > 1):
                    p.clamp_(-descent.clip, descent.clip)
        if averaged is not None:
            averaged.update_parameters(model)

    for epoch in range(done, descent.epochs):
        model.train()
        loss = _epoch(loss_of, optimiser, examples.train, descent, epoch, after)
        model.eval()
        if not (math.isfinite(loss) and all(bool(torch.isfinite(p).all()) for p in parameters)):
            raise InvalidInput(f"the loss is not finite in epoch {epoch + 1}; lower lr, alpha, beta or the radii")
        seen = model if averaged is None else averaged.module.eval()
        history.append(Epoch(epoch + 1, loss, None if examples.val is None else accuracy(seen, examples.val)))
        if checkpoint:
            checkpoint.save(model, optimiser, history, averaged)
        for callback in callbacks:
            callback(history[-1], seen)
    model.eval()
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    return tuple(history)


def _epoch(
    loss_of: Loss, optimiser: Optimizer, data: Split, descent: Descent, epoch: int, after: Callable[[], object] = lambda: None,
) -> float:  # fmt: skip
    """The mean loss of one pass over the data, a step after every batch.  after: called then."""
    seed = descent.seed * 1_000_003 + epoch
    generator = Generator(data.x.device).manual_seed(seed)
    batches = torch.randperm(len(data), generator=generator, device=data.x.device).split(descent.batch_size)
    total = 0.0
    with torch.random.fork_rng():  # what the model itself draws, e.g. for dropout
        torch.manual_seed(seed)
        for i, rows in enumerate(batches):
            progress = (epoch * len(batches) + i) / (descent.epochs * len(batches))
            factor = descent.factor(progress)
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
            for k, part in enumerate(rows.chunk(descent.accumulate)):
                with _autocast(descent.amp, data.x.device.type):
                    loss = _checked(loss_of(data.x[part], data.y[part], progress, generator))
                if not k:
                    optimiser.zero_grad()
                (loss * (len(part) / len(rows))).backward()
                total += loss.item() * len(part)
            optimiser.step()
            after()
    return total / len(data)


def _autocast(amp: str | None, device: str) -> AbstractContextManager[object]:
    """Mixed precision.  Without autocast's cache: it would keep weights as they were before an objective moved them in place."""
    return nullcontext() if amp is None else torch.autocast(device, getattr(torch, amp), cache_enabled=False)


def _checked(loss: Any) -> Tensor:
    """The loss of a batch.  Raises InvalidInput for a loss that allows no step."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        raise InvalidInput(f"the loss has {what}; return a tensor of one number, the mean over the batch")
    if not loss.requires_grad:
        raise InvalidInput("the loss does not depend on the parameters (no gradient); compute it from the network that was given")
    return loss


def accuracy(model: nn.Module, data: Split, chunk: int = 4096) -> float:
    """Part of `data` that the model classifies correctly, in [0, 1]."""
    with torch.no_grad():
        pieces = zip(data.x.split(chunk), data.y.split(chunk), strict=True)
        return sum(is_correct(model(x.clone()), y).sum().item() for x, y in pieces) / len(data)
