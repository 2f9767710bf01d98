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


REPRODUCTION = (ROOT / "docs" / "reproduction" / "README.md").read_text(encoding="utf-8")


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("page", [README, REPRODUCTION], ids=["README", "docs/reproduction"])
def test_numbers_of_the_reproduction_are_those_of_its_results(page):
    results = json.loads(RESULTS.read_text())
    assert "uncommitted" not in results["environment"]["git"]
    expected = []
    for m in results["models"].values():
        auc = mean(m["auc"])
        sd = (sum((a - auc) ** 2 for a in m["auc"]) / (len(m["auc"]) - 1)) ** 0.5
        middle = mean([s["accuracy"][5][5] for s in m["surfaces"]])
        numbers = [f"{auc:.3f} ± {sd:.3f}", f"{mean(m['auc_x']):.3f}", f"{mean(m['auc_w']):.3f}", f"{100 * middle:.1f}"]
        expected.append(" | ".join([f"| {m['title']}", f"{100 * mean(m['clean']):.1f}", *numbers]) + " |")
    assert "\n".join(expected) in page


def test_what_is_said_of_the_reproduction_is_in_its_results():
    results = json.loads(RESULTS.read_text())
    claims, models = results["claims"], results["models"]
    assert all(f"**{c['verdict']}** | {c['evidence']} |" in REPRODUCTION for c in claims.values())
    over_at, over_at_beta = mean(claims["joint"]["numbers"]["per_seed"]), mean(claims["joint"]["over_at_beta"])
    assert f"Joint adversarial training has {over_at:.1f} times the AUC of AT and {over_at_beta:.1f} times" in README
    for m in models.values():
        rises = [r for s in m["surfaces"] for r in s["rises"]]
        one_class = sum("one-class" in f["flags"] for s in m["surfaces"] for f in s["flags"])
        largest = 100 * max(r["to"] - r["from"] for r in rises)
        assert f"| {m['title']} | {len(rises)} | {largest:.1f} | {one_class} |" in REPRODUCTION


def test_links_within_the_pages_resolve():
    for folder, page in ((ROOT, README), (ROOT / "docs" / "reproduction", REPRODUCTION)):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
            assert target.startswith("https://") or (folder / target).exists(), target
    assert "](#" not in README + REPRODUCTION


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
