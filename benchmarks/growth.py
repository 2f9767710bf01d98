"""growth.py - time and peak memory of one cell against the number of examples, and time against that of parameters.

Each number comes from a fresh process with one thread: what one run leaves behind does not help the next.  Memory is what the
process holds at its peak beyond model and data.  Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from math import log
from statistics import linear_regression, median

import torch
from timing import machine, options, peak_memory

from nonsingular.data.datasets import load
from nonsingular.evaluation.attacked import evaluate
from nonsingular.models.architectures import mlp

EXAMPLES = (1000, 2000, 4000, 8000)
WIDTHS = (1, 2, 4, 8)


def one(data_dir: str | None, scope: str, examples: int, times: int) -> tuple[float, int, int]:
    """Seconds, bytes at the peak and parameters: one cell, the default network with every width `times` as large."""
    test = load("mnist", data_dir).test
    torch.manual_seed(0)
    model = mlp((1, 28, 28), 10, hidden=[128 * times, 64 * times, 32 * times]).eval()
    x, y = test.x[:examples].clone(), test.y[:examples].clone()
    evaluate(model, (x[:2], y[:2]), eps_x=[0.05], eps_w=[0.005], scope=scope)  # what is loaded once
    seconds, held = peak_memory(lambda: evaluate(model, (x, y), eps_x=[0.05], eps_w=[0.005], scope=scope))
    return seconds, held, sum(p.numel() for p in model.parameters())


def fresh(args: object, examples: int, times: int) -> tuple[float, int, int]:
    call = [sys.executable, __file__, "--one", json.dumps([args.data_dir, args.scope, examples, times])]
    return json.loads(subprocess.run(call, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    parser = options(__doc__, repeat=3)
    parser.add_argument("--scope", default="sample", help="default: %(default)s")
    parser.add_argument("--one", help="used by this script for its processes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(one(*json.loads(args.one))))
        return
    print(f"{machine()}\none cell in scope {args.scope}, median of {args.repeat} interleaved rounds of fresh processes")
    points = [(n, 1) for n in EXAMPLES] + [(EXAMPLES[0], k) for k in WIDTHS]
    rounds = [[fresh(args, *point) for point in points] for _ in range(args.repeat)]
    seconds, held, parameters = ([median(found[i][k] for found in rounds) for i in range(len(points))] for k in range(3))
    print("\nexamples  parameters   seconds   peak MB")
    for (n, _), s, h, p in zip(points, seconds, held, parameters, strict=True):
        print(f"{n:8} {p:11.0f} {s:9.2f} {h / 2**20:9.1f}")
    many = len(EXAMPLES)
    print(f"\nslope of log time against log examples: {slope(EXAMPLES, seconds[:many]):.3f}")
    print(f"slope of log time against log parameters: {slope(parameters[many:], seconds[many:]):.3f}")
    print(f"peak at {EXAMPLES[-1]} examples over peak at {EXAMPLES[0]}: {held[many - 1] / held[0]:.2f}")
    mb = linear_regression(EXAMPLES, held[:many]).slope
    print(f"peak grows by {mb / 2**10:.2f} KB an example, of which the perturbed input is {784 * 4 / 2**10:.2f}")


def slope(across: object, up: object) -> float:
    return linear_regression([log(v) for v in across], [log(v) for v in up]).slope


if __name__ == "__main__":
    main()
