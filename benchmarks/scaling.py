"""scaling.py - cells of a grid per second with more and more workers, in local processes and on Ray, against linear growth.

    python benchmarks/scaling.py --data-dir FOLDER --row --examples 10000 --points 6 --most 2    # cells that workers divide

Each run is `evaluate_run` on the default network of MNIST, into a folder of its own.  The rate is that of the second half of the
cells: then all workers have started.  How long that took is shown beside.  All runs must find the same accuracies.
--row: a single row of cells, of which no two can be attacked at once, so that all workers do each of them together.
"""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from timing import machine, options

from nonsingular.runs.engine import Workplace
from nonsingular.runs.evaluate import Told, evaluate_run
from nonsingular.runs.presets import training_defaults
from nonsingular.runs.train import train_run
from nonsingular.settings import EvaluateSettings, Network, TrainSettings, checked

CONTENDERS = [("local", 1), ("local", 2), ("local", 4), ("ray", 1), ("ray", 2), ("ray", 4)]


class Run(NamedTuple):
    first: float
    """Seconds until the first cell was finished."""
    rate: float
    """Cells per second in the second half."""
    accuracy: list[list[float]]


def run(settings: EvaluateSettings, out: Path, engine: str, workers: int) -> Run:
    finished: list[float] = []
    started = time.perf_counter()

    def report(what: str, n: int) -> None:
        if what == "cells":
            finished.append(time.perf_counter())

    results = evaluate_run(settings, out, Workplace(workers, engine), Told(report))
    (model,) = results["models"].values()
    half = len(finished) // 2
    rate = (len(finished) - half) / (finished[-1] - finished[half - 1])
    return Run(finished[0] - started, rate, model["surfaces"][0]["accuracy"])


def main() -> None:
    parser = options(__doc__, examples=1000, points=9, repeat=3)
    parser.add_argument("--scope", default="dataset", help="default: %(default)s")
    parser.add_argument("--data", default="mnist", help="default: %(default)s")
    parser.add_argument("--row", action="store_true", help="a single row of cells")
    parser.add_argument("--most", type=int, default=4, help="workers at most; default: %(default)s")
    parser.add_argument("--engines", default="local,ray", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    contenders = [
        c for c in CONTENDERS if c[0] in args.engines.split(",") and c[1] <= args.most and (c[0] == "local" or find_spec("ray"))
    ]
    runs: dict[tuple[str, int], list[Run]] = {c: [] for c in contenders}
    with tempfile.TemporaryDirectory() as folder:
        net = Path(folder, "net")
        defaults = training_defaults(args.data, "standard") | {"data": args.data, "data_dir": args.data_dir}
        train_run(checked(TrainSettings, defaults | {"network": Network()}), net)
        grid = {"eps_x": f"0:0.1:{args.points}", "eps_w": "0.05" if args.row else f"0:0.05:{args.points}"}
        settings = checked(EvaluateSettings, {"model": str(net), "limit": args.examples, "scope": args.scope, **grid})
        for i in range(args.repeat):
            for engine, workers in contenders:  # interleaved: what disturbs one disturbs all
                runs[engine, workers].append(run(settings, Path(folder, f"{engine}-{workers}-{i}"), engine, workers))
    assert len({str(r.accuracy) for found in runs.values() for r in found}) == 1, "the engines differ"
    cells = args.points ** (1 if args.row else 2)
    print(f"\n{args.data}, {args.examples} examples, {cells} cells, scope {args.scope}, median of {args.repeat} interleaved runs")
    print("engine  workers   cells/s   of linear   first cell after, s")
    one = median(r.rate for r in runs["local", 1])
    for (engine, workers), found in runs.items():
        rate, first = median(r.rate for r in found), median(r.first for r in found)
        print(f"{engine:6} {workers:8} {rate:9.2f} {rate / (workers * one):11.3f} {first:21.2f}")


if __name__ == "__main__":
    main()
