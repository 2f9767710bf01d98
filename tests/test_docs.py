"""What the README and the pages say is run, and their numbers are those of the committed results."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.bounds.linear import crown
from nonsingular.bounds.theorem import theorem1, theorem1_printed
from nonsingular.catalog import BOUNDS, UNSOUND
from nonsingular.cli.app import app
from nonsingular.cli.main import main
from nonsingular.evaluation.certified import SLACK
from nonsingular.network.margins import margins
from nonsingular.network.operators import RULES
from nonsingular.runs.presets import RECOMMENDED, REPRODUCTIONS, TITLES
from nonsingular.threat.ball import JointBall

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CERTIFICATES = (ROOT / "docs" / "certificates" / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "docs" / "reproduction" / "results.json"


def test_the_readme_is_short():
    assert 600 <= len(README.split()) <= 900


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_in_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


PAGES = ("reading", "radii", "inputs", "tables", "attacks", "extending")


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_runs(page, tmp_path, monkeypatch):
    """One block after the other, as a reader would."""
    monkeypatch.chdir(tmp_path)
    space = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.S)
    assert blocks
    for number, code in enumerate(blocks):
        if code.startswith(("# src/", "# an entry of ")):  # tests/test_extending.py puts these where they say
            continue
        exec(compile(code, f"docs/{page}.md, block {number}", "exec"), space)


def test_the_tutorial_runs_from_its_first_line_to_its_last(tmp_path, monkeypatch, capsys):
    """The first block is saved as it says, the others and the commands run in their order."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    space, seen = {}, []
    blocks = re.findall(r"```(python|console)\n(.*?)```", page, re.S)
    (tmp_path / "mymodel.py").write_text(blocks[0][1])
    for kind, code in blocks[1:]:
        if kind == "python":
            exec(compile(code, "docs/tutorial.md", "exec"), space)
            continue
        for command in code.splitlines():
            args = shlex.split(command.removeprefix("$ nonsingular "))
            assert main(args) == 0, command
            seen.append(args[0])
    assert seen == ["evaluate", "evaluate", "verify", "check"]
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert (tmp_path / "gates.xml").exists()
    assert space["surface"].auc >= space["surface"].certified.auc > 0


def test_python_in_the_page_on_certificates_runs(tmp_path, monkeypatch):
    """One block after the other, as a reader would; the operator that it adds is taken back."""
    monkeypatch.chdir(tmp_path)
    known, space = dict(RULES), {}
    try:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", CERTIFICATES, re.S)):
            exec(compile(code, f"docs/certificates/README.md, block {number}", "exec"), space)
    finally:
        RULES.clear()
        RULES.update(known)
    assert set(space["verdicts"].status) >= {"verified", "falsified"}  # both kinds of verdicts were seen
    assert 0.1 < space["surface"].auc < 0.99
    assert space["front"].eps_w.shape == (3, 20)


def mean(values):
    return sum(values) / len(values)


def commands(page: str) -> list[str]:
    return [
        line[2:].split(" #")[0].strip()
        for block in re.findall(r"```console\n(.*?)```", page, re.S)
        for line in block.splitlines()
    ]


COMMANDS = commands(README)


def test_commands_in_the_page_on_certificates_run(tmp_path, monkeypatch, capsys):
    """As printed, on a smaller network and five examples."""
    monkeypatch.chdir(tmp_path)
    few = ["--limit", "5", "--workers", "1", "--quiet"]
    less = {"train": ["--epochs", "1", "--hidden", "8", "--quiet"], "certify": few, "evaluate": few, "list": []}
    seen = []
    for command in commands(CERTIFICATES):
        args = shlex.split(command)[1:]
        assert main([*args, *less[args[0]]]) == 0, command
        seen.append((args[0], capsys.readouterr().out))
    assert {name for name, _ in seen} == set(less)
    assert all(out for name, out in seen if name != "train")


def test_a_certificate_that_an_attack_beats_fails_the_run_and_saves_the_case(tmp_path, monkeypatch, capsys):
    """What the page says of the sandwich: exit code 1, and the inputs, the label and the perturbation in a file."""
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split("train --data digits --epochs 1 --hidden 8 --quiet --out net")) == 0
    monkeypatch.setattr("nonsingular.bounds.linear.crown", lambda *args: crown(*args) + 1.0)
    grid = "--eps-x 0,0.01 --eps-w 0,0.001 --limit 5 --workers 1 --quiet --certify crown --out run"
    assert main(["evaluate", "net", *shlex.split(grid)]) == 1
    said = capsys.readouterr().err
    (case,) = (tmp_path / "run").glob("violation-*.npz")
    assert "certified to be at least" in said
    assert case.name in said
    with np.load(case) as stored:
        assert {"x", "y", "x_adv"} <= set(stored)


def test_the_page_on_certificates_names_every_sound_bound():
    table = CERTIFICATES.split("## Which bound to choose")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.M)
    assert set(BOUNDS) - UNSOUND <= set(named)
    assert not UNSOUND & set(named)


def test_numbers_in_the_page_on_certificates_are_those_of_the_code():
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((1, 2), (2, 1), (1, 2)))).double()
    net.insert(1, nn.ReLU()).insert(3, nn.ReLU())
    with torch.no_grad():
        for layer, values in zip(net[::2], ([[1.0], [1.0]], [[1.0, -1.0]], [[1.0], [1.0]]), strict=True):
            layer.weight.copy_(torch.tensor(values))
        moved = {
            f"{i}.weight": torch.tensor(w, dtype=torch.float64)
            for i, w in ((0, [[1.1], [0.9]]), (2, [[1.1, -0.9]]), (4, [[0.9], [1.1]]))
        }
        attained = margins(torch.func.functional_call(net, moved, (x,)), y)[0, 1].item()
        printed, repaired = (bound(net, x, y, JointBall(0.0, 0.1))[0, 1].item() for bound in (theorem1_printed, theorem1))
    assert (round(printed, 9), round(repaired, 9), round(attained, 9)) == (-0.044, -0.08, -0.08)
    assert all(number in CERTIFICATES for number in ("**0.044**", "**0.080**", "more than 100 units in the last place"))
    assert SLACK == 100


def test_tables_in_the_page_on_certificates_are_those_of_the_measurement():
    """Seven networks, three seeds: means of mnist.json, and the generated tables of mnist.md."""
    found = json.loads((ROOT / "docs" / "certificates" / "mnist.json").read_text())
    tables = (ROOT / "docs" / "certificates" / "mnist.md").read_text(encoding="utf-8")
    by_bound = tables.split("At (ε_x, ε_w) = (0.02, 0.001):\n\n")[1].split("\n\n")[0]
    assert by_bound in CERTIFICATES
    for model, title in TITLES.items():
        seeds = [rows for name, rows in found["verdicts"].items() if name.rpartition("-seed")[0] == model]
        assert len(seeds) == 3
        shares, seconds = [], []
        for cell in ([0.01, 0.001], [0.02, 0.001]):
            rows = [row for s in seeds for row in s if row["cell"] == cell]
            n, verified, late = (sum(row[key] for row in rows) for key in ("n", "verified", "timeout"))
            shares += [f"{100 * verified / n:.1f}", f"{100 * (verified + late) / n:.1f}"]
            seconds.append(f"{mean([row['seconds'] for row in rows]):.3f}")
        assert f"| {title} | {' | '.join(shares)} | {', '.join(seconds)} |" in CERTIFICATES


def test_the_table_in_the_page_on_attacks_is_that_of_the_benchmark():
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    measured = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split("## contour.py")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (Standard|AT) \| ([\d,]+) \| (.*) \|$", page, re.M)
    assert len(rows) == 4
    for model, images, numbers in rows:
        (row,) = re.findall(rf"^\| {model.lower()}, {images} \| (.*) \|$", measured, re.M)
        _, _, time, theirs, ours, above, *_ = map(float, row.replace(",", "").split(" | "))
        for said, places, true in zip(numbers.split(" | "), (3, 3, 2, 2), (theirs, ours, above, time), strict=True):
            assert abs(float(said) - true) <= 0.501 * 10**-places


def printed() -> list[tuple[str, str]]:
    """Every command of the README and of the pages whose commands are not run."""
    pages = ["README.md", *(f"docs/{name}.md" for name in ("attacks", "commands", "reliability", "results/README"))]
    pages += ["docs/tables.md", "docs/report/README.md", "docs/reproduction/README.md"]
    return [
        (page, c) for page in pages for c in commands((ROOT / page).read_text(encoding="utf-8")) if c.startswith("nonsingular")
    ]


@pytest.mark.parametrize("page, command", printed())
def test_commands_in_the_pages_are_understood(page, command, capsys):
    args = shlex.split(command)[1:]
    if args[0] in ("report", "verify", "merge", "sign", "compare", "check", "list", "demo"):  # they need runs, or take no file
        app.parse_args(args, exit_on_error=False, print_error=False)
        return
    assert main([*args, "--print-config"]) == 0
    assert capsys.readouterr().out


def test_the_page_on_commands_names_every_command():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = {shlex.split(c)[1] for c in commands(page)}
    assert named == {name for name in app if not name.startswith("-")}


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {c.split()[1] for c in COMMANDS if c.startswith("make ")}
    assert named
    assert named <= targets


REPRODUCTION = (ROOT / "docs" / "reproduction" / "README.md").read_text(encoding="utf-8")


def test_numbers_of_the_reproduction_are_those_of_its_results():
    results = json.loads(RESULTS.read_text())
    assert "uncommitted" not in results["environment"]["git"]
    expected = []
    for m in results["models"].values():
        auc = mean(m["auc"])
        sd = (sum((a - auc) ** 2 for a in m["auc"]) / (len(m["auc"]) - 1)) ** 0.5
        middle = mean([s["accuracy"][5][5] for s in m["surfaces"]])
        numbers = [f"{auc:.3f} ± {sd:.3f}", f"{mean(m['auc_x']):.3f}", f"{mean(m['auc_w']):.3f}", f"{100 * middle:.1f}"]
        expected.append(" | ".join([f"| {m['title']}", f"{100 * mean(m['clean']):.1f}", *numbers]) + " |")
    assert "\n".join(expected) in REPRODUCTION


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


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}


LINKED = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*/*.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_pages_resolve(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_index():
    listed = re.findall(r"^([a-z/A-Z]+)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.M)
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in LINKED if p.is_relative_to(ROOT / "docs")}
    assert pages == {*listed, "index"}


def test_presets_are_what_the_search_chose():
    """search.md ranks the candidates; the recipes of presets.py are the chosen ones."""
    page = (ROOT / "docs" / "reproduction" / "search.md").read_text(encoding="utf-8")
    for data in ("mnist", "digits"):
        section = page.split(f"## {data}\n")[1].split("\n## ")[0]
        chosen = re.findall(r"^\| (\S+)((?: \w+=\S+)*) \|.*\*\*yes\*\* \|$", section, re.M)
        found = sorted(
            (method, tuple(sorted((k, float(v)) for k, v in re.findall(r"(\w+)=(\S+)", numbers)))) for method, numbers in chosen
        )
        named = {"standard": (), "weight-perturb": ("beta",), "at": ("eps_x",), "at-beta": ("eps_x", "beta"),
                 "jiwp": ("eps_x", "alpha", "beta"), "joint": ("eps_x", "eps_w")}  # fmt: skip
        recipes = [r for name, r in REPRODUCTIONS[data].recipes.items() if name != RECOMMENDED]
        assert found == sorted((r.method, tuple(sorted((k, getattr(r, k)) for k in named[r.method]))) for r in recipes)
