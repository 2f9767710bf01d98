"""Certified accuracy of every model of a reproduction, by the repaired Theorem 1.

python docs/reproduction/certify.py runs/reproduce-mnist          # seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nonsingular.config import ReproduceSettings, checked, read_config
from nonsingular.data import load
from nonsingular.evaluation import certify
from nonsingular.experiment import CONFIG, load_run
from nonsingular.threat import JointBall

RADII = ((0.001, 0.0001), (0.002, 0.0002), (0.005, 0.0005), (0.01, 0.001))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of 'nonsingular reproduce'")
    run: Path = parser.parse_args().run
    settings = checked(ReproduceSettings, read_config(run / CONFIG))
    data = load(settings.data, settings.data_dir)
    test = data.test.take(settings.limit)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    print(f"Certified accuracy in %, {len(test)} test examples, mean over {settings.seeds} seeds, at (ε_x, ε_w)\n")
    print("| model | " + " | ".join(f"({x:g}, {w:g})" for x, w in RADII) + " |\n|---|" + "--:|" * len(RADII))
    for name in settings.recipes:
        models = [load_run(run / "models" / f"{name}-seed{seed}")[0] for seed in seeds]
        found = [
            sum(certify(m, test.x, test.y, JointBall(x, w, data.domain)).accuracy for m in models) / len(models) for x, w in RADII
        ]
        print(f"| {name} | " + " | ".join(f"{100 * a:.1f}" for a in found) + " |")


if __name__ == "__main__":
    main()
