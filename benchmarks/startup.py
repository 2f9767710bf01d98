"""startup.py - how long `nonsingular --help` takes, and `import nonsingular` beyond torch; the least of several starts each.

Exit code 1 if --help takes more than 0.4 s, or the import more than 0.2 s beyond that of torch.
"""

from __future__ import annotations

import subprocess
import sys
import time

from timing import machine, verdict

STARTS = 7
HELP = [sys.executable, "-m", "nonsingular.cli", "--help"]
TORCH = [sys.executable, "-c", "import torch"]
BOTH = [sys.executable, "-c", "import torch, nonsingular as ns; ns.evaluate, ns.certify, ns.load"]


def least(argv: list[str]) -> float:
    """Seconds of the fastest start."""
    found: list[float] = []
    for _ in range(STARTS):
        started = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> int:
    print(machine(), flush=True)
    torch, both = least(TORCH), least(BOTH)
    print(f"import torch {torch:.2f} s, with evaluate, certify and load of nonsingular {both:.2f} s")
    missed = verdict("--help: seconds", least(HELP), 0.4)
    return missed | verdict("import beyond torch: seconds", both - torch, 0.2)


if __name__ == "__main__":
    sys.exit(main())
