"""search.py - every training method with its hyperparameters chosen the same way, on validation examples; test examples once.

    python docs/leaderboard/search.py digits --out runs/search-digits                        # 26 minutes of one core
    python docs/leaderboard/search.py mnist --data-dir DIR --passes 96 --trials 4 --methods joint at awp --out runs/search-mnist

Needs optuna.  Each method gets --trials draws of Optuna's TPE sampler, and each draw the same number of passes over the training
data: a pass is one forward and backward over all examples, so that a method with 8 passes a step has an eighth of the epochs.
What a draw is judged by: the AUC of the strongest attack at effort quick (scope dataset, every second radius of the preset's
grid) on validation examples.  With --clips the best draw of each method is trained once more with its weights kept within each of
these, judged by the mean of that AUC and the relative one (weight radii up to 2 % of the largest |weight| of each tensor), so
that neither large weights nor small ones win by their scale.  The best is trained again with --seeds other seeds, and attacked on
the test examples, once: whole grid, effort standard; relative radii, 6 x 6; 8 bits with 1 % bit errors.
All draws are in OUT/trials.csv, those with clipped weights in OUT/clips.csv, the networks in OUT/best as run directories, the
table in OUT/table.md.  A method that OUT has trials of goes on from them.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from torch import nn

import nonsingular as ns
from nonsingular.data.datasets import Dataset, Split
from nonsingular.evaluation.effort import Effort
from nonsingular.models.loading import build, load_run
from nonsingular.results.statistics import half_width
from nonsingular.runs.jobs import dataset
from nonsingular.runs.presets import GRIDS, reproduction
from nonsingular.runs.train import descent_of, objective_in, train_run
from nonsingular.settings import Network, Recipe, TrainSettings
from nonsingular.training.loop import Examples, accuracy, fit
from nonsingular.training.objectives import STEPS

EPS_X, EPS_W, RHO = (0.03, 0.25), (0.002, 0.02), (1e-3, 0.1)
METHODS: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {
    "standard": (1, {}),
    "weight-perturb": (2, {"eps_w": EPS_W, "beta": (1e-3, 1.0)}),
    "jiwp": (2, {"eps_x": EPS_X, "eps_w": EPS_W, "alpha": (1e-4, 0.1), "beta": (1e-3, 1.0)}),
    "sam": (2, {"rho": (0.01, 1.0)}),
    "asam": (2, {"rho": (0.1, 10.0)}),
    "at": (STEPS + 1, {"eps_x": EPS_X}),
    "at-beta": (STEPS + 2, {"eps_x": EPS_X, "eps_w": EPS_W, "beta": (1e-3, 0.1)}),
    "trades": (STEPS + 3, {"eps_x": EPS_X, "beta": (1.0, 10.0)}),
    "mart": (STEPS + 2, {"eps_x": EPS_X, "beta": (1.0, 10.0)}),
    "awp": (STEPS + 2, {"eps_x": EPS_X, "rho": RHO}),
    "rwp": (STEPS + 11, {"eps_x": EPS_X, "rho": RHO}),
    "randbet": (STEPS + 2, {"eps_x": EPS_X, "rate": (1e-3, 0.03)}),
    "certified": (4, {"eps_x": EPS_X, "eps_w": (5e-4, 0.01), "alpha": (0.1, 1.0)}),
    "joint-batch": (STEPS + 2, {"eps_x": EPS_X, "eps_w": EPS_W}),
    "joint": (STEPS + 1, {"eps_x": EPS_X, "eps_w": EPS_W}),
}
"""Method -> passes of a step, and its numbers with the ends between which they are drawn, evenly in their logarithms."""
BATCH = {"digits": 64}
RELATIVE = tuple(0.004 * k for k in range(6))
Radii = tuple[float, ...]


def drawn(method: str, passes: int, batch: int, trial: optuna.Trial) -> Recipe:
    cost, numbers = METHODS[method]
    found: dict[str, Any] = {name: trial.suggest_float(name, *ends, log=True) for name, ends in numbers.items()}
    lr = trial.suggest_float("lr", 5e-4, 1e-2, log=True)
    average = trial.suggest_categorical("average", (0.0, 0.99, 0.999))
    epochs = max(1, round(passes * trial.suggest_categorical("part", (0.25, 1.0)) / cost))
    return Recipe(method=method, **found, lr=lr, average=average or None, epochs=epochs, batch_size=batch)


def judged(
    recipe: Recipe, data: Dataset, network: Network, seed: int, limit: int, *, relative: bool = False
) -> tuple[float, float]:  # fmt: skip
    """(AUC, clean accuracy) on validation examples.  relative: the mean with the AUC in relative radii.

    0 for a training that ends without numbers.
    """
    settings = TrainSettings(network=network, recipe=recipe, seed=seed)
    model = build(settings, tuple(data.train.x.shape[1:]), len(data.classes))
    few = data.val.take(limit)
    try:
        fit(model, objective_in(recipe, data), Examples(data.train, None), descent_of(settings))
    except ns.InvalidInput:
        return 0.0, 0.0
    eps_x, eps_w = (axis[::2] for axis in GRIDS[data.name])
    areas = [area(model.eval(), few, eps_x, eps_w, False, "quick")]
    areas += [area(model, few, eps_x, RELATIVE, True, "quick")] if relative else []
    return float(np.mean(areas)), accuracy(model, data.val)


def area(model: nn.Module, few: Split, eps_x: Radii, eps_w: Radii, relative: bool, effort: Effort = "standard") -> float:
    """The AUC of the strongest attack with one W' for all examples."""
    return ns.evaluate(model, (few.x, few.y), eps_x=eps_x, eps_w=eps_w, relative=relative, scope="dataset", effort=effort).auc


def searched(method: str, args: argparse.Namespace, data: Dataset, network: Network) -> tuple[int, Recipe]:
    """The best draw of a method, with its number."""
    log = args.out / "trials.csv"
    held = [row for row in csv.DictReader(log.read_text().splitlines()) if row["method"] == method] if log.exists() else []
    sampler = optuna.samplers.TPESampler(seed=args.first_seed + len(held), n_startup_trials=min(6, args.trials // 2))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    best = max(((float(row["auc"]), int(row["trial"]), row["recipe"]) for row in held), default=(-1.0, 0, ""))
    for n in range(len(held), args.trials):
        trial = study.ask()
        recipe = drawn(method, args.passes, BATCH.get(data.name, 128), trial)
        started = time.process_time()
        auc, clean = judged(recipe, data, network, args.first_seed, args.limit)
        study.tell(trial, auc)
        best = max(best, (auc, n, recipe.model_dump_json(exclude_defaults=True)))
        row = {
            "method": method, "trial": n, "auc": round(auc, 4), "clean": round(clean, 4),
            "cpu_seconds": round(time.process_time() - started, 1), "recipe": recipe.model_dump_json(exclude_defaults=True),
        }  # fmt: skip
        new = not log.exists()
        with log.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(f"{method} {n + 1}/{args.trials}: AUC {auc:.3f}, clean {100 * clean:.1f} %, best {best[0]:.3f}", flush=True)
    return best[1], Recipe.model_validate_json(best[2])


def clipped(recipe: Recipe, args: argparse.Namespace, data: Dataset, network: Network) -> Recipe:
    """The recipe with the clip that is best, or without one."""
    if not args.clips:
        return recipe
    found = list[tuple[float, float, float]]()
    for clip in (0.0, *args.clips):
        mean, clean = judged(
            recipe.model_copy(update={"clip": clip or None}), data, network, args.first_seed, args.limit, relative=True
        )
        found.append((mean, clean, clip))
        with (args.out / "clips.csv").open("a", newline="") as file:
            csv.writer(file).writerow([recipe.method, clip, round(mean, 4), round(clean, 4)])
        print(f"{recipe.method}, clip {clip:g}: mean of AUCs {mean:.3f}, clean {100 * clean:.1f} %", flush=True)
    return recipe.model_copy(update={"clip": max(found, key=lambda one: one[:2])[2] or None})


def tested(trial: int, recipe: Recipe, args: argparse.Namespace, data: Dataset, network: Network) -> list[list[float]]:
    """For each seed: clean accuracy, AUC, relative AUC, accuracy at 1 % bit errors, CPU seconds of training."""
    rows, few, (eps_x, eps_w) = [], data.test.take(args.limit), GRIDS[data.name]
    for seed in range(args.seeds):
        out = args.out / "best" / f"{recipe.method}-{trial}-clip{recipe.clip or 0:g}-seed{seed}"
        settings = TrainSettings(data=args.data, data_dir=args.data_dir, network=network, recipe=recipe, seed=seed)
        seconds = train_run(settings, out)["cpu_seconds"]
        model = load_run(out)[0]
        areas = [area(model, few, eps_x, eps_w, False), area(model, few, eps_x[::2], RELATIVE, True)]
        chips = ns.campaign(model, (few.x, few.y), fault=ns.BitErrors(0.01, ns.UniformRounding(8)), rates=(0.01,), chips=20)
        rows.append([100 * accuracy(model, few), *areas, 100 * float(chips.after.mean()), seconds])
    return rows


def interval(values: Sequence[float], digits: int) -> str:
    """Mean and half width of the 95 % interval of Student's t."""
    return f"{np.mean(values):.{digits}f} ± {half_width(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=[*GRIDS])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--passes", type=int, default=320)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--clips", nargs="+", type=float, default=[], help="limits of the weights that are tried; default: none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1000, help="validation and test examples, at most")
    parser.add_argument("--first-seed", type=int, default=100, help="of the search; the final networks have 0, 1, ...")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("nonsingular").setLevel(logging.ERROR)  # what a longer attack may still find, for each surface
    data, network = dataset(args.data, args.data_dir), reproduction(args.data).network
    best = {method: searched(method, args, data, network) for method in args.methods}
    best = {method: (trial, clipped(recipe, args, data, network)) for method, (trial, recipe) in best.items()}
    lines = ["| method | clean, % | AUC | AUC, relative | 1 % bit errors, % | CPU s | recipe |", "|---|--:|--:|--:|--:|--:|---|"]
    for method, (trial, recipe) in best.items():
        rows = [*zip(*tested(trial, recipe, args, data, network), strict=True)]
        cells = [interval(values, digits) for values, digits in zip(rows[:4], (1, 3, 3, 1), strict=True)]
        numbers = recipe.model_dump(exclude_defaults=True, exclude={"method", "batch_size"})
        said = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in numbers.items()
        )
        lines.append(f"| {method} | {' | '.join(cells)} | {np.mean(rows[4]):.0f} | {said} |")
        print(lines[-1], flush=True)
        (args.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
