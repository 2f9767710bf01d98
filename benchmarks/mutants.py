"""How many small faults in the bounds the tests find: one operator, sign or constant changed at a time.

    python benchmarks/mutants.py --count 100 --seed 0

Mutants are drawn at random from all of bounds/*.py; each runs the focused tests until the first fails, or `--seconds` are over
(`slow`, counted apart: on a busy machine it says little).  Those that live are missing tests, or changes without consequence.
No target: information only.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {
    "exact highs points program": "test_exact",
    "theorem": "test_theorem",
    "parts branch verdicts": "test_branch",
    "rounding": "test_certification",
}
"""Modules -> the tests that are about them; of the others EVERY."""
EVERY = "test_bounds test_conv_bounds"
OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin", "min": "max", "max": "min", "lo": "hi",
         "hi": "lo", "fmax": "fmin", "argmax": "argmin", "all": "any", "any": "all"}  # fmt: skip


def mutants(tree: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """(node, field, what to put there)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in OPERATORS:
            yield node, "op", OPERATORS[type(node.op)]()
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            yield node, "ops", [OPERATORS[type(node.ops[0])](), *node.ops[1:]]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "op", ast.UAdd()
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, "attr", NAMES[node.attr]
        elif isinstance(node, ast.keyword) and node.arg in ("min", "max"):
            yield node, "arg", NAMES[node.arg]
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "value", node.value + 1


def mutated(source: str, number: int) -> tuple[str, str]:
    """The source with its mutant of this number, and where."""
    tree = ast.parse(source)
    node, field, value = list(mutants(tree))[number]
    before = copy.deepcopy(node)
    setattr(node, field, value)
    line = getattr(node, "lineno", 0)
    return ast.unparse(tree), f"{line}: {ast.unparse(before)} -> {ast.unparse(node)}"


def outcome(module: str, source: str, seconds: float, folder: Path) -> str:
    """What the tests say where the module is this."""
    tests = next((t for names, t in TESTS.items() if module in names.split()), EVERY)
    at = folder / "src/nonsingular/bounds" / f"{module}.py"
    original = at.read_text()
    at.write_text(source)
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    files = [f"tests/{name}.py" for name in tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=seconds, check=False)
        return "found" if done.returncode else "LIVES"
    except subprocess.TimeoutExpired:
        return "slow"
    finally:
        at.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    sources = {p.stem: p.read_text() for p in sorted((ROOT / "src/nonsingular/bounds").glob("*.py"))}
    every = [(name, i) for name, source in sources.items() for i in range(len(list(mutants(ast.parse(source)))))]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    ended: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "tests", "pyproject.toml"):
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, Path(folder) / part)
        for name, i in chosen:
            source, what = mutated(sources[name], i)
            ended.append(outcome(name, source, options.seconds, Path(folder)))
            print(f"{ended[-1]:5}  {name}.py:{what}", flush=True)
    counts = ", ".join(f"{ended.count(how)} {how}" for how in ("found", "LIVES", "slow"))
    print(f"of {len(chosen)} of {len(every)} mutants: {counts}")


if __name__ == "__main__":
    main()
