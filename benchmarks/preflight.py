"""preflight.py - what `--preflight` says that a run takes, against what the run takes, for twelve kinds of run.

Both in seconds of the processor, because other processes may be at work: those of workers count divided by their number.  With
--wall both are seconds of the clock, for a machine that is idle.  Exit code 1 if fewer than 9 of 10 are within a factor of 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from timing import machine

from nonsingular.evaluation.preflight import preflight
from nonsingular.network.calling import threads
from nonsingular.report import write
from nonsingular.runs.engine import Workplace
from nonsingular.runs.evaluate import evaluate_run
from nonsingular.runs.jobs import Attacked, Certified
from nonsingular.runs.train import train_run
from nonsingular.settings import CertifySettings, EvaluateSettings, Network, Recipe, TrainSettings, checked

WITHIN, SHARE = 2.0, 0.9
"""Factor of the truth, and share of the runs."""
SEVEN = {"eps_x": "0:0.12:7", "eps_w": "0:0.006:7"}
FIVE = {"eps_x": "0:0.1:5", "eps_w": "0:0.004:5"}
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dense, digits": ("digits-mlp", {"limit": 400}, 1),
    "dense, MNIST, certified by crown": ("mnist-mlp", SEVEN | {"limit": 200, "certify": "crown"}, 1),
    "dense, MNIST, one W' for all": ("mnist-mlp", SEVEN | {"limit": 1500, "scope": "dataset"}, 1),
    "dense, MNIST, one W' a batch": ("mnist-mlp", FIVE | {"limit": 384, "scope": "batch", "batch_size": 64}, 1),
    "convolution, digits": ("digits-conv", FIVE | {"limit": 16}, 1),
    "convolution, MNIST, one W' for all": ("mnist-conv", FIVE | {"limit": 300, "scope": "dataset"}, 1),
    "certify by crown, convolution, digits": ("digits-conv", FIVE | {"limit": 120, "method": "crown"}, 1),
    "certify by best, digits": ("digits-mlp", FIVE | {"limit": 60, "method": "best"}, 1),
    "certify by crown, with radii, MNIST": ("mnist-mlp", SEVEN | {"limit": 250, "method": "crown", "accuracy": "0.9,0.5"}, 1),
    "dense, digits, masked gradients": ("digits-mlp", FIVE | {"limit": 150, "masking": True}, 1),
    "the paper's attack, MNIST, one W' for all": (
        "mnist-mlp", {"eps_x": "0:0.1:3", "eps_w": "0:0.005:3", "limit": 400, "scope": "dataset", "attack": "paper"}, 1,
    ),
    "dense, digits, two workers": ("digits-mlp", {"limit": 500}, 2),
}  # fmt: skip
NETWORKS = {"mlp": Network(hidden=(64, 32)), "conv": Network(name="conv", hidden=(4, 8))}


def trained(name: str, folder: Path, data_dir: Path | None) -> Path:
    """A run directory of `train`, made on first use."""
    data, network = name.split("-")
    recipe = Recipe(method="standard", epochs=1 if data == "mnist" else 15)
    train_run(TrainSettings(data=data, data_dir=data_dir, network=NETWORKS[network], recipe=recipe), folder / name)
    return folder / name


def used() -> tuple[float, float]:
    """Processor seconds of this process and of those that it waited for; the latter apart."""
    t = os.times()
    return t.user + t.system, t.children_user + t.children_system


def tried(name: str, folder: Path, data_dir: Path | None, wall: bool) -> tuple[float, float, float, float]:
    """(predicted, its lower end, its upper end, true) seconds of one kind of run."""
    network, given, workers = KINDS[name]
    schema = CertifySettings if "method" in given else EvaluateSettings
    values = given | {"accuracy": given["accuracy"].split(",")} if "accuracy" in given else given
    settings = checked(schema, {"model": str(trained(network, folder, data_dir)), "data_dir": data_dir, **values})
    certify = isinstance(settings, CertifySettings)
    with threads(1):
        job = (Certified if certify else Attacked)(settings, quick=True)
        found = preflight(job.plan(workers), job.seen, [])
    started, (own, others) = time.perf_counter(), used()
    out = folder / "".join(c if c.isalnum() else "-" for c in name)
    write(evaluate_run(settings, out, Workplace(workers)), out)
    if wall:
        true = time.perf_counter() - started
    else:
        now, others_now = used()
        true = now - own + (others_now - others) / workers
    assert found.seconds is not None and found.interval is not None
    return found.seconds, *found.interval, true


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's files (default: the cache, else a download into it)")
    parser.add_argument("--only", help="kinds that have this in their names")
    parser.add_argument("--wall", action="store_true", help="seconds of the clock")
    given = parser.parse_args()
    if not given.wall:
        time.perf_counter = time.process_time
    print(machine())
    unit = f"seconds of the {'clock' if given.wall else 'processor'}"
    print(f"{unit:44} predicted (    from       to)     true  true/predicted")
    ratios: list[float] = []
    with TemporaryDirectory() as folder:
        for name in KINDS:
            if given.only and given.only not in name:
                continue
            predicted, low, high, true = tried(name, Path(folder), given.data_dir, given.wall)
            ratios.append(true / predicted)
            inside = "" if low <= true <= high else "  outside the interval"
            print(f"{name:44} {predicted:9.1f} ({low:8.1f} {high:8.1f}) {true:8.1f} {ratios[-1]:15.2f}{inside}", flush=True)
    good = sum(1 / WITHIN <= r <= WITHIN for r in ratios)
    print(f"within a factor of {WITHIN:g}: {good} of {len(ratios)}; load {os.getloadavg()[0]:.1f}")
    return int(good < SHARE * len(ratios))


if __name__ == "__main__":
    sys.exit(main())
