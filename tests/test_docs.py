"""What the README says is run, and its numbers are those of the committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest

from nonsingular.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "docs" / "reproduction" / "results.json"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_in_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


COMMANDS = [line[2:].split(" #")[0] for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("nonsingular")])
def test_commands_in_the_readme_are_understood(command, capsys):
    args = shlex.split(command)[1:]
    settings = [] if args[0] in ("report", "demo") else ["--print-config"]
    assert main([*args, *settings] if settings else [args[0], "--help"]) == 0
    assert capsys.readouterr().out


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {c.split()[1] for c in COMMANDS if c.startswith("make ")}
    assert named
    assert named <= targets


def test_numbers_of_the_reproduction_are_those_of_its_results():
    models = json.loads(RESULTS.read_text())["models"]
    table = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) ± ([\d.]+) \|", README, re.M)
    assert {row[0] for row in table} == {m["title"] for m in models.values()}
    for title, clean, auc, spread in table:
        m = next(m for m in models.values() if m["title"] == title)
        n = len(m["auc"])
        mean = sum(m["auc"]) / n
        sd = (sum((a - mean) ** 2 for a in m["auc"]) / (n - 1)) ** 0.5
        assert (clean, auc, spread) == (f"{100 * sum(m['clean']) / n:.1f}", f"{mean:.3f}", f"{sd:.3f}")


def test_presets_are_what_the_search_chose():
    """search.md ranks the candidates; the recipes of presets.py are the chosen ones."""
    from nonsingular.presets import REPRODUCTIONS

    page = (ROOT / "docs" / "reproduction" / "search.md").read_text(encoding="utf-8")
    for data in ("mnist", "digits"):
        section = page.split(f"## {data}\n")[1].split("\n## ")[0]
        chosen = re.findall(r"^\| (\S+)((?: \w+=\S+)*) \|.*\*\*yes\*\* \|$", section, re.M)
        found = sorted(
            (method, tuple(sorted((k, float(v)) for k, v in re.findall(r"(\w+)=(\S+)", numbers)))) for method, numbers in chosen
        )
        named = {"standard": (), "weight-perturb": ("beta",), "at": ("eps_x",), "at-beta": ("eps_x", "beta"),
                 "jiwp": ("eps_x", "alpha", "beta"), "joint": ("eps_x", "eps_w")}  # fmt: skip
        recipes = REPRODUCTIONS[data].recipes.values()
        assert found == sorted((r.method, tuple(sorted((k, getattr(r, k)) for k in named[r.method]))) for r in recipes)
