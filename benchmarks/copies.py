"""What one evaluation with certificates costs, and how often it copies and reads the model: this tree against another.

    python benchmarks/copies.py --before ../older/src      # the `src` folder of another checkout; interleaved

No target: information only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PIECE = """
import copy, json, time, torch, nonsingular as ns
from torch import fx, nn
torch.manual_seed(0); torch.set_num_threads(1)
data = ns.load("digits"); x, y = data.test.x[:100], data.test.y[:100]
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False)).eval()
optimiser = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(200):
    optimiser.zero_grad(); nn.functional.cross_entropy(model(data.train.x), data.train.y).backward(); optimiser.step()
seen = {"copies": 0, "traces": 0}
deep, trace = copy.deepcopy, fx.Tracer.trace
def deepcopy(value, *rest):
    seen["copies"] += isinstance(value, nn.Module)
    return deep(value, *rest)
def traced(*args, **kwargs):
    seen["traces"] += 1
    return trace(*args, **kwargs)
copy.deepcopy, fx.Tracer.trace = deepcopy, traced
started = time.process_time()
found = ns.evaluate(model, (x, y), eps_x=0.1, eps_w=0.05, scope="sample", certify="crown")
print(json.dumps({"seconds": time.process_time() - started, "auc": found.auc, **seen}))
"""


def once(source: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PIECE], env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sources = {"before": options.before, "now": Path(__file__).parents[1] / "src"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    for turn in range(options.rounds + 1):
        for name, source in sources.items():
            measured = once(source)
            if turn:  # the first round is not counted
                found[name].append(measured)
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        print(f"{name:7} {seconds:6.2f} s of the processor  copies {runs[0]['copies']:4}  traces {runs[0]['traces']:4}")
        print(f"        AUC {runs[0]['auc']:.4f}")
    ratio = statistics.median(n["seconds"] / b["seconds"] for n, b in zip(found["now"], found["before"], strict=True))
    print(f"now / before: {ratio:.2f}")


if __name__ == "__main__":
    main()
