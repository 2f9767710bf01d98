"""scheduler.py - a simulation of the scheduler of scope `dataset`: how long a surface takes on many workers, and what bounds it.

    python benchmarks/scheduler.py                                      # the plan of docs/scale.md
    python benchmarks/scheduler.py --images 10000 --side 4 --rows 1 --rate 8000 --parameters 110912 --pixels 784 --workers 1,2,4

The order of cells is that of evaluation/walk.py, the parts of a divided cell those of attacks/search/crew.py, and who does what
follows the rule of evaluation/spread.py.  What is put in is seconds: of a pass over an image, of bytes on the network, of the
command for each cell.  Information only.
"""

from __future__ import annotations

import heapq
from argparse import ArgumentParser
from dataclasses import dataclass
from math import ceil, log2

from nonsingular.attacks.search.crew import nodes
from nonsingular.evaluation.effort import TOGETHER, Sweep
from nonsingular.evaluation.spread import EACH, divides
from nonsingular.evaluation.walk import order
from nonsingular.threat.grid import Grid

FORWARD, BACKWARD = 34.8, 20.0
"""Passes of one image in one cell, effort standard: mean of zoo:mnist/joint, at and standard, 1,000 images, 11 x 11 cells."""
STEPS = 12
"""Steps of W over all images in one cell, for each of which weights go out and gradients come back: counted in the same runs."""


@dataclass(frozen=True)
class Machine:
    """images, rate: images that one worker puts forward and backward in a second.  parameters: numbers of 4 bytes.

    wire: bytes a second of each network card.  tree: whether sums are passed up a tree of workers, and weights down; else all
    of them go through one card, that of the command, as they do today.  command: seconds that the command works on each cell.
    chunk: images of a pass.
    """

    images: int
    rate: float
    parameters: int
    wire: float
    tree: bool
    command: float
    chunk: int

    def step(self, workers: int) -> float:
        """Seconds on the network in one step of a divided cell."""
        sums = len(nodes((0, ceil(self.images / self.chunk)), workers)[0])
        each = 4 * self.parameters / self.wire
        return 2 * ceil(log2(max(2, workers))) * each if self.tree else (workers + sums) * each

    def cell(self, workers: int) -> float:
        """Seconds of one sweep over one cell, done by so many workers together.  A forward pass is a third of both."""
        one = (FORWARD / 3 + BACKWARD * 2 / 3) / 2 / self.rate
        spans = nodes((0, ceil(self.images / self.chunk)), workers)[0]
        free = [0.0] * workers
        for first, last in spans:  # whoever is free does the next part
            heapq.heapreplace(free, free[0] + min(self.images, last * self.chunk) - first * self.chunk)
        return max(free) * one + (STEPS / 2 * self.step(workers) if workers > 1 else 0.0)


def simulated(machine: Machine, grid: Grid, sweeps: tuple[Sweep, ...], workers: int) -> tuple[float, float]:
    """(seconds of a surface, share of its cells that were divided)."""
    now, divided = 0.0, 0
    for sweep in sweeps:
        cells, done, started = order(grid, sweep), set[int](), set[int]()
        running: list[tuple[float, int]] = []
        while len(done) < len(cells):
            ready = [k for k, beside in cells if k not in started and all(m in done for m in beside)]
            if not running and machine.images >= EACH * workers > EACH and divides(machine.images, len(ready), workers):
                for k in ready:
                    now += max(machine.cell(workers), machine.command)
                    started.add(k)
                    done.add(k)
                    divided += 1
                continue
            for k in ready[: workers - len(running)]:
                heapq.heappush(running, (now + machine.cell(1), k))
                started.add(k)
            ended, k = heapq.heappop(running)
            now = max(ended, now + machine.command)  # the command takes in and writes one cell after the other
            done.add(k)
    return now, divided / (len(sweeps) * len(grid.points))


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--side", type=int, default=11, help="rows and columns of the grid")
    parser.add_argument("--rows", type=int, default=0, help="rows, where these are not as many")
    parser.add_argument(
        "--rate", type=float, default=938.0, help="images forward and backward a second (A100, TF32, as NVIDIA states)"
    )
    parser.add_argument("--parameters", type=int, default=25_557_032, help="numbers of W (ResNet-50)")
    parser.add_argument("--pixels", type=int, default=3 * 224 * 224)
    parser.add_argument("--gigabits", type=float, default=100.0, help="of each network card")
    parser.add_argument("--command", type=float, default=0.0, help="seconds of the command for each cell")
    parser.add_argument("--chunk", type=int, default=512, help="images of a pass")
    parser.add_argument("--workers", default="1,8,64,256,1000")
    args = parser.parse_args()
    rows = args.rows or args.side
    axis, other = ([0.01 * k for k in range(1, n + 1)] for n in (args.side, rows))
    grid = Grid.of(axis, other, input_shape=(1,), domain=None)
    wire = args.gigabits * 1e9 / 8
    found = {
        tree: Machine(args.images, args.rate, args.parameters, wire, tree, args.command, args.chunk) for tree in (False, True)
    }
    print(f"{args.images:,} images, {len(grid.points)} cells, effort standard; W is {4 * args.parameters / 1e6:.1f} MB")
    print("                        through the command                  as a tree of workers")
    print("workers  divided   hours   of linear   comm s/step      hours   of linear   comm s/step   worker-hours   x̂, GB")
    alone, _ = simulated(found[False], grid, TOGETHER["standard"], 1)
    for workers in map(int, args.workers.split(",")):
        row = f"{workers:7}"
        for tree, machine in found.items():
            seconds, divided = simulated(machine, grid, TOGETHER["standard"], workers)
            step = machine.step(workers) if divided else 0.0
            row += (
                "" if tree else f"  {divided:7.2f}"
            ) + f"  {seconds / 3600:7.3g}   {alone / seconds / workers:9.3f}   {step:11.3f}    "
        held = 8 * 4 * args.pixels * args.images / workers / 1e9
        print(f"{row}{workers * seconds / 3600:10.0f}   {held:7.1f}")


if __name__ == "__main__":
    main()
