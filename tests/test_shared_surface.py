"""The surface of shared certificates: between the certified and the attacked one in every cell, kept, shown and confirmed."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import nonsingular as ns
from nonsingular import report
from nonsingular.catalog import BOUNDS
from nonsingular.certificates.shared import counted
from nonsingular.cli.main import main
from nonsingular.errors import InvalidInput, SharedSoundnessError, SoundnessError
from nonsingular.evaluation import shared as evaluation
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.clock import Clock, Seen
from nonsingular.evaluation.estimate import Plan
from nonsingular.evaluation.problem import Case, Method
from nonsingular.models.architectures import mlp
from nonsingular.network.precision import PRECISIONS
from nonsingular.report.summary import Seeds, read
from nonsingular.report.table import model_rows, surface_table
from nonsingular.results.gates import Gate
from nonsingular.results.surface import Surface
from nonsingular.settings import Deployed
from nonsingular.threat.grid import Grid

COLUMNS, ROWS = (0.0, 0.03), (0.0, 0.03, 0.06)


def small(seed: int = 0, n: int = 30) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = mlp((4,), 3, hidden=(8,), bias=True).eval()
    x = torch.rand(n, 4)
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 3
    return model, x, y


def asked(scope: str = "dataset", **more: object) -> Surface:
    model, x, y = small()
    given = {"certify": "crown", "batch_size": 10, "eps_x": COLUMNS, "eps_w": ROWS} | more
    return evaluate(model, (x, y), scope=scope, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Surface:
    return asked()


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_it_lies_between_the_other_two_and_above_what_random_weights_break(scope, found):
    s = found if scope == "dataset" else asked(scope)
    assert s.certified is not None and s.shared is not None
    assert (s.shared.kind, s.shared.scope, s.shared.attack) == ("shared", scope, "crown")
    assert (s.certified.accuracy <= s.shared.accuracy).all() and (s.shared.accuracy <= s.accuracy).all()
    assert (s.certified.accuracy < s.shared.accuracy).any()
    model, x, y = small()
    params = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    groups = x.split(10 if scope == "batch" else len(x)), y.split(10 if scope == "batch" else len(x))
    for i, j in np.ndindex(s.accuracy.shape):
        worst = 0
        for part, labels in zip(*groups, strict=True):
            most = 0
            for _ in range(40):  # corners of the box of weights, each example at a corner of its own
                w = {
                    n: p + ROWS[i] * (2 * torch.randint(2, p.shape, generator=generator) - 1) * (p.dim() > 1)
                    for n, p in params.items()
                }
                at = (part + COLUMNS[j] * (2 * torch.randint(2, part.shape, generator=generator) - 1)).clamp(0, 1)
                most = max(most, int((functional_call(model, w, (at,)).argmax(1) != labels).sum()))
            worst += most
        assert worst <= s.shared.broken[i, j]


def test_each_number_is_that_of_certify_shared_or_of_a_larger_ball(found):
    """The bound of the examples alone is the same; where it meets the attack, nothing is counted."""
    model, x, y = small()
    each = np.array([[ns.certify_shared(model, x, y, ns.JointBall(c, r), bound="crown").broken for c in COLUMNS] for r in ROWS])
    assert (found.shared.broken <= each).all()
    assert (found.shared.broken[0] == found.certified.broken[0]).all()  # no weight moves
    assert (found.shared.broken[1:] == each[1:]).any()


def test_the_type_that_the_network_is_computed_in_reaches_every_reader(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--data", "digits", "--epochs", "2", "--hidden", "8", "--lr", "0.01", "--out", "net", "--quiet"]
    assert main(train) == 0
    grid = ["net", "--limit", "10", "--eps-x", "0,0.02", "--eps-w", "0,0.005", "--workers", "1", "--quiet"]
    how = ["--certify", "crown", "--scope", "dataset", "--deployed", "float32"]
    assert main(["evaluate", *grid, *how, "--out", "run"]) == 0
    (surface,) = json.loads(Path("run/results.json").read_text())["models"]["net"]["surfaces"]
    assert [surface[k]["about"]["deployed"] for k in ("shared", "certified")] == ["float32"] * 2
    assert "deployed" not in surface["about"]  # attacks run as the model does
    for name in ("report.html", "report.md"):
        text = Path("run", name).read_text()
        assert "as computed in float32" in text and "every attack, in exact arithmetic" not in text
    assert main(["verify", "run", "--recompute-certificates", "all"]) == 0
    assert main(["certify", *grid, "--deployed", "float64", "--accuracy", "0.5", "--out", "c"]) == 0
    assert main(["verify", "c"]) == 0
    assert main(["certify", *grid, "--out", "d"]) == 0
    assert "deployed" not in Path("d/config.yaml").read_text()  # as runs of the first release have it
    capsys.readouterr()
    exact, rounded = (json.loads(Path(run, "results.json").read_text()) for run in ("c", "d"))
    assert any("as computed in float64" in why for why in report.differences(exact, rounded))
    for argv, said in (
        (
            ["evaluate", *grid, "--deployed", "float32"],
            "error: deployed is 'float32', which only certificates know; give certify",
        ),
        (["certify", *grid, "--deployed", "float8"], "'float16+float32'"),
        (["certify", *grid, "--deployed", "float32", "--bound", "theorem1"], "no term for the rounding of a deployed network"),
    ):
        assert main([*argv, "--out", "never"]) == 2
        assert said in capsys.readouterr().err
    assert not Path("never").exists()


def test_settings_know_the_types_that_bounds_know():
    assert set(get_args(Deployed)) == set(PRECISIONS)


def test_scope_sample_and_runs_without_certificates_have_none():
    assert asked("sample").shared is None
    assert asked("dataset", certify=None).shared is None


def test_an_attack_that_breaks_more_fails_the_run(monkeypatch):
    def too_few(*args, **more):
        return replace(counted(*args, **more), broken=1)

    monkeypatch.setattr(evaluation, "counted", too_few)
    with pytest.raises(SoundnessError, match="one W' for all is certified to break at most 1, and an attack broke") as e:
        asked()
    assert isinstance(e.value, SharedSoundnessError)
    assert e.value.span == (0, 30)
    assert str(type(e.value)(*e.value.args)) == str(e.value)  # as it comes from a worker


def test_a_log_holds_every_row_and_none_is_counted_again(tmp_path, monkeypatch, found):
    log = tmp_path / "events.jsonl"
    first = asked(log=log)
    rows = [entry for entry in map(json.loads, log.read_text().splitlines()) if "broken" in entry["entry"]]
    assert len(rows) == len(ROWS)
    monkeypatch.setattr(evaluation, "counted", None)
    again = asked(log=log)
    np.testing.assert_array_equal(again.shared.accuracy, first.shared.accuracy)
    np.testing.assert_array_equal(again.shared.accuracy, found.shared.accuracy)
    with pytest.raises(TypeError):  # another bound has its own
        asked(log=log, certify="interval")


def test_it_survives_json_and_gates_are_on_it(found):
    again = Surface.from_dict(json.loads(json.dumps(found.to_dict())))
    np.testing.assert_array_equal(again.shared.accuracy, found.shared.accuracy)
    assert "one W' for all examples" in str(found)
    gate = Gate.at_point(f"eps_x={COLUMNS[1]},eps_w={ROWS[1]}:0.5", "certified")
    share, low = gate.of(found)
    assert share == found.shared.accuracy[1, 1] > found.certified.accuracy[1, 1]
    assert low < share
    area, low = Gate(0.5, "certified").of(found)
    assert area == found.shared.auc > low > 0
    assert Gate(0.5).of(found)[0] == found.auc


def results(s: Surface) -> dict:
    model = {
        "title": "net", "settings": {}, "seeds": [0], "auc": [s.auc], "auc_x": [s.auc_x], "auc_w": [s.auc_w],
        "clean": [s.about["clean_accuracy"]], "surfaces": [s.to_dict()],
    }  # fmt: skip
    return {
        "format": 1, "data": {"name": "random", "n": s.n, "sha256": "0" * 64, "split": "test", "classes": ["0", "1", "2"]},
        "grid": {"eps_x": list(s.eps_x), "eps_w": list(s.eps_w)}, "scope": s.scope, "attack": s.attack, "models": {"net": model},
        "config": {}, "environment": {}, "command": "nonsingular evaluate net",
    }  # fmt: skip


def test_every_reader_shows_it_between_the_other_two(found, tmp_path):
    made = results(found)
    (m,) = read(made)
    assert list(m.runs.kinds) == ["attacked", "shared", "certified"]
    assert [row[1] for row in model_rows([m]).rows] == ["attacked", "shared", "certified"]
    np.testing.assert_allclose(m.runs.gap, found.accuracy - found.shared.accuracy)
    files = report.write(made, tmp_path)
    page = files["report.html"].read_text()
    share = f"{100 * found.shared.accuracy[1, 1]:.1f}"
    assert f"shared {share} %" in page and "Shared certificates" in page and "Shared: at least" in page
    cells = [line.split(",") for line in files["cells.csv"].read_text().splitlines()]
    assert {(row[4], row[11]) for row in cells[1:]} == {("attacked", "dataset"), ("shared", "dataset"), ("certified", "every")}
    text = files["report.md"].read_text()
    assert "hared: certified by crown and a count, one W' for all examples" in text
    assert re.search(rf"; {share} % \(.* are proven to be", text)
    assert "one W' for all" in str(surface_table(found.shared).caption)
    alone = report.contours({"net": [replace(found, certified=None, shared=None)]})
    assert len(report.contours({"net": [found]}).axes) == len(alone.axes) + 2
    line = replace(found, shared=None, certified=None, eps_w=ROWS[:1], accuracy=found.accuracy[:1], outcomes=None)
    below = {
        kind: replace(getattr(found, kind), eps_w=ROWS[:1], accuracy=getattr(found, kind).accuracy[:1], outcomes=None)
        for kind in ("shared", "certified")
    }
    (ax,) = report.contours({"net": [replace(line, **below)]}).axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["not known", "attacked", "shared", "certified"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: replace(s, shared=replace(s.shared, accuracy=s.accuracy + 0.1)), "shared accuracy above its attacked one"),
        (lambda s: replace(s, shared=replace(s.shared, accuracy=0 * s.accuracy)), "certified accuracy above its shared one"),
        (lambda s: replace(s, shared=replace(s.shared, scope="batch")), "are of scope batch, its attack of dataset"),
        (lambda s: replace(s, certified=None), "none of single examples"),
    ],
)
def test_what_is_out_of_order_is_not_shown(found, change, said):
    with pytest.raises(InvalidInput, match=said):
        Seeds((change(found),))


def test_the_estimate_of_a_run_counts_it():
    model, x, y = small()
    plan = Plan(Case.of(model, x, y), Grid(COLUMNS, ROWS, ns.JointBall(1.0, 1.0)), Method.of(None, "dataset"), BOUNDS["crown"])
    for method, counted_too in ((plan.method, True), (Method.of(None), False)):
        clock = Clock(replace(plan, method=method), torch.arange(30), Seen(1.0, 1e-3), time.perf_counter() + 60, patient=False)
        clock.one = {"attack": {1: 0.01}, "certificates": {1: 0.01}}
        clock.stages.append(clock._timed(30, fine=False))
        assert ("shared certificates" in clock._told()["parts"]) == counted_too
    assert clock.stages[0].shared == 0
