"""docs/extending.md: what each thing needs is one file and one entry.  Both are taken from the page and put into a copy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nonsingular as ns
from house import PACKAGE, ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
FILES = [block for block in BLOCKS if block.startswith("# src/nonsingular/")]
ENTRIES = [block for block in BLOCKS if block.startswith("# an entry of ")]
NAMES = {"attacks": "against", "bounds": "meet", "training": "smoothed", "faults": "fading", "data": "tsv"}
"""Folder -> what the page adds there."""
OPERATOR = """
import torch, nonsingular as ns
class Summed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    def forward(self, x):
        return self.inside(torch.cumsum(x, 1))
torch.manual_seed(0)
model, x = Summed().eval(), torch.rand(20, 4)
y, ball = model(x).argmax(1), ns.JointBall(0.02, 0.01)
attacked = ns.strongest(model, x, y, ball)
each = [{n: w[i] for n, w in attacked.weights.items()} for i in range(len(x))]
logits = torch.cat([torch.func.functional_call(model, w, (attacked.x[i : i + 1],)) for i, w in enumerate(each)])
reached = logits.gather(1, y[:, None]) - logits
for bound in ("interval", "crown", "alpha-crown", "branch-and-bound"):
    found = ns.certify(model, x, y, ball, bound=bound)
    assert (found.margins <= reached + 1e-5).all() and found.verified.any(), bound
"""


def test_the_page_has_a_file_and_an_entry_for_each_thing():
    assert len(FILES) == len(ENTRIES) == 6
    folders = {Path(block.splitlines()[0].removeprefix("# src/nonsingular/")).parts[0] for block in FILES}
    assert folders == {*NAMES, "network"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with everything of the page in it."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / "nonsingular", ignore=shutil.ignore_patterns("__pycache__"))
    for block in FILES:
        name, code = block.split("\n", 1)
        path = root / name.removeprefix("# src/")
        assert not path.exists()
        path.write_text(code, encoding="utf-8")
    for block in ENTRIES:
        head, entry = block.split("\n", 1)
        table, name = re.fullmatch(r"# an entry of (\w+) in src/(\S+)", head).groups()
        text = (root / name).read_text(encoding="utf-8")
        begins = re.search(rf"^{table}\b[^\n]*\(\n", text, re.M)
        assert begins, f"{name} has no table {table}"
        text = text[: begins.end()] + entry.rstrip() + ",\n" + text[begins.end() :]
        (root / name).write_text(text, encoding="utf-8")
    return root


def within(copy, *argv):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(copy), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_one_file_and_one_entry_are_enough(copy):
    asked = ["tests/test_contracts.py", "tests/test_faults.py", "-k", " or ".join(NAMES.values())]
    said = within(copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", *asked)
    for name in NAMES.values():
        assert re.search(rf"::test_\w+\[{name}\b.*PASSED", said), f"no contract test ran for {name}"


def test_an_operator_is_known_to_every_bound(copy):
    within(copy, "-c", OPERATOR)


def test_the_command_line_knows_what_was_added(copy):
    for kind, name in (("attacks", "against"), ("bounds", "meet"), ("objectives", "smoothed"), ("faults", "fading")):
        assert name in within(copy, "-m", "nonsingular.cli", "list", kind)
    settings = within(copy, "-m", "nonsingular.cli", "train", "--method", "smoothed", "--print-config")
    assert "recipe:\n  method: smoothed" in settings


def test_a_wrong_shape_is_an_error_that_says_so():
    import torch

    model, x = torch.nn.Linear(4, 3).eval(), torch.rand(5, 4)
    y = model(x).argmax(1)

    def shared(model, x, y, ball, *, scope):
        return ns.Perturbation(x, {"weight": model.weight.detach()}, scope)

    def fewer(model, x, y, ball, *, scope):
        return ns.Perturbation(x[:2], {}, scope)

    def pair(model, x, y, ball, *, scope):
        return x, {}

    for attack, said in (
        (shared, r"'weight' with shape \(3, 4\); in scope sample .* give \(5, 3, 4\)"),
        (fewer, r"x' of shape \(2, 4\); give the shape of the inputs, \(5, 4\)"),
        (pair, r"the attack 'pair' returned a tuple; return nonsingular\.Perturbation"),
    ):
        with pytest.raises(ns.InvalidInput, match=said):
            ns.evaluate(model, (x, y), eps_x=[0.1], eps_w=[0.1], attack=attack)
