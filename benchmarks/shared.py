"""shared.py - one W' for all images: certified image by image, certified together (`certify_shared`), and attacked.

MNIST, 784-128-64-32-10 without biases, a standard and an adversarially trained network; the first images of the test set.
"Alone": each image holds for every W' of its own, which `certify` proves.  "Shared": no W' breaks more than the rest.
"Attacked": by `strongest` in scope dataset.  Exit code 1 if a row is not in this order.  Information otherwise.
"""

from __future__ import annotations

import itertools
import sys

import torch
from timing import machine, options, peak_memory
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.data.datasets import Dataset
from nonsingular.models.architectures import mlp
from nonsingular.network.calling import logits_at

NETWORKS = {"standard": {}, "at": {"eps_x": 0.1}}


def network(method: str, data: Dataset, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    return ns.train(mlp((1, 28, 28), 10), data, method=method, epochs=epochs, **NETWORKS[method]).model


def row(model: nn.Module, x: Tensor, y: Tensor, ball: ns.JointBall, bound: str) -> tuple[str, bool]:
    """The cells of a line, and whether they are in order."""
    found: list[ns.SharedCertificate] = []
    seconds, memory = peak_memory(lambda: found.append(ns.certify_shared(model, x, y, ball, bound=bound)))
    point = ns.strongest(model, x, y, ball, scope="dataset")
    attacked = (logits_at(model, point).argmax(1) == y).double().mean().item()
    alone, shared = found[0].certified.double().mean().item(), found[0].accuracy
    numbers = f"{100 * alone:.1f} | {100 * shared:.1f} | {100 * attacked:.1f} | {int(found[0].lost.sum())} | {seconds:.0f}"
    return f"{numbers} | {memory / 2**30:.1f}", alone <= shared <= attacked


def main() -> int:
    parser = options(__doc__, images=500, epochs=12)
    parser.add_argument("--bound", default="alpha-crown", help="of the images alone; default: %(default)s")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--eps-x", nargs="*", type=float, default=[0.0, 0.01], help="default: %(default)s")
    parser.add_argument("--eps-w", nargs="*", type=float, default=[0.001, 0.002], help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    data = ns.load("mnist", given.data_dir)
    x, y = data.test.x[: given.images], data.test.y[: given.images].long()
    print(f"bound {given.bound}, {len(x)} images, {given.epochs} epochs")
    print("| network | ε_x | ε_w | clean % | alone % | shared % | attacked % | lost images | seconds | GiB |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    ordered = True
    for method in given.networks:
        model = network(method, data, given.epochs)
        clean = 100 * (model(x).argmax(1) == y).double().mean().item()
        for cell in itertools.product(given.eps_x, given.eps_w):
            text, right = row(model, x, y, ns.JointBall(*cell), given.bound)
            ordered &= right
            print(f"| {method} | {cell[0]:g} | {cell[1]:g} | {clean:.1f} | {text} |", flush=True)
    return 0 if ordered else 1


if __name__ == "__main__":
    sys.exit(main())
