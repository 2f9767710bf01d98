"""measure.py - everything that a row of the leaderboard says of one network, as run directories of the command line.

    python docs/leaderboard/measure.py zoo:mnist/joint zoo:mnist/at --data-dir DIR --out runs/leaderboard

MODEL is anything that `nonsingular evaluate` takes, or a submission: a .yaml file with `name`, `model` (file.py:function, an ONNX
file, ...), `data` and, where they apply, `weights`, `by` (who) and `about` (how it was trained); files lie beside it.
Each run directory holds its settings, so that `nonsingular verify` confirms it, which --verify does for all of them, and the
command that is printed makes it again; what is finished is not run again.  flips.json holds the bits that flip_attack flips until
accuracy is at most that of guessing (5 points above 1 / classes), at 8 bits, on the first 256 examples.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

from torch import nn

import nonsingular as ns
from nonsingular.models.loading import is_code
from nonsingular.runs.jobs import dataset, load_model
from nonsingular.runs.presets import GRIDS
from nonsingular.settings import Settings, checked
from nonsingular.untrusted import read_config

PARTS: dict[str, tuple[str, ...]] = {
    "dataset": ("--scope", "dataset", "--limit", "1000"),
    "relative": ("--scope", "dataset", "--limit", "1000", "--relative", "--eps-w", "0:0.02:11"),
    "sample": ("--scope", "sample", "--certify", "crown", "--limit", "100"),
    "int8": ("--fault", "bit-error", "--stored", "int8", "--rates", "0,0.001,0.01", "--chips", "20", "--limit", "1000"),
    "int4": ("--fault", "bit-error", "--stored", "int4", "--rates", "0,0.001,0.01", "--chips", "20", "--limit", "1000"),
}
FLIPS, FIRST, ABOVE = 100, 256, 0.05


class Submission(Settings):
    """One network of the board.  Files are named from the folder of its .yaml file."""

    name: str
    model: str
    data: str | None = None
    weights: Path | None = None
    by: str = ""
    about: str = ""


def submission(given: str, args: argparse.Namespace) -> tuple[Submission, Path]:
    """What a MODEL stands for, and the folder of its files."""
    if Path(given).suffix in (".yaml", ".yml"):
        return checked(Submission, read_config(Path(given))), Path(given).parent.resolve()
    return Submission(name=given, model=given, data=args.data, weights=args.weights), Path.cwd()


def loaded(one: Submission) -> tuple[nn.Module, str]:
    """The network, and the name of its data set: as the submission says, or as it was trained."""
    network, trained = load_model(one.model, one.weights)
    return network, one.data or (trained.data if trained else "")


def flips_to_chance(one: Submission, data_dir: Path | None) -> dict[str, Any]:
    network, name = loaded(one)
    data = dataset(name, data_dir)
    few, chance = data.test.take(FIRST), 1 / len(data.classes) + ABOVE
    found = ns.flip_attack(network, few.x, few.y, flips=FLIPS, goal=chance)
    reached = found.accuracy[-1] <= chance
    return {"flips": len(found.flips) if reached else None, "most": FLIPS, "goal": chance, "accuracy": list(found.accuracy)}


def command(*words: object) -> None:
    """Runs the command line, and ends with its code where it fails."""
    said = [str(word) for word in words]
    print("nonsingular", *said, flush=True)
    if code := subprocess.run([sys.executable, "-m", "nonsingular.cli", *said], stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(code)


def measure(one: Submission, out: Path, args: argparse.Namespace) -> None:
    folder = out / re.sub(r"[^A-Za-z0-9.-]+", "-", one.name.removeprefix("zoo:"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps({"model": one.name, "by": one.by, "about": one.about}))
    given = {"--weights": one.weights, "--data": one.data, "--data-dir": args.data_dir}
    common = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    for part in (p for p in args.parts if p != "flips"):
        command("evaluate", one.model, *common, *PARTS[part], *_coarse(one, part), "--out", folder / part)
        if args.verify:
            command("verify", folder / part, *(("--model", one.model) if is_code(one.model) else ()))
    if "flips" in args.parts and not (folder / "flips.json").exists():
        (folder / "flips.json").write_text(json.dumps(flips_to_chance(one, args.data_dir)))


def _coarse(one: Submission, part: str) -> list[str]:
    """Every second radius of the grid of the data set, where each example is attacked by itself."""
    axes = zip(("--eps-x", "--eps-w"), GRIDS.get(loaded(one)[1], ()), strict=False) if part == "sample" else ()
    return [word for flag, axis in axes for word in (flag, ",".join(f"{r:g}" for r in axis[::2]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "flips"], default=[*PARTS, "flips"])
    parser.add_argument("--verify", action="store_true", help="confirm every run directory, as `nonsingular verify` does")
    args = parser.parse_args()
    args.data_dir, out = args.data_dir and args.data_dir.resolve(), args.out.resolve()
    for given in args.models:
        try:
            one, folder = submission(given, args)
            with chdir(folder):
                measure(one, out, args)
        except ns.InvalidInput as e:
            raise SystemExit(f"error: {given}: {e}") from None


if __name__ == "__main__":
    main()
