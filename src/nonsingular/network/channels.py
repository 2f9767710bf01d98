"""channels.py - the weight box of any network of linear layers and convolutions as one scalar per output channel.

A channel of a convolution with kernel W computes W * z; with W + s E sgn(z), s in [-1, 1], it computes W * z + s (E * |z|).  For
pixels and after a ReLU z >= 0, so that this is one kernel, W + s E, for the whole picture.  Elsewhere each window would need its
own kernel: then more is allowed than the box holds.  For a linear layer it is the row lemma (row_lemma.py), and exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonsingular.errors import InvalidInput, UnsupportedModel
from nonsingular.threat.ball import JointBall
from nonsingular.threat.radius import Radius

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, eq=False)
class Channels:
    """model: of which these layers move, each by its radius: a number, or of the shape of its weight."""

    model: nn.Module
    layers: Mapping[str, Layer]
    radii: Mapping[str, Radius]

    def zeros(self, x: Tensor) -> list[Tensor]:
        """s = 0 (B, channels) for each layer: the network itself."""
        return [x.new_zeros(len(x), len(layer.weight)) for layer in self.layers.values()]

    def start(self, x: Tensor) -> list[Tensor]:
        """The same: the boxes are symmetric."""
        return self.zeros(x)

    def __call__(self, x: Tensor, s: list[Tensor]) -> Tensor:
        """(B, K) logits at inputs `x` under shifts `s`; differentiable in x, s and the weights."""
        hooks = [
            layer.register_forward_hook(partial(_shifted, self.radii[name], shift))
            for (name, layer), shift in zip(self.layers.items(), s, strict=True)
        ]
        try:
            return self.model(x)
        finally:
            for hook in hooks:
                hook.remove()


def channels(model: nn.Module, ball: JointBall) -> Channels:
    """The layers of `model` whose weights the ball moves.

    Raises UnsupportedModel for a tensor that moves and is no weight of a Linear or Conv module, InvalidInput for radii that
    differ below and above.
    """
    radii = dict(ball.radii(dict(model.named_parameters())))
    layers = {f"{name}.weight".lstrip("."): m for name, m in model.named_modules() if isinstance(m, Layer)}
    for name, radius in radii.items():
        if name not in layers:
            raise UnsupportedModel(
                f"'{name}' is no weight of an nn.Linear or nn.Conv module, so no channel stands for it; give eps_w by name "
                "without it, or train with 'joint-batch', which moves any tensor"
            )
        if isinstance(radius, tuple):
            raise InvalidInput(f"eps_w of '{name}' differs below and above; one scalar per channel needs one radius")
    return Channels(model, {n: layers[n] for n in radii}, radii)


def _shifted(radius: Any, s: Tensor, layer: Layer, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The output of a layer whose channels moved: + s (E * |z|)."""
    z, weight = inputs[0], layer.weight
    z = z.abs() if z.numel() and bool(z.amin() < 0) else z  # pixels, and what comes from a ReLU, as they are
    if isinstance(layer, nn.Linear):
        spread = radius.expand_as(weight) if isinstance(radius, Tensor) else weight.new_full((1, weight.shape[1]), radius)
        return output + s.reshape(len(s), *[1] * (z.dim() - 2), -1) * F.linear(z, spread)
    if isinstance(radius, Tensor):
        reach = layer._conv_forward(z, radius.expand_as(weight), None)  # pyright: ignore[reportPrivateUsage]  # its own padding
        return output + s.reshape(*s.shape, *[1] * (z.dim() - 2)) * reach
    groups = layer.groups  # with one number all channels of a group see the same sum
    z = z.unflatten(1, (groups, -1)).sum(2)
    reach = layer._conv_forward(z, weight.new_full((groups, 1, *layer.kernel_size), radius), None)  # pyright: ignore[reportPrivateUsage]
    # s (E * |z|) by products of matrices, also in the gradient: (B groups, channels, 1) times (B groups, 1, positions)
    moved = output.unflatten(1, (groups, -1)).flatten(3).flatten(0, 1)
    return torch.baddbmm(moved, s.reshape(len(moved), -1, 1), reach.reshape(len(moved), 1, -1)).view_as(output)
