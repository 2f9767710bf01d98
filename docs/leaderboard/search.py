"""search.py - how the recipe behind `--method recommended` was found: recipes of joint training, on validation examples alone.

    python docs/leaderboard/search.py digits                     # 5 recipes, 2 seeds each: about 2 minutes of one core
    python docs/leaderboard/search.py mnist --data-dir DIR       # 3 recipes, 1 seed each: about 9 minutes

Prints clean accuracy and the AUC under the paper's attack (scope dataset) on up to 1,000 validation examples over a 6 x 6 grid
with the corners of the reproduction, with absolute weight radii, and with radii up to 2 % of the largest |weight| of each tensor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import nonsingular as ns
from nonsingular.data.datasets import load
from nonsingular.models.loading import build
from nonsingular.runs.presets import GRIDS, reproduction
from nonsingular.settings import Recipe, TrainSettings
from nonsingular.training.loop import accuracy

FIRST_SEED = 100
RECIPES = {
    "digits": [
        Recipe(method="joint", eps_x=0.15, eps_w=0.004, epochs=60, batch_size=64, lr=2e-3),
        *(
            Recipe(method="joint", eps_x=x, eps_w=w, epochs=60, batch_size=64, lr=lr, average=0.99)
            for x, w, lr in ((0.1, 0.008, 5e-3), (0.1, 0.012, 5e-3), (0.15, 0.008, 5e-3), (0.1, 0.008, 1e-2))
        ),
    ],
    "mnist": [
        Recipe(method="joint", eps_x=0.1, eps_w=0.004),
        Recipe(method="joint", eps_x=0.1, eps_w=0.004, lr=3e-3),
        Recipe(method="joint", eps_x=0.1, eps_w=0.006, lr=3e-3, epochs=30, average=0.999),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=[*RECIPES])
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    data, network = load(args.data, args.data_dir), reproduction(args.data).network
    few, (eps_x, eps_w) = data.val.take(1000), GRIDS[args.data]
    print("| eps_x | eps_w | lr | epochs | average | seed | clean | AUC | AUC, relative | CPU s |\n|" + "---|" * 10)
    for recipe in RECIPES[args.data]:
        for seed in range(FIRST_SEED, FIRST_SEED + (2 if args.data == "digits" else 1)):
            started = time.process_time()
            untrained = build(TrainSettings(network=network, seed=seed), tuple(few.x.shape[1:]), len(data.classes))
            found = ns.train(
                untrained, (data.train.x, data.train.y), method="joint", eps_x=recipe.eps_x, eps_w=recipe.eps_w,
                epochs=recipe.epochs, batch_size=recipe.batch_size, lr=recipe.lr, average=recipe.average, seed=seed,
            ).model  # fmt: skip
            seconds = time.process_time() - started
            areas = [
                ns.evaluate(
                    found, (few.x, few.y), eps_x=eps_x[::2], eps_w=radii, relative=relative, scope="dataset", attack="paper"
                ).auc
                for radii, relative in ((eps_w[::2], False), (tuple(np.linspace(0, 0.02, 6)), True))
            ]
            numbers = f"{recipe.eps_x:g} | {recipe.eps_w:g} | {recipe.lr:g} | {recipe.epochs} | {recipe.average or '-'} | {seed}"
            clean = 100 * accuracy(found, data.val)
            print(f"| {numbers} | {clean:.1f} | {areas[0]:.3f} | {areas[1]:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
