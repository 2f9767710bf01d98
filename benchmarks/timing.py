"""timing.py - what the benchmarks share: interleaved timing on one thread, the machine in words, the table."""

from __future__ import annotations

import os
import platform
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch


def options(doc: str | None, **defaults: int) -> ArgumentParser:
    """A parser with --data-dir and one whole number per default."""
    parser = ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder with MNIST's files (default: the cache, else a download into it)")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    return parser


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, A B C A B C ..., after one round that is not counted: what disturbs one disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for counted in [False] + [True] * rounds:
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if counted:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_memory(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and bytes that this process held at its peak beyond what it held before.  Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, started = _resident("VmRSS"), time.perf_counter()
    call()
    return time.perf_counter() - started, _resident("VmHWM") - before


def _resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def table(seconds: Mapping[str, list[float]], base: str) -> str:
    """Median and minimum in milliseconds, and both as multiples of `base`'s."""
    width = max(map(len, seconds))
    lines = [f"{'':{width}}  median ms     min ms  median/{base}  min/{base}"]
    for name, s in seconds.items():
        ratios = f"{ratio(seconds, name, base):{8 + len(base)}.3f}  {min(s) / min(seconds[base]):{4 + len(base)}.3f}"
        lines.append(f"{name:{width}} {1e3 * median(s):10.2f} {1e3 * min(s):10.2f} {ratios}")
    return "\n".join(lines)


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over median."""
    return median(seconds[name]) / median(seconds[base])


def verdict(what: str, value: float, target: float) -> int:
    """Prints whether the target is met; the exit code."""
    print(f"{what} = {value:.3f}, target <= {target}: {'met' if value <= target else 'MISSED'}")
    return int(value > target)


def machine() -> str:
    """The processor, its cores, the load and the versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        load = f", load {os.getloadavg()[0]:.1f}"
    except (OSError, StopIteration):
        cpu, load = platform.processor() or platform.machine(), ""
    threads = torch.get_num_threads()
    return f"{cpu}, {os.cpu_count()} cores{load}; torch {torch.__version__}, {threads} thread{'s'[: threads != 1]}"
