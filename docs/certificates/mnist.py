"""mnist.py - what is proven of the networks of the reproduction: by each bound, by branch and bound, and over the grid.

    python docs/certificates/mnist.py runs/reproduce-mnist --out docs/certificates

Writes mnist.json (every number), mnist.md (the tables) and sandwich.png (attacked and certified surfaces in one picture).
RUN is the folder of `nonsingular reproduce --data mnist --seeds 3`; every model and seed in it is taken.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nonsingular.certificates.certify import certify, decide
from nonsingular.evaluation.attacked import attack_cell, evaluate
from nonsingular.evaluation.problem import Case, Method
from nonsingular.models.loading import load_run
from nonsingular.report.figure import contours
from nonsingular.results.surface import Surface
from nonsingular.runs.jobs import dataset
from nonsingular.runs.presets import TITLES
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid

CELLS = ((0.01, 0.0005), (0.01, 0.001), (0.02, 0.001), (0.05, 0.001), (0.05, 0.003))
BOUNDS = ("theorem1", "interval", "crown-ibp", "crown", "alpha-crown", "branch-and-bound")
GRID = {"eps_x": [0.01 * i for i in range(11)], "eps_w": [0.0005 * i for i in range(11)]}


def examples(run: Path, limit: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    model, settings = load_run(run)
    split = dataset(settings.data, settings.data_dir).test.take(limit)
    return model, split.x, split.y


def by_bound(run: Path, limit: int) -> list[dict[str, Any]]:
    """Certified accuracy and CPU seconds per example of every bound at the five cells."""
    model, x, y = examples(run, limit)
    rows: list[dict[str, Any]] = []
    for cell in CELLS:
        for bound in BOUNDS:
            started = time.process_time()
            accuracy = certify(model, x, y, JointBall(*cell), bound=bound).accuracy
            rows.append(
                {"cell": cell, "bound": bound, "certified": accuracy, "seconds": (time.process_time() - started) / len(x)}
            )
    return rows


def verdicts(run: Path, limit: int) -> list[dict[str, Any]]:
    """Branch and bound at the first three cells: how many images are verified, falsified, and neither; and attacks alone."""
    model, x, y = examples(run, limit)
    case, grid = Case.of(model, x, y), Grid((0.0,), (0.0,), JointBall(1.0, 1.0))
    rows: list[dict[str, Any]] = []
    for cell in CELLS[:3]:
        started = time.process_time()
        found = decide(model, x, y, JointBall(*cell))
        count = Counter(found.status)
        rows.append({
            "cell": cell, "n": len(x), **{s: count[s] for s in ("verified", "falsified", "timeout")},
            "seconds": (time.process_time() - started) / len(x), "most_parts": int(found.parts.max()),
            "attacked": {name: int(attack_cell(case, grid, Method.of(name), cell).correct.sum()) for name in ("neuron", "apgd")},
        })  # fmt: skip
    return rows


def grid(run: Path, limit: int) -> dict[str, Any]:
    """Attacked surface in scope sample with its certified one."""
    model, x, y = examples(run, limit)
    return evaluate(model, (x, y), certify="crown", attack="neuron", **GRID).to_dict()


def work(task: str, run: str, limit: int) -> Any:
    torch.set_num_threads(1)
    return {"bounds": by_bound, "verdicts": verdicts, "grid": grid}[task](Path(run), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/certificates"))
    parser.add_argument("--limit", type=int, default=500, help="test images for the verdicts")
    parser.add_argument("--table", type=int, default=60, help="test images for the table of bounds and the surfaces")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--only", choices=("bounds", "verdicts", "grid"), help="do this part again; the others are read from mnist.json"
    )
    args = parser.parse_args()
    limits = {"bounds": args.table, "verdicts": args.limit, "grid": args.table}
    runs = sorted((args.run / "models").iterdir())
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    if args.only:
        kept = json.loads((args.out / "mnist.json").read_text())
        found |= {task: kept[task] for task in limits if task != args.only}
        limits = kept["limits"] | {args.only: limits[args.only]}
    tasks = [args.only] if args.only else list(limits)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(work, task, str(run), limits[task]): (task, run.name) for task in tasks for run in runs}
        for job in as_completed(jobs):
            task, name = jobs[job]
            found[task][name] = job.result()
            print(f"{task} {name}", flush=True)
    results = {"limits": limits, "cells": CELLS, **{t: dict(sorted(f.items())) for t, f in found.items()}}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mnist.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "mnist.md").write_text(tables(results))
    contours({TITLES[m]: s for m, s in surfaces(results).items()}, path=args.out / "sandwich.png")


def surfaces(results: dict[str, Any]) -> dict[str, list[Surface]]:
    """Model -> the surface of each seed, in the order of the reproduction."""
    return {m: [Surface.from_dict(s) for name, s in results["grid"].items() if name.rpartition("-seed")[0] == m] for m in TITLES}


def tables(results: dict[str, Any]) -> str:
    """The numbers as Markdown: means over the seeds."""
    lines = ["# Certificates on MNIST: the tables", "", "## Certified accuracy by bound (%)", ""]
    for k, (eps_x, eps_w) in enumerate(CELLS):
        lines += [
            f"At (ε_x, ε_w) = ({eps_x:g}, {eps_w:g}):",
            "",
            "| model | " + " | ".join(BOUNDS) + " |",
            "|---|" + "--:|" * len(BOUNDS),
        ]
        for model, title in TITLES.items():
            seeds = [rows for name, rows in results["bounds"].items() if name.rpartition("-seed")[0] == model]
            at = [[r for r in rows if tuple(r["cell"]) == CELLS[k]] for rows in seeds]
            means = [100 * fmean(rows[j]["certified"] for rows in at) for j in range(len(BOUNDS))]
            lines.append(f"| {title} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
        lines.append("")
    every = [r for rows in results["bounds"].values() for r in rows]
    lines += [
        "## CPU seconds per example, mean over all networks",
        "",
        "| (ε_x, ε_w) | " + " | ".join(BOUNDS) + " |",
        "|---|" + "--:|" * len(BOUNDS),
    ]
    for cell in CELLS:
        times = [fmean(r["seconds"] for r in every if tuple(r["cell"]) == cell and r["bound"] == b) for b in BOUNDS]
        lines.append(f"| ({cell[0]:g}, {cell[1]:g}) | " + " | ".join(f"{t:.4f}" for t in times) + " |")
    lines += [
        "",
        "## Verdicts",
        "",
        "| model | (ε_x, ε_w) | verified % | not falsified % | after `apgd` alone % | after `neuron` alone % "
        "| timeouts | images | CPU seconds per image |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for model, title in TITLES.items():
        seeds = [rows for name, rows in results["verdicts"].items() if name.rpartition("-seed")[0] == model]
        for k in range(3):
            rows = [s[k] for s in seeds]
            n, late = sum(r["n"] for r in rows), sum(r["timeout"] for r in rows)
            held = sum(r["verified"] for r in rows)
            eps_x, eps_w = CELLS[k]
            alone = {name: 100 * sum(r["attacked"][name] for r in rows) / n for name in rows[0]["attacked"]}
            lines.append(
                f"| {title} | ({eps_x:g}, {eps_w:g}) | {100 * held / n:.2f} | {100 * (held + late) / n:.2f} "
                f"| {alone['apgd']:.2f} | {alone['neuron']:.2f} | {late} | {n} | {fmean(r['seconds'] for r in rows):.3f} |"
            )
    lines += ["", "## AUC of the surfaces", "", "| model | attacked | certified |", "|---|--:|--:|"]
    for model, seeds in surfaces(results).items():
        lines.append(f"| {TITLES[model]} | {fmean(s.auc for s in seeds):.3f} | {fmean(s.certified.auc for s in seeds):.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
