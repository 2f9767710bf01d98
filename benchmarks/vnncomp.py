"""vnncomp.py - decides the instances of a VNN-COMP benchmark, and holds the verdicts against those that other tools published.

    git clone https://github.com/stanleybak/vnncomp2021 && git clone https://github.com/stanleybak/vnncomp2021_results
    python benchmarks/vnncomp.py vnncomp2021/benchmarks/mnistfc --results vnncomp2021_results/results_csv
    python benchmarks/vnncomp.py FOLDER --only 256x4 --every 3 --seconds 60 --out record.jsonl     # a part of it, kept

FOLDER holds one *instances.csv (network, property, seconds) and what that names.  Each instance has a process of its own, one
thread, and the CPU time of its line (at most --seconds), from reading the files to the verdict: CPU time is what a quiet core
would take, and a loaded machine does not change it.  A counterexample is repeated by onnxruntime in float32, if it is installed.

Prints a line for each instance, and for each network how many are verified, falsified and open, beside every tool of --results
on the same instances.  Exit code 1 if a verdict contradicts that of any tool, or onnxruntime does not find a counterexample.
--without RPM leaves a tool out: the organisers dropped its results on mnistfc for a fault in reading the properties.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import resource
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

import nonsingular as ns

SAID = {
    **dict.fromkeys(("holds", "unsat", "verified"), "verified"),
    **dict.fromkeys(("violated", "sat", "falsified"), "falsified"),
}
"""Verdicts as tools write them; everything else is open."""
MANY = 2**40


def instances(folder: Path) -> list[tuple[str, str, float]]:
    (file,) = folder.glob("*instances.csv")
    with file.open(newline="") as lines:
        return [(net, spec, float(seconds)) for net, spec, seconds, *_ in csv.reader(lines)]


def published(folder: Path, without: list[str]) -> dict[tuple[str, str], dict[str, str]]:
    """(network, property), by the names of their files -> tool -> verdict."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for file in (f for f in sorted(folder.glob("*.csv")) if f.stem not in without):
        with file.open(newline="") as lines:
            for row in csv.reader(lines):
                if len(row) >= 5:
                    found[Path(row[1]).name, Path(row[2]).name][file.stem] = SAID.get(row[4].strip().lower(), "open")
    return found


def by_onnxruntime(net: Path, asked: ns.Property, x: torch.Tensor) -> bool | None:
    """Whether the outputs of onnxruntime are unsafe, too; None if it is not installed."""
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    running = ort.InferenceSession(str(net), options, providers=["CPUExecutionProvider"])
    given = running.get_inputs()[0]
    shape = [n if isinstance(n, int) and n > 0 else 1 for n in given.shape]
    y = running.run(None, {given.name: x.reshape(shape).float().numpy()})[0]
    return not asked.holds_at(torch.from_numpy(y).double().reshape(-1))


def decided(net: Path, spec: Path, limit: float, eps_w: float, sending: Any) -> None:
    """In a process of its own: sends what is found."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        model = ns.load_model(net)
        asked = ns.load_property(spec, model.input_shape)  # type: ignore[arg-type]
        network = asked.on(model)
        found = ns.decide(network, asked.x, asked.y, asked.ball(eps_w, relative=True), attack="apgd", parts=MANY)
    except ns.InvalidInput as e:
        sending.send({"verdict": "refused", "why": str(e)})
        return
    spent = time.process_time() - started
    (status,) = found.status
    record: dict[str, Any] = {"verdict": status, "cpu": round(spent, 2), "parts": int(found.parts)}
    if status == "falsified" and not eps_w:
        point = asked.in_float32(found.perturbation)
        point = point if not asked.holds_at(asked.outputs(network, point)) else found.perturbation
        record |= {"onnxruntime": by_onnxruntime(net, asked, point.x), "margin": found.upper.item()}
    sending.send(record)


def decide(net: Path, spec: Path, limit: float, eps_w: float) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")  # torch is imported once
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=decided, args=(net, spec, limit, eps_w, there), daemon=True)
    child.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = {"verdict": "open", "cpu": limit}
    child.join()
    if found["verdict"] == "open" and child.exitcode != -signal.SIGXCPU:  # no end of its time
        raise SystemExit(f"the process of {net} {spec} ended with {child.exitcode}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--results", type=Path, help="folder with a results CSV of each tool: benchmark,net,property,_,verdict,..."
    )
    parser.add_argument("--without", nargs="*", default=[], help="tools whose results are left out")
    parser.add_argument("--only", default="", help="part of the network's name")
    parser.add_argument("--every", type=int, default=1, help="every so many instances of each network, from its first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="CPU seconds of an instance at most")
    parser.add_argument(
        "--eps-w", type=float, default=0.0, help="also all weights, within so many times the largest of each tensor"
    )
    parser.add_argument("--out", type=Path, help="JSON lines; instances in it are not decided again")
    options = parser.parse_args()
    others = published(options.results, options.without) if options.results else {}
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if options.out and options.out.exists():
        kept = [r for r in map(json.loads, options.out.read_text().splitlines()) if r["eps_w"] == options.eps_w]
        done = {(r["net"], r["property"]): r for r in kept}
    records: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for net, spec, seconds in instances(options.folder):
        name, asked = Path(net).name, Path(spec).name
        seen[name] += 1
        if options.only not in name or (seen[name] - 1) % options.every:
            continue
        limit = min(seconds, options.seconds)
        if (record := done.get((name, asked))) is None:
            record = {"net": name, "property": asked, "limit": limit, "eps_w": options.eps_w}
            record |= decide(options.folder / net, options.folder / spec, limit, options.eps_w)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        records.append(record)
        tools = others.get((name, asked), {})
        print(
            name,
            asked,
            {k: v for k, v in record.items() if k not in ("net", "property")},
            dict(Counter(tools.values())),
            flush=True,
        )
    raise SystemExit(summary(records, others))


def summary(records: list[dict[str, Any]], others: dict[tuple[str, str], dict[str, str]]) -> int:
    """Prints the table; 1 if there is a contradiction."""
    wrong = [r for r in records if r.get("onnxruntime") is False]
    for record in records:
        for tool, said in others.get((record["net"], record["property"]), {}).items():
            # what weights falsify may hold without them
            if (record["verdict"], said) == ("verified", "falsified") or (
                (record["verdict"], said, record["eps_w"]) == ("falsified", "verified", 0)
            ):
                wrong.append({**record, "tool": tool, "said": said})
    for net in sorted({r["net"] for r in records}):
        of = [r for r in records if r["net"] == net]
        print(f"\n{net}, {len(of)} instances: verified, falsified, open or refused")
        rows = {"nonsingular": Counter(r["verdict"] for r in of)}
        for tool in sorted({t for r in of for t in others.get((net, r["property"]), {})}):
            rows[tool] = Counter(others[net, r["property"]].get(tool, "open") for r in of)
        for tool, c in sorted(rows.items(), key=lambda row: -row[1]["verified"] - row[1]["falsified"]):
            v, f = c["verified"], c["falsified"]
            print(f"  {tool:12} {v:3} {f:3} {len(of) - v - f:3}")
    print(f"\ncontradictions: {len(wrong)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
