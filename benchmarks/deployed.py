"""What it costs to allow for rounding: bounds in exact arithmetic, with their own rounding taken off, and deployed in float32.

    python benchmarks/deployed.py --rounds 9

Also how much the margins lose, relative to 1 + |margin|: the median and the most.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
from timing import interleaved, machine, options, ratio, table, verdict
from torch import Tensor, nn

import nonsingular as ns
from nonsingular.bounds.branch import branch_and_bound
from nonsingular.catalog import sound
from nonsingular.network.graph import precise
from nonsingular.network.heads import classifier
from nonsingular.network.precision import PRECISIONS, Floats

TARGET = 2.0
KINDS = {"exact": None, "own": Floats(), "float32": Floats(PRECISIONS["float32"])}


def dense(*widths: int) -> nn.Module:
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


def deep() -> nn.Module:
    return dense(784, *[64] * 8, 10)


CASES = {
    "784-128-64-32-10": (partial(dense, 784, 128, 64, 32, 10), (784,), 10),
    "784-64-...-64-10, 9 layers": (deep, (784,), 10),
    "convolutions": (convolutional, (1, 28, 28), 4),
}


def main() -> int:
    arguments = options(__doc__, rounds=9).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(machine())
    worst = 0.0
    for name, (make, shape, count) in CASES.items():
        model, x = make().eval(), torch.rand(count, *shape)
        y = model(x).argmax(1)
        for bound in ("interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"):
            if bound == "alpha-crown" and make in (deep, convolutional):
                continue  # minutes
            worst = max(worst, compared(name, bound, model, x, y, arguments.rounds))
    return verdict("the largest median of deployed=float32 over exact arithmetic", worst, TARGET)


def compared(name: str, bound: str, model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> float:
    parts = bound == "branch-and-bound"  # of examples that stay open, so that all spend the same parts
    ball = ns.JointBall(0.02, 0.005) if parts else ns.JointBall(0.001, 0.0001)
    network = precise(classifier(model, x, ball), torch.float64)
    views = {kind: network if floats is None else network.allowing(floats) for kind, floats in KINDS.items()}
    prove = partial(branch_and_bound, parts=8) if parts else sound(bound).load()

    def run(kind: str) -> Tensor:
        with torch.set_grad_enabled(parts or bound == "alpha-crown"):
            return prove(views[kind], x.double(), y, ball)

    seconds = interleaved(
        {kind: partial(run, kind) for kind in views}, max(1, rounds // 3) if bound[:5] in ("alpha", "branc") else rounds
    )
    exact = run("exact")
    off = {kind: ((exact - run(kind)) / (1 + exact.abs())).flatten() for kind in ("own", "float32")}
    print(f"\n{name}, {bound}\n{table(seconds, 'exact')}")
    for kind, lost in off.items():
        print(f"{kind}: margins lose {lost.median().item():.2g} (median), {lost.max().item():.2g} (most)")
    return ratio(seconds, "float32", "exact")


if __name__ == "__main__":
    raise SystemExit(main())
