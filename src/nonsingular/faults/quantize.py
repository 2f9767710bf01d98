"""quantize.py - a network with rounded weights, and the whole numbers that stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput
from nonsingular.faults.activations import Steps, round_inputs
from nonsingular.faults.fault import check_moves, chosen
from nonsingular.faults.uniform import UniformRounding
from nonsingular.faults.words import Words
from nonsingular.network.copies import duplicate, effective
from nonsingular.threat.ball import Moves


class Quantized(nn.Module):
    """What `quantize` returns: a module of the given model's own class, with `words`.

    words: name of a rounded parameter -> whole numbers in its shape.  The values in the module are those of these words.
    activations: name of a layer -> how its input is rounded; empty if no activations are.
    """

    words: Mapping[str, Tensor]
    activations: Mapping[str, Steps]


def quantize(
    model: nn.Module, bits: int | Mapping[str, int] = 8, per_channel: bool = False, symmetric: bool = True,
    moves: Moves = "weights", *, activations: int | None = None, calibration: Tensor | None = None,
) -> Quantized:  # fmt: skip
    """A copy of `model` whose weights are rounded to b-bit whole numbers, in `.words` (name -> tensor), times a step.

    bits: 2 to 16; or of each tensor that is rounded, by name.  per_channel: a step for each output channel, else for each tensor.
    symmetric: step = max |W| / (2^(b-1) - 1), two's complement; otherwise (max W - min W) / (2^b - 1) and words from 0.
    moves: matrices and kernels, or "all".
    activations: bits, 2 to 16, of the inputs of all linear layers and convolutions, rounded to words from 0, with one range for
        each layer: that of its inputs at the examples `calibration` (N, *input), with 0.  Gradients pass straight through, within
        the range; bounds know the rounding.  None: activations are not rounded.
    Computed weights (weight norm, pruning) become parameters first.  Never changes `model`.
    Raises InvalidInput for invalid settings and weights that are not finite; UnsupportedModel where activations shall be rounded
    and a matrix belongs to another kind of layer (attention, recurrent layers).  Source: Jacob et al., arXiv:1712.05877.
    """
    check_moves(moves)
    made = effective(duplicate(model))
    if own := [name for name in ("words", "activations") if hasattr(made, name)]:
        raise InvalidInput(f"the model has an attribute '{own[0]}' of its own, where whole numbers would be; rename it")
    weights = dict(made.named_parameters())
    stored: dict[str, Words] = {}
    for name, b in _each(bits, chosen(weights, moves)).items():
        stored |= UniformRounding(b, per_channel, "all", symmetric).words({name: weights[name]})
    with torch.no_grad():
        for name, words in stored.items():
            weights[name].copy_(words.values(weights[name].dtype))
    found = cast(Any, made)
    found.words = {name: words.word for name, words in stored.items()}
    if activations is None and calibration is not None:
        raise InvalidInput("calibration is for activations; give activations=8 (bits), too")
    found.activations = {} if activations is None else round_inputs(made, activations, calibration)
    return found


def _each(bits: int | Mapping[str, int], weights: Mapping[str, Tensor]) -> dict[str, int]:
    if not isinstance(bits, Mapping):
        return dict.fromkeys(weights, UniformRounding(bits).bits)
    missing, unknown = sorted(weights.keys() - bits.keys()), sorted(bits.keys() - weights.keys())
    if missing or unknown:
        what = f"has none for {', '.join(missing)}" if missing else f"names {', '.join(unknown)}, which is not rounded"
        raise InvalidInput(f"bits {what}; give a number for each of {', '.join(sorted(weights))}")
    return dict(bits)
