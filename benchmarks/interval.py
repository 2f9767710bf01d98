"""One call of `interval`, with 10 examples and 784-128-64-32-10: this tree against another, call by call in turn.

    python benchmarks/interval.py --before ../older/src      # the `src` folder of another checkout

Given a Network, as in an evaluation, certificates and `best`: with one ball and other examples each time, with the balls of an
11 x 11 grid in their order, and with larger radii of weights each time.  Given a module, which is copied and read at every call.
An older tree that has no Network is given the module.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from timing import machine, ratio, table, verdict

TARGET = 1 / 3
WORKER = """
import sys, time
import torch
from torch import nn
from nonsingular.bounds.interval import interval
try:
    from nonsingular.network.heads import classifier
    from nonsingular.threat.ball import JointBall
except ModuleNotFoundError:  # the first release
    from nonsingular.threat import JointBall
    classifier = lambda model, x, ball: model
torch.manual_seed(0); torch.set_num_threads(1)
layers = [m for a, b in ((784, 128), (128, 64), (64, 32), (32, 10)) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
model = nn.Sequential(nn.Flatten(), *layers).eval()
x, y = torch.rand(200, 10, 784), torch.randint(0, 10, (200, 10))
ball, network = JointBall(0.01, 0.0005), classifier(model, x[0], JointBall(0.01, 0.0005))
grid = [JointBall(0.002 * i, 0.0001 * j) for j in range(11) for i in range(11)]
cases = {
    "one ball": (network, lambda i: ball),
    "a grid of balls": (network, lambda i: grid[i % len(grid)]),
    "larger weight radii": (network, lambda i: JointBall(0.01, 0.0005 + 1e-6 * i)),
    "a module": (model, lambda i: ball),
}
count = dict.fromkeys(cases, 0)
for line in sys.stdin:
    (given, choose), i = cases[line.strip()], count[line.strip()]
    count[line.strip()] += 1
    now = choose(i)
    started = time.perf_counter()
    interval(given, x[i % 200], y[i % 200], now)
    print(time.perf_counter() - started, flush=True)
"""
CASES = ("one ball", "a grid of balls", "larger weight radii", "a module")


class Tree:
    """A process that measures one call at a time, of one source tree."""

    def __init__(self, source: Path) -> None:
        env = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def seconds(self, case: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(case, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--calls", type=int, default=242)
    options = parser.parse_args()
    trees = {"before": Tree(options.before), "now": Tree(Path(__file__).parents[1] / "src")}
    print(machine())
    missed = 0
    for case in CASES:
        seconds: dict[str, list[float]] = {name: [] for name in trees}
        for turn in range(options.calls + 1):
            for name, tree in trees.items():
                measured = tree.seconds(case)
                if turn:  # the first round is not counted
                    seconds[name].append(measured)
        print(f"\n{case}\n{table(seconds, 'before')}")
        if case in ("one ball", "a grid of balls"):
            missed |= verdict(f"interval, {case}: now / before", ratio(seconds, "now", "before"), TARGET)
    return missed


if __name__ == "__main__":
    sys.exit(main())
