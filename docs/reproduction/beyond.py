"""What the paper does not ask of its models: each example with its own W' (scope `sample`), attacked and certified.

    python docs/reproduction/beyond.py runs/reproduce-mnist          # minutes

Attacked: AUC under `neuron` on every second radius of the run's grid.  Certified: accuracy at three points, by the repaired
Theorem 1 and by CROWN.  300 test examples, a seeded subset; means over the seeds of the run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nonsingular.certificates.certify import certify
from nonsingular.data.datasets import load
from nonsingular.evaluation.attacked import evaluate
from nonsingular.models.loading import load_run
from nonsingular.results.surface import CONFIG
from nonsingular.runs.engine import engine
from nonsingular.settings import ReproduceSettings, checked, read_config
from nonsingular.threat.ball import JointBall

RADII = ((0.002, 0.0002), (0.005, 0.0005), (0.01, 0.001))
BOUNDS = ("theorem1", "crown")
EXAMPLES = 300


def measure(run: Path, name: str, seed: int) -> list[float]:
    """AUC, then certified accuracies: bound by bound, radius by radius."""
    settings = checked(ReproduceSettings, read_config(run / CONFIG))
    data = load(settings.data, settings.data_dir)
    test = data.test.take(EXAMPLES)
    model, _ = load_run(run / "models" / f"{name}-seed{seed}")
    surface = evaluate(model, (test.x, test.y), eps_x=settings.eps_x[::2], eps_w=settings.eps_w[::2], attack="neuron")
    balls = [JointBall(x, w, data.domain) for x, w in RADII]
    return [surface.auc, *(certify(model, test.x, test.y, ball, bound=bound).accuracy for bound in BOUNDS for ball in balls)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of 'nonsingular reproduce'")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    settings = checked(ReproduceSettings, read_config(args.run / CONFIG))
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    head = [f"{bound} at ({x:g}, {w:g})" for bound in BOUNDS for x, w in RADII]
    print("| model | AUC, attack neuron | " + " | ".join(head) + " |\n|---|--:|" + "--:|" * len(head))
    with engine("local", max(2, args.workers)) as pool:
        assert pool is not None
        jobs = {name: [pool.submit(measure, args.run, name, seed) for seed in seeds] for name in settings.recipes}
        for name, found in jobs.items():
            rows = [job.result() for job in found]
            auc, *certified = (sum(column) / len(rows) for column in zip(*rows, strict=True))
            print(f"| {name} | {auc:.3f} | " + " | ".join(f"{100 * a:.1f}" for a in certified) + " |", flush=True)


if __name__ == "__main__":
    main()
