"""flips.py - verdicts over flipped bits on the shapes that BFAVerifier was measured on (arXiv:2502.16286), and a convolution.

python benchmarks/flips.py --data-dir FOLDER --shapes 1x10,3x50,3x512,conv --bits 8,4 --flips 1,2 --radii 0,1,2,4 --images 10

ReLU networks on MNIST, DEPTHxWIDTH hidden layers or two kernels and two matrices, trained here on rounded weights with a
straight-through gradient, and then rounded symmetrically, for each tensor.  `ns.decide_flips`, one thread, at most --seconds an
image.  Images that the rounded network gets wrong count as falsified.  Exit code 1 if a falsified image is not wrong when its
flips are made here.
"""

from __future__ import annotations

import copy
import sys
import time
from itertools import pairwise, product

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


class Net(nn.Sequential):
    """The layers of a shape, with biases."""

    def __init__(self, shape: str) -> None:
        if shape == "conv":
            kernels = (nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU())
            super().__init__(*kernels, nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
            return
        depth, width = map(int, shape.split("x"))
        sizes = [784, *[width] * depth, 10]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        super().__init__(nn.Flatten(), *(m for layer in layers[:-1] for m in (layer, nn.ReLU())), layers[-1])


def trained(data, shape: str, bits: int, epochs: int) -> nn.Module:
    """Adam from 0.001 along a cosine on the rounded network."""
    torch.manual_seed(0)
    net, rounding, size = Net(shape), Rounded(bits), 128
    rate = torch.optim.Adam(net.parameters(), 1e-3)
    steps = epochs * (len(data.train.x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rate, steps)
    for epoch in range(epochs):
        order = torch.randperm(len(data.train.x), generator=torch.Generator().manual_seed(epoch))
        for at in order[: steps // epochs * size].split(size):
            weights = {n: rounding(p) if p.dim() > 1 else p for n, p in net.named_parameters()}
            rate.zero_grad()
            F.cross_entropy(torch.func.functional_call(net, weights, (data.train.x[at],)), data.train.y[at]).backward()
            rate.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def flipped(model: nn.Module, bits: int, flips) -> nn.Module:
    """The rounded network in float64 with these bits flipped in its words."""
    made = ns.quantize(copy.deepcopy(model).double(), bits)
    steps = {n: p.abs().max().double() / (2 ** (bits - 1) - 1) for n, p in model.named_parameters()}
    weights = dict(made.named_parameters())
    for flip in flips:
        word = made.words[flip.name].view(-1)
        old = int(word[flip.index]) % 2**bits
        new = old ^ (1 << flip.bit)
        word[flip.index] = new - 2**bits if new >= 2 ** (bits - 1) else new
        weights[flip.name].data.view(-1)[flip.index] = word[flip.index] * steps[flip.name]
    return made


def main() -> int:
    parser = options(__doc__, images=10, epochs=3, seconds=60)
    for name, default in (("shapes", "1x10,3x50,3x512"), ("bits", "8,4"), ("flips", "1,2"), ("radii", "0,1,2,4")):
        parser.add_argument(f"--{name}", default=default, help=f"default: {default}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, beaten = ns.load("mnist", given.data_dir), 0
    print(machine())
    print("| hidden | bits | accuracy, rounded | flips | ε_x | verified | falsified | open | CPU s an image | longest |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for shape, bits in product(given.shapes.split(","), map(int, given.bits.split(","))):
        model = trained(data, shape, bits, given.epochs)
        made = ns.quantize(model, bits)
        clean = (made(data.test.x).argmax(1) == data.test.y).double().mean().item()
        x, y = data.test.x[: given.images], data.test.y[: given.images]
        for flips, radius in product(map(int, given.flips.split(",")), map(int, given.radii.split(","))):
            clock, seconds = [time.process_time()], given.seconds
            found = ns.decide_flips(
                model, x, y, bits=bits, flips=flips, eps_x=radius / 255, seconds=seconds,
                report=lambda decided, clock=clock: clock.append(time.process_time()),
            )  # fmt: skip
            for i in (i for i, status in enumerate(found.status) if status == "falsified"):
                at = found.perturbation.x[i : i + 1]
                within = len(found.flips[i]) <= flips and bool(((at - x[i]).abs() <= radius / 255 + 1e-6).all())
                beaten += not within or int(flipped(model, bits, found.flips[i])(at).argmax()) == int(y[i])
            spent = [b - a for a, b in pairwise(clock)]
            told = " | ".join(str(found.status.count(s)) for s in ("verified", "falsified", "timeout"))
            print(
                f"| {shape} | {bits} | {100 * clean:.1f} % | {flips} | {radius}/255 | {told} "
                f"| {sum(spent) / len(x):.2f} | {max(spent):.2f} |",
                flush=True,
            )
    return int(beaten > 0)


if __name__ == "__main__":
    sys.exit(main())
