"""activations.py - the inputs of layers rounded to words, with a static range for each layer.  Jacob et al., arXiv:1712.05877."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.faults.fault import whole
from nonsingular.network.calling import outputs
from nonsingular.network.rounded import faked

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose inputs are rounded."""
AT_ONCE = 256
"""Examples of the calibration that run together."""


@dataclass(frozen=True)
class Steps:
    """Words 0 .. 2^bits - 1 for the values step * (word - zero); what lies beyond is the nearest end.  A hook before a layer.

    step: a float32.  Its gradient is straight through, within the range.
    """

    step: float
    zero: int
    bits: int

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value that there is a word for."""
        return -self.zero * self.step, (2**self.bits - 1 - self.zero) * self.step

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return faked(given[0], self.step, self.zero, 0, 2**self.bits - 1), *given[1:]


def round_inputs(model: nn.Module, bits: int, calibration: Tensor | None) -> dict[str, Steps]:
    """Makes every linear layer and convolution of `model` round its input to words of `bits` bits.  Changes `model`.

    calibration: (N, *input); the range of a layer is that of its inputs there, and holds 0.
    Returns what was put before each layer, by the name of the layer.
    Raises InvalidInput for invalid settings, UnsupportedModel, by name, for a matrix that no such layer multiplies with.
    Cost: one forward pass of the calibration.
    """
    whole("activations", bits, 2, 16)
    if not isinstance(calibration, Tensor) or not calibration.is_floating_point() or not len(calibration):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("activations are rounded over ranges of examples; give some as calibration=x, (N, *input)")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    seen: dict[str, tuple[float, float]] = {}
    with torch.no_grad(), _observed(layers, seen):
        for part in calibration.split(AT_ONCE):
            outputs(model, part.clone())
    _check(model, layers, seen)
    found = {name: _steps(name, *seen[name], bits) for name in layers}
    for name, steps in found.items():
        layers[name].register_forward_pre_hook(steps)
    return found


@contextmanager
def _observed(layers: Mapping[str, nn.Module], seen: dict[str, tuple[float, float]]) -> Generator[None]:
    """Inside, `seen` gets the range of the inputs of each layer, and 0."""

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
            lo, hi = (end.item() for end in given[0].aminmax())
            low, high = seen.get(name, (0.0, 0.0))
            seen[name] = min(low, lo), max(high, hi)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(look(name)).remove)
        yield


def _check(model: nn.Module, layers: Mapping[str, nn.Module], seen: Mapping[str, tuple[float, float]]) -> None:
    """Raises UnsupportedModel where a product would keep an input that is not rounded."""
    silent = [name for name in layers if name not in seen]
    own = {id(layers[name].weight) for name in seen}
    others = [n for n, p in model.named_parameters() if p.dim() > 1 and id(p) not in own]
    if silent or others:
        which = silent[0] if silent else others[0]
        why = "is not called as a layer" if silent else "is not the weight of a linear layer or convolution"
        raise UnsupportedModel(
            f"no activations can be rounded for '{which}', which {why}; write it in nn.Linear and nn.Conv layers, or put "
            "torch.fake_quantize_per_tensor_affine before the product yourself"
        )


def _steps(name: str, low: float, high: float, bits: int) -> Steps:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidInput(f"the inputs of '{name}' are not finite on the calibration; check its examples")
    levels = 2**bits - 1
    step = torch.tensor((high - low) / levels if high > low else 1.0, dtype=torch.float32).item()
    if step <= 0:
        raise InvalidInput(f"the inputs of '{name}' span only [{low:.3g}, {high:.3g}] on the calibration, too little for a step")
    return Steps(step, min(levels, max(0, round(-low / step))), bits)
