"""measure.py - everything that a row of the leaderboard says of one network, as run directories of the command line.

    python docs/leaderboard/measure.py zoo:mnist/joint zoo:mnist/at --data-dir DIR --out runs/leaderboard

MODEL is anything that `nonsingular evaluate` takes.  Each of its run directories holds its settings, so that `nonsingular verify`
confirms it and the command that is printed makes it again; what is finished is not run again.  flips.json holds the bits that
flip_attack flips until accuracy is at most that of guessing (5 points above 1 / classes), at 8 bits, on the first 256 examples.
A network of your own: the same command, with file.py:function, --weights and --data.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nonsingular as ns
from nonsingular.runs.jobs import dataset, load_model

PARTS: dict[str, tuple[str, ...]] = {
    "dataset": ("--scope", "dataset", "--limit", "1000"),
    "relative": ("--scope", "dataset", "--limit", "1000", "--relative", "--eps-w", "0:0.02:11"),
    "sample": ("--scope", "sample", "--certify", "crown", "--limit", "200"),
    "int8": ("--fault", "bit-error", "--stored", "int8", "--rates", "0,0.001,0.01", "--chips", "20", "--limit", "1000"),
    "int4": ("--fault", "bit-error", "--stored", "int4", "--rates", "0,0.001,0.01", "--chips", "20", "--limit", "1000"),
}
FLIPS, FIRST, ABOVE = 100, 256, 0.05


def flips_to_chance(model: str, weights: Path | None, data: str | None, data_dir: Path | None) -> dict[str, Any]:
    network, trained = load_model(model, weights)
    split = dataset(data or (trained.data if trained else ""), data_dir).test.take(FIRST)
    chance = 1 / len(dataset(data or (trained.data if trained else ""), data_dir).classes) + ABOVE
    found = ns.flip_attack(network, split.x, split.y, flips=FLIPS, goal=chance)
    reached = found.accuracy[-1] <= chance
    return {"flips": len(found.flips) if reached else None, "most": FLIPS, "goal": chance, "accuracy": list(found.accuracy)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "flips"], default=[*PARTS, "flips"])
    args = parser.parse_args()
    given = {"--weights": args.weights, "--data": args.data, "--data-dir": args.data_dir}
    common = [str(v) for flag, value in given.items() if value is not None for v in (flag, value)]
    for model in args.models:
        folder = args.out / re.sub(r"[^A-Za-z0-9.-]+", "-", model.removeprefix("zoo:"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps({"model": model}))
        for part in (p for p in args.parts if p != "flips"):
            command = ["evaluate", model, *common, *PARTS[part], "--out", str(folder / part)]
            print("nonsingular", *command, flush=True)
            subprocess.run([sys.executable, "-m", "nonsingular.cli", *command], check=True, stdout=subprocess.DEVNULL)
        if "flips" in args.parts and not (folder / "flips.json").exists():
            found = flips_to_chance(model, args.weights, args.data, args.data_dir)
            (folder / "flips.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
