"""margins.py - how far the true class is ahead, and the losses that attacks and training use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nonsingular.errors import InvalidInput


def check_labels(y: Tensor, examples: int, classes: int) -> None:
    """Raises InvalidInput unless y is one class index in 0..classes-1 for each example."""
    if y.shape != (examples,) or y.is_floating_point():
        raise InvalidInput(
            f"y has shape {tuple(y.shape)} and {y.dtype} for {examples} inputs; give one integer class index for each"
        )
    if examples and (int(y.min()) < 0 or int(y.max()) >= classes):
        raise InvalidInput(f"labels span {int(y.min())}..{int(y.max())}, but the model has {classes} classes (0..{classes - 1})")


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """(B, K) logit_y - logit_j; column y is 0."""
    return logits.gather(1, y[:, None]) - logits


def worst_margin(margins: Tensor, y: Tensor) -> Tensor:
    """(B,) smallest margin over the other classes."""
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) whether y has the largest logit (the first of equal ones counts, as in argmax).  NaN or infinity is wrong."""
    return (logits.argmax(1) == y) & torch.isfinite(logits).all(1)


def attained(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) smallest margin that these logits attain, above 0 exactly where they are correct.

    A tie in favour of y is the smallest positive normal number; what is not finite is -infinity.
    """
    margin = worst_margin(margins(logits, y), y)
    least = max(torch.finfo(logits.dtype).tiny, torch.finfo(torch.float32).tiny)  # records keep float32
    margin = torch.where(logits.argmax(1) == y, margin.clamp(min=least), margin)
    return torch.where(torch.isfinite(logits).all(1), margin, -torch.inf)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return F.cross_entropy(logits, y, reduction="sum")


def negative_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the true one, summed over the batch.  Carlini and Wagner, arXiv:1608.04644."""
    return -worst_margin(margins(logits, y), y).sum()
