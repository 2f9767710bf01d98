"""bit_errors.py - bit errors in a trained LeNet of another library, by `ns.campaign` and by fifteen lines of its own.

python benchmarks/bit_errors.py WHEEL --cifar FOLDER      # WHEEL: pip download --no-deps mrfi==2.1.0

The weights are those of lenet_cifar10.pth inside the wheel (MRFI, arXiv:2306.11758), read without unpickling objects; inputs are
(x - 0.5) / 0.5.  The injector below is written apart from the library, with another random generator: both must agree within two
standard errors of their difference.  Exit code 1 if they do not.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nonsingular as ns

RATES = (0.0, 1e-4, 1e-3, 5e-3, 1e-2)
FORMATS = {"int8": ns.UniformRounding(8), "fixed point 3.13": ns.FixedPoint(16, 13)}


def lenet(wheel: Path) -> nn.Module:
    """The network of the wheel, with its normalisation inside."""
    with zipfile.ZipFile(wheel) as archive:
        held = archive.read("mrfi_dataset/lenet_cifar10.pth")
    state = torch.load(io.BytesIO(held), weights_only=True, map_location="cpu")
    names = ("conv1", "conv2", "fc1", "fc2", "fc3")
    layers = [nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)]
    for name, layer in zip(names, layers, strict=True):
        layer.load_state_dict({kind: state[f"{name}.{kind}"] for kind in ("weight", "bias")})
    a, b, c, d, e = layers
    pool = nn.MaxPool2d(2)
    inner = nn.Sequential(a, nn.ReLU(), pool, b, nn.ReLU(), pool, nn.Flatten(), c, nn.ReLU(), d, nn.ReLU(), e)
    return ns.Normalized(inner, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()


def injected(w: np.ndarray, rate: float, fixed: bool, draw: np.random.Generator) -> np.ndarray:
    """Words of two's complement with bits flipped one by one, in numpy: nothing of the library."""
    bits, step = (16, 2.0**-13) if fixed else (8, np.abs(w).max() / 127)
    word = np.clip(np.rint(w / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64)
    for k in range(bits):
        word = np.where(draw.random(w.shape) < rate, word ^ (1 << k), word)
    word &= 2**bits - 1
    return np.where(word >= 2 ** (bits - 1), word - 2**bits, word) * step


def by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, fixed: bool, chips: int) -> np.ndarray:
    """(chips,) accuracies."""
    found: list[float] = []
    for chip in range(chips):
        draw = np.random.default_rng(1000 + chip)
        weights = {n: torch.from_numpy(injected(p.detach().double().numpy(), rate, fixed, draw)).float()
                   for n, p in model.named_parameters() if p.dim() > 1}  # fmt: skip
        with torch.no_grad():
            found.append((torch.func.functional_call(model, weights, (x,)).argmax(1) == y).double().mean().item())
    return np.array(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--chips", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, test = lenet(given.wheel), ns.load("cifar10", given.cifar).test
    x, y = test.x[: given.images], test.y[: given.images]
    apart = 0
    print("| format | rate | ns.campaign, % | injector of 15 lines, % | apart, standard errors | CPU seconds a chip |")
    print("|---|---|---|---|---|---|")
    for name, storage in FORMATS.items():
        started = time.process_time()
        found = ns.campaign(model, (x, y), fault=ns.BitErrors(storage=storage), rates=RATES, chips=given.chips)
        seconds = (time.process_time() - started) / given.chips / len(RATES)
        for i, rate in enumerate(RATES):
            ours, theirs = found.after[i, 0], by_hand(model, x, y, rate, "fixed" in name, given.chips)
            error = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / given.chips)
            off = abs(ours.mean() - theirs.mean()) / error if error else 0.0 if ours.mean() == theirs.mean() else math.inf
            apart += off > 2
            told = [f"{100 * t.mean():.1f} ± {100 * t.std(ddof=1):.1f}" for t in (ours, theirs)]
            print(f"| {name} | {rate:g} | {told[0]} | {told[1]} | {off:.1f} | {seconds:.2f} |", flush=True)
    return int(apart > 1)  # of ten comparisons, one may be further apart by chance


if __name__ == "__main__":
    sys.exit(main())
