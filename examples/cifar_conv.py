"""A small convolutional CIFAR-10 network: one faulty device for all images (scope dataset), attacked and certified.

Run: python examples/cifar_conv.py [folder with CIFAR-10]          (a few minutes; without a folder CIFAR-10 is downloaded)
"""

import sys
from typing import Any

import torch
from torch import nn

import nonsingular as ns


def network(cifar: Any, epochs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    model = ns.Normalized(layers, mean=[0.491, 0.482, 0.447], std=[0.247, 0.243, 0.262])
    # the method is a value: another one, or a function of your own, goes in its place
    return ns.train(model, cifar, method=ns.Adversarial(eps_x=1 / 255, steps=1), epochs=epochs, lr=2e-3).model


def main(folder: str | None = None, examples: int = 200, epochs: int = 3) -> tuple[ns.Surface, ns.Surface]:
    cifar = ns.load("cifar10", folder)
    model = network(cifar, epochs)
    test = cifar.test.take(examples)
    grid = {"eps_x": [0, 1 / 255, 2 / 255], "eps_w": [0, 0.001, 0.002]}
    surface = ns.evaluate(model, (test.x, test.y), **grid, scope="dataset")
    certified = ns.certified_surface(model, (test.x[:20], test.y[:20]), **grid)
    print(f"{surface}\n\n{certified}")
    return surface, certified


if __name__ == "__main__":
    main(*sys.argv[1:])
