"""contour.py - an 11 x 11 contour in scope dataset: the paper's protocol cell by cell, against the default of `evaluate`.

The paper's: 100 signed steps on x (0.01) and W (0.0005) from (x, W), one W' for all images, the last iterate, in plain autograd
and for every cell anew.  Half of its cells run before `evaluate`, half after it, on one thread: what disturbs one disturbs both.
Exit code 1 if, for one of the models, the AUC of `evaluate` is not lower, a cell of it is more than 0.5 points above the paper's,
or it takes more than 1/5 of the time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from paper_cell import plain
from timing import machine, options, verdict
from torch import Tensor, nn

from nonsingular.attacks.shared_apgd import shared_apgd
from nonsingular.data.datasets import load
from nonsingular.evaluation.attacked import evaluate
from nonsingular.models.loading import load_run
from nonsingular.results.files import Log
from nonsingular.results.surface import WEIGHTS, Cell, Surface
from nonsingular.runs.presets import GRIDS, REPRODUCTIONS
from nonsingular.runs.train import train_run
from nonsingular.settings import Network, Recipe, TrainSettings
from nonsingular.training.loop import accuracy

TARGET, ABOVE, LOWER = 0.2, 0.5, 0.9999
"""Largest time over time, points above a cell, AUC over AUC."""
SNAPSHOTS = (10, 25, 50, 100)
"""Steps of the plain loop after which its accuracy is taken: a run of so many steps ends there."""
BUDGETS = (2, 4)
"""Steps of `shared_apgd`, the joint part of the default attack, with which `evaluate` is run again for its curve."""
DEFAULTS = {"mnist": 2000, "cifar10": 1000}
CONV = Network(name="conv", hidden=(16, 32, 64))
CIFAR = {"standard": Recipe(method="standard", epochs=12), "at": Recipe(method="at", eps_x=2 / 255, epochs=12)}

Grid = tuple[tuple[float, ...], tuple[float, ...]]
Curve = list[tuple[str, float, float]]  # (what, seconds, AUC)


def trained(data: str, name: str, run: Path, data_dir: str | None) -> nn.Module:
    """The model of a run directory, trained into it first if it is not there."""
    if not (run / WEIGHTS).exists():
        network, recipes = (CONV, CIFAR) if data == "cifar10" else (REPRODUCTIONS[data].network, REPRODUCTIONS[data].recipes)
        folder = None if data_dir is None else Path(data_dir)
        settings = TrainSettings(data=data, data_dir=folder, network=network, recipe=recipes[name])
        started = time.perf_counter()
        summary = train_run(settings, run, lambda epoch: say(f"{name}: epoch {epoch.epoch} {epoch.val_accuracy:.3f}"))
        print(f"\n{name}: trained in {time.perf_counter() - started:.0f} s, validation {100 * summary['val_accuracy']:.1f} %")
    model, settings = load_run(run)
    if settings.data != data:
        raise SystemExit(f"{run} was trained on {settings.data}, not on {data}; give another folder with --runs")
    return model.eval()


def say(text: str) -> None:
    print(f"\r{text:60}", end="\r", file=sys.stderr, flush=True)


# --- the two contenders ---------------------------------------------------------------------------------------------------


class Plain:
    """The paper's protocol, cell by cell."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
        self.model, self.x, self.y = model, x, y
        self.steps = [s for s in SNAPSHOTS if s < steps] + [steps]
        self.cells: dict[int, list[Cell]] = {s: [] for s in self.steps}

    def run(self, eps_x: float, eps_w: float) -> None:
        say(f"plain loop: eps_x {eps_x:g}, eps_w {eps_w:g}")
        last, outside, started = self.steps[-1], 0.0, time.perf_counter()

        def see(step: int, model: nn.Module, x: Tensor) -> None:
            nonlocal outside
            if step in self.steps[:-1]:
                now = time.perf_counter()
                with torch.no_grad():
                    right = model(x).argmax(1) == self.y
                self.cells[step].append(Cell(eps_x, eps_w, right.numpy(), now - started - outside))
                outside += time.perf_counter() - now  # not the paper's time

        *_, right = plain(self.model, self.x, self.y, steps=last, eps_x=eps_x, eps_w=eps_w, on_step=see)
        self.cells[last].append(Cell(eps_x, eps_w, right.numpy(), time.perf_counter() - started - outside))


def ours(model: nn.Module, x: Tensor, y: Tensor, grid: Grid, attack: Any = None) -> Surface:
    """The surface of `evaluate`, with the seconds of the whole call."""
    started = time.perf_counter()
    found = evaluate(model, (x, y), eps_x=grid[0], eps_w=grid[1], scope="dataset", attack=attack)
    return replace(found, seconds=time.perf_counter() - started)


def on_the_way(model: nn.Module, x: Tensor, y: Tensor, grid: Grid) -> Curve:
    """AUC at eighths of the time of one more run, with a log: a cell that is not done has what was reached in smaller balls."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        found = evaluate(model, (x, y), eps_x=grid[0], eps_w=grid[1], scope="dataset", log=log)
        cells = [Cell.from_dict(cell) for entry in Log(log) for cell in entry.get("cells", ())]
    ends = np.cumsum([c.seconds for c in cells])
    curve: Curve = []
    for done in sorted({int((ends <= ends[-1] * k / 8).sum()) for k in range(1, 9)} - {0}) if cells and not found.rises else ():
        some = {(c.eps_w, c.eps_x): float(c.correct.mean()) for c in cells[:done]}
        least = np.array([[some.get((w, x), 1.0) for x in grid[0]] for w in grid[1]])
        for axis in (0, 1):
            least = np.minimum.accumulate(least, axis=axis)
        curve.append((f"{done} cells", float(ends[done - 1]), replace(found, accuracy=least).auc))
    return curve


# --- one model ------------------------------------------------------------------------------------------------------------


def compare(name: str, model: nn.Module, x: Tensor, y: Tensor, grid: Grid, steps: int) -> int:
    """Prints tables, curves and verdicts; the exit code."""
    points = [(eps_x, eps_w) for eps_w in grid[1] for eps_x in grid[0]]
    few = (x[:16], y[:16])
    Plain(model, *few, steps).run(*points[-1])  # what is loaded once
    ours(model, *few, (grid[0][-2:], grid[1][-2:]))
    loop = Plain(model, x, y, steps)
    for point in points[::2]:
        loop.run(*point)
    say("evaluate")
    new = ours(model, x, y, grid)
    for point in points[1::2]:
        loop.run(*point)
    at_steps = {s: Surface.from_cells(c, *grid, scope="dataset", attack="plain loop", model=name) for s, c in loop.cells.items()}
    old = at_steps[steps]
    say("evaluate, for its curve")
    curve = on_the_way(model, x, y, grid)
    fewer = {f"{n} steps": ours(model, x, y, grid, partial(shared_apgd, steps=n)) for n in BUDGETS}
    for what, surface in (fewer | {"all": new}).items():
        most = 100 * (surface.accuracy - old.accuracy).max()
        curve.append((f"{what}; largest difference {most:+.2f} points", surface.seconds, surface.auc))
    say("")
    for surface, what in ((old, f"plain loop, {steps} steps"), (new, "evaluate")):
        flags = Counter(flag for cell in surface.flags.values() for flag in cell)
        flagged = "".join(f", {count} cells flagged {flag}" for flag, count in flags.items())
        print(f"\n{name}, {what}: {surface.seconds:.1f} s, {len(surface.rises)} rises{flagged}\n{surface}")
    print("\n   seconds    AUC")
    for s, surface in at_steps.items():
        print(f"{surface.seconds:10.1f} {surface.auc:6.4f}  plain loop, {s} steps")
    for what, seconds, auc in curve:
        print(f"{seconds:10.1f} {auc:6.4f}  evaluate, {what}")
    above = 100 * (new.accuracy - old.accuracy)
    print(
        f"\n{name}: AUC {new.auc:.4f} for {old.auc:.4f}; largest difference {above.max():+.2f} points, mean {above.mean():+.2f}"
    )
    missed = verdict(f"{name}: AUC/AUC", new.auc / max(old.auc, 1e-12), LOWER)
    missed |= verdict(f"{name}: cells more than {ABOVE} points above", int((above > ABOVE + 1e-9).sum()), 0)
    return missed | verdict(f"{name}: time/time", new.seconds / old.seconds, TARGET)


def main() -> int:
    parser = options(__doc__)
    for name, value in (("--points", 11), ("--steps", 100)):  # for a quick look only
        parser.add_argument(name, type=int, default=value, help=argparse.SUPPRESS)
    parser.add_argument("--data", choices=DEFAULTS, default="mnist", help="default: %(default)s")
    parser.add_argument("--examples", type=int, help="test images (default: 2000 of mnist, 1000 of cifar10)")
    parser.add_argument("--models", nargs="+", choices=("standard", "at"), default=["standard", "at"])
    parser.add_argument("--runs", type=Path, help="folder with models/standard-seed0 and models/at-seed0; trains what it lacks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    data = load(args.data, args.data_dir)
    test = data.test.take(args.examples or DEFAULTS[args.data])
    grid_x, grid_w = (tuple(a[i] for i in np.linspace(0, len(a) - 1, args.points).round().astype(int)) for a in GRIDS[args.data])
    missed = 0
    with TemporaryDirectory() as scratch:
        for name in args.models:
            model = trained(args.data, name, (args.runs or Path(scratch)) / "models" / f"{name}-seed0", args.data_dir)
            print(f"\n{name}: {len(test)} test images, clean {100 * accuracy(model, test):.2f} %", flush=True)
            missed |= compare(name, model, test.x, test.y, (grid_x, grid_w), args.steps)
    return missed


if __name__ == "__main__":
    sys.exit(main())
