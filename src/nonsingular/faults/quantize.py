"""quantize.py - a network with rounded weights, and the whole numbers that stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.faults.uniform import UniformRounding
from nonsingular.network.copies import duplicate, effective
from nonsingular.threat.ball import Moves


class Quantized(nn.Module):
    """What `quantize` returns: a module of the given model's own class, with `words`.

    words: name of a rounded parameter -> whole numbers in its shape.  The values in the module are those of these words.
    """

    words: Mapping[str, Tensor]


def quantize(
    model: nn.Module, bits: int = 8, per_channel: bool = False, symmetric: bool = True, moves: Moves = "weights"
) -> Quantized:
    """A copy of `model` whose weights are rounded to b-bit whole numbers, in `.words` (name -> tensor), times a step.

    bits: 2 to 16.  per_channel: a step for each output channel, else for each tensor.  symmetric: step = max |W| / (2^(b-1) - 1),
        two's complement; otherwise (max W - min W) / (2^b - 1) and words from 0.  moves: matrices and kernels, or "all".
    Computed weights (weight norm, pruning) become parameters first.  Activations are not rounded.  Never changes `model`.
    Raises InvalidInput for invalid settings and weights that are not finite.  Source: Jacob et al., arXiv:1712.05877.
    """
    storage = UniformRounding(bits, per_channel, moves, symmetric)
    made = effective(duplicate(model))
    if hasattr(made, "words"):
        raise InvalidInput("the model has an attribute 'words' of its own, where its whole numbers would be; rename it")
    weights = dict(made.named_parameters())
    stored = storage.words(weights)
    with torch.no_grad():
        for name, words in stored.items():
            weights[name].copy_(words.values(weights[name].dtype))
    found = cast(Any, made)
    found.words = {name: words.word for name, words in stored.items()}
    return found
