"""flips.py - certificates over flipped bits on the shapes that BFAVerifier was measured on (arXiv:2502.16286).

python benchmarks/flips.py --data-dir FOLDER --shapes 1x10,3x50,3x512 --bits 8,4 --flips 1,2 --radii 0,1,2,4 --images 10

Dense ReLU networks on MNIST, DEPTHxWIDTH hidden layers, trained here on rounded weights with a straight-through gradient, and
then rounded symmetrically, for each tensor.  An image is verified (`ns.certify_flips`), falsified (`ns.flip_attack` on that image
alone, its answer run on the flipped words), or open.  Images that the rounded network gets wrong count as falsified.
Exit code 1 if an attack beats a certificate.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import torch
import torch.nn.functional as F
from timing import machine, options
from torch import nn

import nonsingular as ns


class Rounded(nn.Module):
    """W -> its rounded values, the gradient straight through."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2 ** (bits - 1) - 1

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        step = w.detach().abs().max() / self.levels
        return w + ((w / step).round() * step - w).detach()


def trained(data, depth: int, width: int, bits: int, epochs: int) -> nn.Module:
    """Adam from 0.001 along a cosine on the rounded network."""
    torch.manual_seed(0)
    sizes = [784, *[width] * depth, 10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    rounding, parameters = Rounded(bits), [p for layer in layers for p in layer.parameters()]
    rate, size = torch.optim.Adam(parameters, 1e-3), 128
    steps = epochs * (len(data.train.x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rate, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(data.train.x), generator=torch.Generator().manual_seed(epoch))
        for at in order[: steps // epochs * size].split(size):
            z = data.train.x[at].flatten(1)
            for k, layer in enumerate(layers):
                z = F.linear(z.relu() if k else z, rounding(layer.weight), layer.bias)
            rate.zero_grad()
            F.cross_entropy(z, data.train.y[at]).backward()
            rate.step()
            schedule.step()
    hidden = [m for layer in layers[:-1] for m in (layer, nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, layers[-1]).eval().requires_grad_(False)


def main() -> int:
    parser = options(__doc__, images=10, epochs=3)
    for name, default in (("shapes", "1x10,3x50,3x512"), ("bits", "8,4"), ("flips", "1,2"), ("radii", "0,1,2,4")):
        parser.add_argument(f"--{name}", default=default, help=f"default: {default}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, beaten = ns.load("mnist", given.data_dir), 0
    print(machine())
    print("| hidden | bits | accuracy, rounded | flips | ε_x | verified | falsified | open | CPU seconds an image |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for shape in given.shapes.split(","):
        depth, width = map(int, shape.split("x"))
        for bits in map(int, given.bits.split(",")):
            model = trained(data, depth, width, bits, given.epochs)
            made = ns.quantize(model, bits)
            with torch.no_grad():
                clean = (made(data.test.x).argmax(1) == data.test.y).double().mean().item()
            x, y = data.test.x[: given.images], data.test.y[: given.images]
            for flips in map(int, given.flips.split(",")):
                for radius in map(int, given.radii.split(",")):
                    started = time.process_time()
                    proven = ns.certify_flips(model, x, y, bits=bits, flips=flips, eps_x=radius / 255).verified
                    seconds = (time.process_time() - started) / len(x)
                    falsified = torch.zeros(len(x), dtype=torch.bool)
                    for i in range(len(x)):
                        found = ns.flip_attack(
                            model, x[i : i + 1], y[i : i + 1], flips=flips, storage=ns.UniformRounding(bits), eps_x=radius / 255
                        )
                        falsified[i] = not bool(found.right[0])
                    beaten += int((falsified & proven).sum())
                    counts = [int(t.sum()) for t in (proven, falsified, ~proven & ~falsified)]
                    told = " | ".join(map(str, counts))
                    print(
                        f"| {shape} | {bits} | {100 * clean:.1f} % | {flips} | {radius}/255 | {told} | {seconds:.2f} |",
                        flush=True,
                    )
    return int(beaten > 0)


if __name__ == "__main__":
    sys.exit(main())
