"""An MNIST network of dense layers, in its own normalisation: what survives int8 weights and grey noise together?

Run: python examples/mnist_mlp.py [folder with MNIST's files]          (about a minute; without a folder MNIST is downloaded)
"""

import sys

import torch
from torch import nn

import nonsingular as ns


def trained(x: torch.Tensor, y: torch.Tensor, epochs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = ns.Normalized(network, mean=[0.1307], std=[0.3081])  # radii stay in units of the pixels
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def main(folder: str | None = None, examples: int = 300) -> ns.Surface:
    mnist = ns.load("mnist", folder)
    model = trained(mnist.train.x, mnist.train.y)
    test = mnist.test.take(examples)
    # int8 rounds by up to 1 / 254 = 0.0039 of the largest weight of a tensor; ten steps up to it
    surface = ns.evaluate(
        model, (test.x, test.y), eps_x=[0, 0.01, 0.02, 0.04], eps_w=[0, 0.001, 0.002, 0.0039], relative=True, certify="crown"
    )
    print(surface)
    return surface


if __name__ == "__main__":
    main(*sys.argv[1:])
