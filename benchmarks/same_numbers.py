"""Whether another checkout comes to the same numbers, bit for bit: the demo, one MNIST surface, one table of certificates.

    python benchmarks/same_numbers.py --before ../older/src --data-dir DATA     # about five minutes; --quick: about one

Compared: every outcome, margin and number of passes in the logs, every number of results.json, the hash of every trained model.
Not compared: times, versions, the command line, and names that were changed since.  Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = """
import sys
try:
    from nonsingular.cli.main import main
except ModuleNotFoundError:  # one module in the first release
    from nonsingular.cli import main
sys.exit(main(sys.argv[1:]))
"""
FREE = {"seconds", "wall_seconds", "environment", "command", "config", "versions", "file", "doubts"}
RENAMED = {"method": "bound"}


def runs(data_dir: Path | None, quick: bool) -> dict[str, list[list[str]]]:
    """Folder -> the commands that fill it."""
    mnist = ["--data", "mnist", *(["--data-dir", str(data_dir)] if data_dir else [])]
    train = ["train", *mnist, "--method", "at", "--epochs", "1" if quick else "3", "--out", "net", "--quiet"]
    grid = ["--eps-x", "0:0.1:5", "--eps-w", "0:0.004:5", "--limit", "50" if quick else "300", "--workers", "1", "--quiet"]
    found = {
        "surface": [train, ["evaluate", "net", *grid, "--certify", "interval", "--out", "surface"]],
        "table": [["certify", "net", *grid, "--accuracy", "0.9,0.5", "--out", "table"]],
    }
    return found if quick else {"demo": [["demo", "--out", "demo", "--quiet"]], **found}


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a record that both should say."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in FREE:
                yield from numbers(inner, f"{path}.{RENAMED.get(key, key)}")
    elif isinstance(value, list):
        for k, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{k}]")
    else:
        yield path, value


def found_in(folder: Path) -> dict[str, Any]:
    """Place -> value, of all records under a folder.  Lines of a log in the order of what they are of."""
    said: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")) + sorted(folder.rglob("events.jsonl")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            if path.name in ("results.json", "train.json"):
                said |= {name + at: v for at, v in numbers(json.loads(path.read_text()))}
            continue
        lines = [json.loads(line)["entry"] for line in path.read_text().splitlines()]
        for entry in sorted(lines, key=lambda e: (e["span"], [(c["eps_x"], c["eps_w"]) for c in e.get("cells", ())])):
            of = f"{name} {entry['span']} {[(c['eps_x'], c['eps_w']) for c in entry.get('cells', ())][:1]}"
            said |= {of + at: v for at, v in numbers({k: v for k, v in entry.items() if k != "key"})}
            said[of + " key"] = entry["key"]
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    sources = {"before": args.before.resolve(), "now": Path(__file__).resolve().parents[1] / "src"}
    worst = 0
    with tempfile.TemporaryDirectory() as scratch:
        for what, commands in runs(args.data_dir and args.data_dir.resolve(), args.quick).items():
            said: dict[str, dict[str, Any]] = {}
            for name, source in sources.items():
                here = Path(scratch) / name
                here.mkdir(exist_ok=True)
                for argv in commands:
                    env = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
                    subprocess.run(
                        [sys.executable, "-c", COMMAND, *argv], cwd=here, env=env, check=True, stdout=subprocess.DEVNULL
                    )
                said[name] = found_in(here / what)
            before, now = said["before"], said["now"]
            differ = [at for at in before if at in now and before[at] != now[at]]
            only = [at for at in before if at not in now], [at for at in now if at not in before]
            print(
                f"{what}: {len(before)} values; {len(differ)} differ, {len(only[0])} are gone, {len(only[1])} are new", flush=True
            )
            for at in [*differ[:5], *only[0][:5], *only[1][:5]]:
                print(f"  {at}: {str(before.get(at))[:60]} -> {str(now.get(at))[:60]}")
            worst = max(worst, int(bool(differ or only[0])))
    return worst


if __name__ == "__main__":
    sys.exit(main())
