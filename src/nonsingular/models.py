"""models.py - the networks that the project trains itself: the dense network of the theorem and a small convolutional one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from nonsingular.errors import InvalidInput


def mlp(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128, 64, 32), bias: bool = False) -> nn.Sequential:
    """Flatten, then Linear and ReLU in turn, ending with Linear: the network of Theorem 1.  (B, *input_shape) -> (B, classes)."""
    sizes = [math.prod(input_shape), *hidden, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for d_in, d_out in pairwise(sizes):
        layers += [nn.Linear(d_in, d_out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (16, 32, 64), bias: bool = True) -> nn.Sequential:
    """One 3x3 convolution of stride 2 and a ReLU for each width in `hidden`, then one Linear.  (B, C, H, W) -> (B, classes).

    Raises InvalidInput for inputs that are not images.
    """
    if len(input_shape) != 3:
        raise InvalidInput(f"network 'conv' takes images (C, H, W); these inputs have shape {tuple(input_shape)}: use 'mlp'")
    channels = [input_shape[0], *hidden]
    body: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        body += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=bias), nn.ReLU()]
    body.append(nn.Flatten())
    features = nn.Sequential(*body)(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, classes, bias=bias))
