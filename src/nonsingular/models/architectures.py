"""architectures.py - the networks that the project trains itself: the dense network of the theorem, a small
convolutional one, and a small residual one with BatchNorm; and normalisation as a part of any network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import vmap  # pyright: ignore[reportPrivateImportUsage]

from nonsingular.errors import InvalidInput

Numbers = float | Sequence[float] | Tensor


class Normalized(nn.Module):
    """`model` behind (x - mean) / std: inputs, and so their domain and radii, stay in the units of the data.

    mean, std: a number; one number for each channel, which is dimension 1 of x; or a tensor of the shape of an example, or that
        broadcasts to it.  They are buffers in the dtype and on the device of the model: no attack on weights moves them.
    model: used, not copied.  Its parameters are called "model." and their name in it.
    Raises InvalidInput if a std is not above 0, or if a number is not finite.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"Normalized takes an nn.Module, a mean and a std, not {type(model).__name__}")
        like = next((t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()), torch.empty(0))
        self.model = model
        self.register_buffer("mean", _numbers("mean", mean, like))
        self.register_buffer("std", _numbers("std", std, like))
        if not bool((self.std > 0).all()):
            raise InvalidInput(f"std is {self.std.tolist()}; give numbers above 0")
        sizes = {len(t) for t in (self.mean, self.std) if t.dim() == 1 and len(t) > 1}
        if len(sizes) > 1:
            raise InvalidInput(f"mean has {self.mean.numel()} numbers and std has {self.std.numel()}; give one for each channel")
        if sizes and max(self.mean.dim(), self.std.dim()) > 1:
            raise InvalidInput("one of mean and std has a number for each channel, the other a shape; give both in one form")
        self._by_channel = bool(sizes)
        self.training = model.training  # of this module alone: the model's own modes stay as they are

    def forward(self, x: Tensor) -> Tensor:
        if self._by_channel:
            return self.model(((x.transpose(1, -1) - self.mean) / self.std).transpose(1, -1))
        return self.model((x - self.mean) / self.std)


class Averaged(nn.Module):
    """The mean logits of a random `model` over `passes` forward passes: noise in its forward, dropout that stays on, ...

    The random numbers are those of torch, the same in every call and for every example: pass i is seeded with `seed` + i.  So an
    example has the same logits in every batch, and what is attacked is what is judged: an average over these draws, no other.
    model: used, not copied.  Its parameters are called "model." and their name in it.  passes: 1 or more.
    Cost: `passes` forward passes.  torch.fx cannot trace it: no certificates.
    """

    def __init__(self, model: nn.Module, passes: int, *, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"Averaged takes an nn.Module and a number of passes, not {type(model).__name__}")
        if passes < 1:
            raise InvalidInput(f"passes is {passes}; give 1 or more")
        self.model, self.passes, self.seed = model, passes, seed
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            return torch.stack([self._one_pass(x, self.seed + i) for i in range(self.passes)]).mean(0)

    def _one_pass(self, x: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        if not len(x):
            return self.model(x)
        try:
            return vmap(self._alone, randomness="same")(x)
        except RuntimeError:  # an operation without a rule for vmap
            logits: list[Tensor] = []
            for one in x:
                torch.manual_seed(seed)
                logits.append(self._alone(one))
            return torch.stack(logits)

    def _alone(self, one: Tensor) -> Tensor:
        return self.model(one[None])[0]


def _numbers(name: str, given: Numbers, like: Tensor) -> Tensor:
    try:
        found = torch.as_tensor(given).detach().to(like).clone()
    except (TypeError, ValueError, RuntimeError) as e:
        raise InvalidInput(f"{name} is {given!r}; give a number, or one for each channel") from e
    if not found.numel() or not bool(torch.isfinite(found).all()):
        raise InvalidInput(f"{name} is {found.tolist()}; give finite numbers")
    return found


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
    _check_images("conv", input_shape)
    channels = [input_shape[0], *hidden]
    body: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        body += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=bias), nn.ReLU()]
    body.append(nn.Flatten())
    features = nn.Sequential(*body)(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, classes, bias=bias))


class Block(nn.Module):
    """relu(body(x) + shortcut(x)), 3x3 convolutions and one of 1x1, with BatchNorm.  (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=2, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (8, 16, 32), bias: bool = True) -> nn.Sequential:
    """A residual network with BatchNorm.  (B, C, H, W) -> (B, classes).

    hidden: width of the stem (a 3x3 convolution), then of each residual block; each of them has stride 2.  Then the mean over
    positions, and one Linear.  bias: that of the Linear layer; convolutions have none, BatchNorm shifts.
    Raises InvalidInput for inputs that are not images.
    """
    _check_images("resnet", input_shape)
    stem = [nn.Conv2d(input_shape[0], hidden[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(hidden[0]), nn.ReLU()]
    blocks = [Block(c_in, c_out) for c_in, c_out in pairwise(hidden)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden[-1], classes, bias=bias))


def _check_images(network: str, input_shape: Sequence[int]) -> None:
    if len(input_shape) != 3:
        raise InvalidInput(f"network '{network}' takes images (C, H, W); these inputs have shape {tuple(input_shape)}: use 'mlp'")
