"""An MNIST network of dense layers, in its own normalisation: what survives int8 weights and grey noise together?

Run: python examples/mnist_mlp.py [folder with MNIST's files]          (about a minute; without a folder MNIST is downloaded)
"""

import sys
from typing import Any

import torch
from torch import nn

import nonsingular as ns


def network(mnist: Any, epochs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = ns.Normalized(layers, mean=[0.1307], std=[0.3081])  # radii stay in units of the pixels
    trained = ns.train(model, mnist, epochs=epochs, lr=2e-3)
    print(f"{100 * trained.history[-1].val_accuracy:.1f} % of the validation images are right")
    return trained.model


def main(folder: str | None = None, examples: int = 300) -> ns.Surface:
    mnist = ns.load("mnist", folder)
    model = network(mnist)
    test = mnist.test.take(examples)
    # int8 rounds by up to 1 / 254 = 0.0039 of the largest weight of a tensor; ten steps up to it
    surface = ns.evaluate(
        model, (test.x, test.y), eps_x=[0, 0.01, 0.02, 0.04], eps_w=[0, 0.001, 0.002, 0.0039], relative=True, certify="crown"
    )
    print(surface)
    return surface


if __name__ == "__main__":
    main(*sys.argv[1:])
