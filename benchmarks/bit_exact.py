"""bit_exact.py - the networks of whole numbers with published verdicts of Henzinger, Lechner and Zikelic (arXiv:2012.08185).

git clone https://github.com/mlech26l/qnn_robustness_benchmarks
python benchmarks/bit_exact.py qnn_robustness_benchmarks --data-dir FOLDER [--dataset fashion-mnist]

784-64-32, weights, biases and activations of 6 bits, inputs of 8: read from the clone (needs h5py) and run as their bit-vectors
do it: sums of whole numbers, shifted right with halves rounded up, and clipped.  Of equal outputs the first wins.  `ns.decide` on
every image within eps whole steps of a pixel; the verdicts that they publish are read from the clone's README.  An answer is
checked in integer arithmetic at inputs that are whole numbers; one that is not is open.  Exit code 1 if a verdict contradicts.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from timing import machine, options
from torch import nn

import nonsingular as ns

BITS = 6
BLOCKS = [(0, 100), (100, 200), (200, 300), (300, 400)]
"""Images of one radius each: 1, 2, 3 and 4 steps."""


def whole(values: np.ndarray, fraction: int) -> torch.Tensor:
    """The nearest whole numbers of BITS bits, so many of them behind the point, halves away from zero; int64."""
    top = 2 ** (BITS - 1)
    at = np.clip(values.astype(np.float64) * 2**fraction, -top, top - 1)
    return torch.from_numpy(np.trunc(at + np.copysign(0.5, at)).astype(np.int64))


class Net(nn.Module):
    """(B, 784) inputs from 0 to 255 -> (B, 32).  shifts: of the sums of both layers.  `exact` takes and gives whole numbers."""

    shifts = (9, 5)
    ranges = ((0, 63), (-32, 31))

    def __init__(self, path: Path) -> None:
        super().__init__()
        import h5py

        self.layers, self.words = nn.ModuleList(), []
        with h5py.File(path) as file:
            for name, shift in zip(("quantized_dense", "quantized_dense_1"), self.shifts, strict=True):
                layer = {}
                file[name].visititems(lambda at, found, layer=layer: layer.update({at.split("/")[-1]: found}))
                w, b = whole(layer["kernel:0"][()], BITS - 1).T, whole(layer["bias:0"][()], BITS - 2) << shift
                self.words.append((w, b))
                linear = nn.Linear(w.shape[1], w.shape[0]).double()
                linear.weight.data, linear.bias.data = w.double().contiguous(), b.double()
                self.layers.append(linear)
        self.register_buffer("order", -torch.arange(len(b)).double() / 100)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs, the i-th less by i / 100, so that of equal ones the first is largest."""
        for layer, shift, (low, high) in zip(self.layers, self.shifts, self.ranges, strict=True):
            x = torch.round((layer(x) + 0.25) / 2**shift).clamp(low, high)  # at whole sums the same as halves up
        return x + self.order

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """The same in integers, x int64, without the order."""
        for (w, b), shift, (low, high) in zip(self.words, self.shifts, self.ranges, strict=True):
            x = ((x @ w.T + b + (1 << (shift - 1))) >> shift).clamp(low, high)
        return x


def published(readme: str, dataset: str) -> dict[int, str]:
    """Number of an image -> misclassified, timeout, vulnerable or robust."""
    found: dict[int, str] = {}
    for first, last, table in re.findall(
        rf"### {dataset} samples (\d+)-(\d+)\n(.*?)(?=\n##|\Z)", readme, re.DOTALL | re.IGNORECASE
    ):
        found |= dict.fromkeys(range(int(first), int(last) + 1), "robust")
        for kind in ("misclassified", "timeout", "vulnerable"):
            for row in re.findall(rf"{kind} \(\d+\) *\|(.*)", table, re.IGNORECASE):
                found |= dict.fromkeys(map(int, re.findall(r"\d+", row)), kind)
    return found


def answer(net: Net, x: torch.Tensor, y: torch.Tensor, eps: int, seconds: float) -> str:
    """robust, vulnerable or open."""
    ball = ns.JointBall(float(eps), 0.0, domain=(0.0, 255.0))
    found = ns.decide(net, x.double(), y, ball, attack="apgd", seconds=seconds)
    if found.status[0] == "verified":
        return "robust"
    at = found.perturbation.x.round().long()
    within = bool(((at - x).abs() <= eps).all() and (at >= 0).all() and (at <= 255).all())
    return "vulnerable" if within and int(net.exact(at).argmax()) != int(y) else "open"


def main() -> int:
    parser = options(__doc__, seconds=60)
    parser.add_argument("clone", type=Path, help="folder with a clone of qnn_robustness_benchmarks")
    parser.add_argument("--dataset", choices=("mnist", "fashion-mnist"), default="mnist")
    given = parser.parse_args()
    torch.set_num_threads(1)
    net = Net(given.clone / "weights" / f"{given.dataset}_mlp.h5").eval()
    theirs = published((given.clone / "README.md").read_text(encoding="utf-8"), given.dataset)
    test = ns.load(given.dataset, given.data_dir).test
    x, y = (test.x * 255).round().long().flatten(1), test.y
    right = net.exact(x).argmax(1) == y
    print(machine())
    print(f"{given.dataset}: accuracy {100 * right.double().mean():.2f} %")
    against, spent = [], Counter()
    for eps, (first, last) in enumerate(BLOCKS, 1):
        pairs, longest = Counter(), 0.0
        for i in (i for i in range(first, last) if i in theirs):
            started = time.process_time()
            ours = answer(net, x[i : i + 1], y[i : i + 1], eps, given.seconds) if right[i] else "misclassified"
            longest = max(longest, time.process_time() - started)
            spent["seconds"] += time.process_time() - started
            pairs[theirs[i], ours] += 1
            if ours != theirs[i] and ours != "open" and theirs[i] != "timeout":
                against.append(f"image {i}: published {theirs[i]}, here {ours}")
        for (before, now), count in sorted(pairs.items()):
            print(f"eps {eps}: {count:3} published {before}, here {now}")
        print(f"eps {eps}: at most {longest:.2f} CPU seconds an image", flush=True)
    print("\n".join(against) or "no contradiction")
    return int(bool(against))


if __name__ == "__main__":
    sys.exit(main())
