"""Scope `sample` on convolutional networks: time, memory and accuracy of `evaluate`, in this tree and in an older one.

    python benchmarks/sample_convolutions.py --keep NETS                          # this tree, 100 images; trains into NETS first
    python benchmarks/sample_convolutions.py --keep NETS --before ../older/src    # both, on --few images, interleaved

`small`: two strided convolutions and two dense layers, 166,406 parameters, MNIST.  `resnet20`: three stages of three residual
blocks with BatchNorm, 272,474 parameters, CIFAR-10.  Both after a short standard training, 2 x 2 radii, every weight moves.
CPU seconds of one thread, each run in a process of its own.
Exit code 1 if `small` takes more than 60 s, `resnet20` more than 900 s, or a cell is above that of the older tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from convolutions import Block
from safetensors.torch import load_file, save_file
from timing import machine, options, verdict
from torch import Tensor, nn

PIECE = """
import json, sys, time, torch
sys.path.insert(0, sys.argv[1])
import nonsingular as ns
from sample_convolutions import CASES, trained
from timing import peak_memory
torch.set_num_threads(1)
case, n = CASES[sys.argv[2]], int(sys.argv[4])
model, x, y = trained(sys.argv[2], sys.argv[3], sys.argv[5] or None)
started, found = time.process_time(), []
ask = lambda: found.append(ns.evaluate(model, (x[:n], y[:n]), eps_x=[0, case.eps_x], eps_w=[0, case.eps_w], scope="sample"))
_, memory = peak_memory(ask)
seconds = time.process_time() - started
cells = (n * found[0].accuracy).round().flatten().tolist()
print(json.dumps({"seconds": seconds, "memory": memory / 2**20, "cells": cells}))
"""


def small() -> nn.Module:
    """Of the shape of Wong and Kolter's small network, arXiv:1711.00851."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def resnet20() -> nn.Module:
    """He et al., arXiv:1512.03385, section 4.2, with strided 1x1 convolutions as shortcuts."""
    blocks = [
        Block(a, b, s)
        for a, b, s in ((16, 16, 1),) * 3 + ((16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
    ]
    stem = [nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Net:
    """build: the network.  data: its data set.  steps: of training, 128 images each.  bar: CPU seconds of 100 images."""

    build: Callable[[], nn.Module]
    data: str
    steps: int
    eps_x: float
    eps_w: float
    bar: float


CASES = {
    "small": Net(small, "mnist", 900, 0.05, 0.0003, 60.0),
    "resnet20": Net(resnet20, "cifar10", 700, 1 / 255, 0.00005, 900.0),
}


def inputs(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x[:, None]


def trained(name: str, keep: str, data_dir: str | None) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, read from `keep` or trained and kept there; the test images and their labels."""
    from nonsingular.data.datasets import load  # of the tree that is measured

    case, file = CASES[name], Path(keep) / f"{name}.safetensors"
    data = load(case.data, data_dir)
    torch.manual_seed(0)
    model = case.build()
    if not file.exists():
        x, y = inputs(data.train.x), data.train.y.long()
        optimiser = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.005, total_steps=case.steps)
        for _ in range(case.steps):
            at = torch.randint(len(x), (128,))
            optimiser.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimiser.step()
            schedule.step()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.eval().state_dict(), file)
    model.load_state_dict(load_file(file))
    return model.eval(), inputs(data.test.x), data.test.y.long()


def once(name: str, source: Path, n: int, args: Namespace) -> dict[str, Any] | None:
    """One evaluation; None if it takes longer than `--limit` seconds."""
    given = [str(Path(__file__).parent), name, str(args.keep), str(n), args.data_dir or ""]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", PIECE, *given],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=args.limit,
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout)


def row(tree: str, n: int, found: dict[str, Any] | None, limit: int) -> str:
    if found is None:
        return f"  {tree:7} {n:6} more than {limit} s of wall time"
    cells = "".join(f"{right:6.0f}" for right in found["cells"])
    return f"  {tree:7} {n:6} {found['seconds']:9.1f} {found['memory']:8.0f} {cells}"


def main() -> int:
    parser = options(__doc__, images=100, few=8, limit=3600)
    parser.add_argument("--keep", type=Path, required=True, help="folder of the trained networks; they are trained once")
    parser.add_argument("--before", type=Path, help="the `src` folder of another checkout")
    parser.add_argument("--only", choices=CASES, help="one of the networks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    now, missed = Path(__file__).resolve().parents[1] / "src", 0
    for name in [args.only] if args.only else CASES:
        case = CASES[name]
        started = time.perf_counter()
        model, x, y = trained(name, str(args.keep), args.data_dir)
        clean = (torch.cat([model(part).argmax(1) for part in x[:1000].split(100)]) == y[:1000]).float().mean().item()
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size:,} parameters, {100 * clean:.1f} % of 1,000 test images ({time.perf_counter() - started:.0f} s)")
        print("  tree    images CPU seconds  MB more   right at (0, 0), (eps_x, 0), (0, eps_w), both")
        if args.before:
            found = {
                tree: once(name, source, args.few, args) for tree, source in (("before", args.before.resolve()), ("now", now))
            }
            for tree, run in found.items():
                print(row(tree, args.few, run, args.limit), flush=True)
            if found["before"] and found["now"]:
                above = [b - a for a, b in zip(found["before"]["cells"], found["now"]["cells"], strict=True)]
                missed |= verdict(f"{name}: images above the older tree in a cell", max(above), 0)
        run = once(name, now, args.images, args)
        print(row("now", args.images, run, args.limit), flush=True)
        missed |= verdict(f"{name}: CPU seconds", run["seconds"] if run else float("inf"), case.bar)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
