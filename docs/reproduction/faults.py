"""faults.py - accuracy of trained networks against bit errors and flipped bits, with and without adversarial inputs.

    python docs/reproduction/faults.py --data-dir DIR --out runs/faults                # 6 networks, 50 chips
    python docs/reproduction/faults.py runs/mine runs/other --out runs/faults-mine     # run directories of `train`, or zoo:NAME

By default the networks of the zoo that were trained on MNIST, and AT + beta, which is trained first.  Words of int8.  Bit errors:
`ns.campaign`, inputs attacked with each chip's fault known.  Flips: `ns.flip_attack` on the first --first examples, chosen to
lower the accuracy on these.  Draws OUT/faults.png and writes OUT/table.md; chips that OUT has are not simulated again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import nonsingular as ns
from nonsingular.results.campaign import Campaign
from nonsingular.runs.jobs import dataset, load_model
from nonsingular.runs.presets import REPRODUCTIONS
from nonsingular.runs.train import train_run
from nonsingular.settings import TrainSettings

ZOO = ("standard", "at", "joint", "recommended", "recommended-certified")
COLOURS = ("#444444", "#1f4e9c", "#6a9a2d", "#c8500a", "#8e3a8a", "#0f8a8a")
Found = tuple[str, Campaign, NDArray[np.float64]]


def models(args: argparse.Namespace) -> list[str]:
    """What is measured; AT + beta is trained where it is not there."""
    if args.models:
        return [*args.models]
    run, preset = args.out / "at-beta", REPRODUCTIONS["mnist"]
    recipe = preset.recipes["at-beta-2"]
    train_run(TrainSettings(data="mnist", data_dir=args.data_dir, network=preset.network, recipe=recipe), run)
    return [*(f"zoo:mnist/{name}" for name in ZOO), str(run)]


def measured(name: str, args: argparse.Namespace) -> Found:
    """Accuracies over error rates, and after each flip at every input radius."""
    model, trained = load_model(name, None)
    if trained is None:
        raise SystemExit(f"error: {name} is no run directory of train and no network of the zoo, so its data are not known")
    test = dataset(trained.data, args.data_dir).test.take(args.limit)
    log = args.out / f"{Path(name).name}.jsonl"
    fault = ns.BitErrors(storage=ns.UniformRounding(8))
    found = ns.campaign(model, (test.x, test.y), fault=fault, rates=args.rates, chips=args.chips, eps_x=args.eps_x, log=log)
    few = test.take(args.first)
    flips = [ns.flip_attack(model, few.x, few.y, flips=args.flips, eps_x=radius).accuracy for radius in args.eps_x]
    padded = np.array([[*one, *one[-1:] * (1 + args.flips - len(one))] for one in flips])
    # what fewer flips, or flips beside unmoved inputs, reach, more reach as well
    return Path(name).name, found, np.minimum.accumulate(np.minimum.accumulate(padded, 0), 1)


def table(found: Sequence[Found], args: argparse.Namespace) -> str:
    """One row for each network and input radius: means and worst of the chips, and accuracies after flips."""
    after = sorted({1, args.flips // 4, args.flips // 2, args.flips})
    head = ["network", "ε_x", *(f"p = {rate:g}" for rate in args.rates), *(f"flips: {k}" for k in after)]
    rows: list[list[str]] = [head, ["---", *["--:"] * (len(head) - 1)]]
    for name, chips, flips in found:
        for j, radius in enumerate(args.eps_x):
            means, worst = chips.mean()[:, j], chips.worst()[:, j]
            errors = [f"{100 * m:.1f} ({100 * w:.1f})" for m, w in zip(means, worst, strict=True)]
            left = [f"{100 * flips[j, k]:.1f}" for k in after]
            rows.append([name, f"{radius:g}", *errors, *left])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def drawn(found: Sequence[Found], args: argparse.Namespace, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    shown = [rate or args.rates[1] / 10 for rate in args.rates]
    for (name, chips, flips), colour in zip(found, COLOURS, strict=False):
        for j in range(len(args.eps_x)):
            mean, spread = 100 * chips.mean()[:, j], 100 * chips.spread()[:, j]
            line = {"color": colour, "ls": ("-", "--", ":")[j % 3], "label": name if j == 0 else None}
            axes[0].plot(shown, mean, **line)
            axes[0].fill_between(shown, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
            axes[1].plot(100 * flips[j], **line)
    axes[0].set(xscale="log", xlabel="bit error rate (the first point: none)", ylabel="accuracy, %", ylim=(0, 100))
    axes[1].set(xlabel="flipped bits, chosen against it")
    axes[0].legend(title="dashed: inputs within " + ", ".join(f"{radius:g}" for radius in args.eps_x[1:]), fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    parser.add_argument("--eps-x", nargs="+", type=float, default=[0.0, 0.05])
    parser.add_argument("--chips", type=int, default=50)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--limit", type=int, default=500, help="test examples")
    parser.add_argument("--first", type=int, default=256, help="of these, against which flips are chosen")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = [measured(name, args) for name in models(args)]
    (args.out / "table.md").write_text(table(found, args))
    drawn(found, args, args.out / "faults.png")
    print(table(found, args))


if __name__ == "__main__":
    main()
