"""convergence.py - surfaces in scope dataset at each effort, against many times the passes: how much is still to be had.

For each network, the surfaces of `evaluate` at the efforts given, and a reference: `thorough` with --factor times the steps.
Printed: AUC, passes, CPU seconds, the largest and the mean overstatement of a cell in points, and the CPU seconds of the paper's
protocol over the same grid, measured on a few of its cells before, between and after the others.  Exit code 1 if a cell of
`standard` is more than 0.5 points above the lowest, or `standard` takes more than 1/5 of the paper's time.

    convergence.py --runs RUN --networks joint --points 4      # every third point of the grid: minutes
    convergence.py --inputs --networks small zoo:mnist/joint   # the row eps_w = 0 alone, against scope sample: a minute
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from contour import trained
from paper_cell import plain
from timing import machine, options, verdict
from torch import Tensor, nn

from nonsingular.attacks.strongest import strongest
from nonsingular.catalog import Attack
from nonsingular.data.datasets import load
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.effort import EFFORTS, Effort
from nonsingular.models.loading import load_run
from nonsingular.models.zoo import PREFIX, located
from nonsingular.results.surface import WEIGHTS, Surface
from nonsingular.runs.presets import GRIDS, REPRODUCTIONS
from nonsingular.runs.train import train_run
from nonsingular.settings import Network, TrainSettings
from nonsingular.threat.ball import Scope

ABOVE, TARGET = 0.5, 0.2
"""Points above the reference, time over time."""
SMALL = {"small": ("standard", 9), "small-at": ("at", 5)}
"""64-64-32-10 on 400 digits: method, and points of each axis of the grid."""
Case = tuple[nn.Module, Tensor, Tensor, tuple[tuple[float, ...], tuple[float, ...]]]


def small(name: str, runs: Path) -> nn.Module:
    """The digits network of this name, trained into `runs` first if it is not there."""
    method, run = SMALL[name][0], runs / "models" / f"{name}-seed0"
    if not (run / WEIGHTS).exists():
        recipe = REPRODUCTIONS["digits"].recipes[method]
        train_run(TrainSettings(data="digits", network=Network(hidden=(64, 32)), recipe=recipe), run, lambda epoch: None)
    return load_run(run)[0].eval()


def case_of(name: str, args: argparse.Namespace, runs: Path) -> Case:
    """The network, its images, and its grid."""
    data = "digits" if name in SMALL else "mnist"
    if name.startswith(PREFIX):
        model = load_run(located(name))[0].eval()
    elif name in SMALL:
        model = small(name, runs)
    else:
        model = trained(data, name, runs / "models" / f"{name}-seed0", args.data_dir)
    images = load(data, args.data_dir if data == "mnist" else None)
    test = (images.train if name in SMALL else images.test).take(400 if name in SMALL else args.examples)
    points = min(args.points, SMALL[name][1]) if name in SMALL else args.points
    grid = tuple(tuple(axis[k] for k in np.linspace(0, len(axis) - 1, points).round().astype(int)) for axis in GRIDS[data])
    return model, test.x, test.y, (grid[0], grid[1])


def longer(factor: int) -> Attack:
    """The default attack with `factor` times the steps of any budget."""

    def attack(*args: Any, steps: int = 4, **options: Any) -> Any:
        return strongest(*args, steps=factor * steps, **options)

    return Attack(f"{factor} times the steps", attack, starts=True, budget=True)


def timed(run: Callable[[], Surface]) -> tuple[Surface, float]:
    started = time.process_time()
    return run(), time.process_time() - started


def papers(case: Case, cells: int) -> float:
    """CPU seconds of the paper's protocol for one cell, from `cells` cells along the diagonal of the grid."""
    model, x, y, (columns, rows) = case
    started = time.process_time()
    for k in range(1, cells + 1):
        i, j = k * (len(rows) - 1) // cells, k * (len(columns) - 1) // cells
        plain(model, x, y, steps=100, eps_x=columns[j], eps_w=rows[i])
    return (time.process_time() - started) / cells


def compare(name: str, case: Case, args: argparse.Namespace) -> int:
    """Prints a table and verdicts; the exit code."""
    model, x, y, (columns, rows) = case
    call = partial(evaluate, model, (x, y), eps_x=columns, eps_w=rows, scope="dataset")
    paper = [papers(case, args.cells)]
    found = dict[str, tuple[Surface, float]]()
    for effort in args.efforts:
        found[effort] = timed(partial(call, effort=effort))
        paper.append(papers(case, args.cells))
    reference = timed(partial(call, effort="thorough", attack=longer(args.factor)))
    paper.append(papers(case, args.cells))
    whole = len(columns) * len(rows) * sum(paper) / len(paper)
    best = np.minimum.reduce([s.accuracy for s, _ in [*found.values(), reference]])
    print(f"\n{name}: {len(y)} images, {len(rows)} x {len(columns)} cells; paper's protocol {whole:.1f} CPU s")
    print(f"{'':14} {'AUC':>7} {'passes':>8} {'CPU s':>7} {'/ paper':>8} {'most above':>11} {'mean':>6}  at (eps_x, eps_w)")
    for what, (s, seconds) in {**found, "reference": reference}.items():
        above = 100 * (s.accuracy - best)
        i, j = np.unravel_index(above.argmax(), above.shape)
        passes = (s.about["passes"]["forward"] + 2 * s.about["passes"]["backward"]) / 3 / len(y)
        print(
            f"{what:14} {s.auc:7.4f} {passes:8.0f} {seconds:7.1f} {seconds / whole:8.3f} {above.max():11.2f} {above.mean():6.2f}",
            f" ({columns[j]:g}, {rows[i]:g})", flush=True,
        )  # fmt: skip
    if "standard" not in found:
        return 0
    most = float(100 * (found["standard"][0].accuracy - best).max())
    missed = verdict(f"{name}: points above the reference", most, ABOVE + 1e-9)
    return missed | verdict(f"{name}: time / paper's time", found["standard"][1] / whole, TARGET)


def inputs(name: str, case: Case, efforts: Sequence[Effort]) -> None:
    """Prints accuracies, passes and CPU seconds where inputs alone move, in scope dataset at each effort and in scope sample."""
    model, x, y, (columns, _) = case
    print(f"\n{name}: {len(y)} images, eps_x {', '.join(f'{e:g}' for e in columns)}")
    asked: list[tuple[Scope, Effort]] = [*(("dataset", effort) for effort in efforts), ("sample", "standard")]
    for scope, effort in asked:
        s, seconds = timed(partial(evaluate, model, (x, y), eps_x=columns, eps_w=(0.0,), scope=scope, effort=effort))
        passes = (s.about["passes"]["forward"] + 2 * s.about["passes"]["backward"]) / 3 / len(y)
        found = " ".join(f"{100 * a:.1f}" for a in s.accuracy[0])
        print(f"{scope} {effort:9} {passes:6.0f} passes {seconds:6.1f} CPU s  {found}", flush=True)


def main() -> int:
    parser = options(__doc__, examples=1000, points=11, factor=5, cells=3)
    parser.add_argument("--networks", nargs="+", default=["standard", "at", "joint", *SMALL], help="default: %(default)s")
    parser.add_argument("--efforts", nargs="+", choices=EFFORTS, default=["quick", "standard"], help="default: %(default)s")
    parser.add_argument("--inputs", action="store_true", help="the row eps_w = 0 alone, against scope sample")
    parser.add_argument("--runs", type=Path, help="folder with models/NAME-seed0; trains what it lacks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    missed = 0
    with TemporaryDirectory() as scratch:
        for name in args.networks:
            case = case_of(name, args, args.runs or Path(scratch))
            if args.inputs:
                inputs(name, case, args.efforts)
            else:
                missed |= compare(name, case, args)
    return missed


if __name__ == "__main__":
    sys.exit(main())
