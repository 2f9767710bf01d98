"""What is said before a run: what moves, by hand; what cannot be certified, by name; a time that follows the work, in time."""

import json
import logging
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nonsingular.catalog import BOUNDS, Attack
from nonsingular.cli.main import main
from nonsingular.evaluation.clock import REPORT
from nonsingular.evaluation.estimate import QUICK, SOON, Plan
from nonsingular.evaluation.preflight import looked_at, preflight
from nonsingular.evaluation.problem import Case, Method
from nonsingular.runs import evaluate as experiment
from nonsingular.runs.engine import watched
from nonsingular.threat.ball import JointBall
from nonsingular.threat.grid import Grid
from nonsingular.threat.perturbation import Perturbation

UNIT = JointBall(1.0, 1.0)


def model_and_examples(n=30):
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.rand(n, 4, generator=g)
    return model, x, model(x).argmax(1)


def told(model, x, y, method, columns, rows, certify=None, unit=UNIT, **more):
    bound = BOUNDS[certify] if certify else None
    plan = Plan(Case.of(model, x, y), Grid(columns, rows, unit), method, bound, **more)
    return preflight(plan, torch.arange(len(x)), [])


def still(model, x, y, ball, *, scope, start=None):
    """An attack that finds nothing."""
    return Perturbation(x + 0, {}, scope)


STILL = Attack("still", still, starts=True)


def test_what_moves_is_counted():
    model, x, y = model_and_examples()
    found = told(model, x, y, Method.of(STILL), (0.0, 0.1), (0.0, 0.02))
    assert found.numbers == 4 * 5 + 5 * 3
    assert found.moved["0.weight"]["shape"] == [5, 4]
    assert found.moved["0.weight"]["radius"] == pytest.approx(0.02)
    assert found.fixed == ("0.bias", "2.bias")
    assert (found.cells, found.examples, found.clean) == (4, 30, 1.0)
    assert "35 numbers" in str(found)
    assert set(found.certifies) == set(QUICK) and not found.untried
    everything = told(model, x, y, Method.of(STILL), (0.1,), (0.02,), unit=JointBall(1.0, 1.0, moves="all"))
    assert everything.numbers == 35 + 8
    assert not everything.fixed


def test_what_has_no_rule_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return torch.special.bessel_j0(self.fc(x))

    _, x, y = model_and_examples()
    found = told(Odd().eval(), x, y, Method.of(STILL), (0.1,), (0.02,))
    assert set(found.certifies) == set(QUICK)
    assert all("bessel_j0" in why or "Linear" in why or "theorem" in why for why in found.certifies.values())
    assert "can be certified by: no bound" in str(found)
    assert "not by crown" in str(found)


# ---------------------------------------------------------------- a clock that the work itself turns on


@pytest.fixture
def now(monkeypatch):
    """Seconds, which only the test turns on."""
    seconds = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.fixture
def interval_costs(now, put_bound):
    """What interval bounds cost for each example; at radius 0 they cost nothing."""

    def slower(seconds):
        def bound(model, x, y, ball):
            now[0] += seconds * len(x) * (ball.eps_x > 0)
            return real(model, x, y, ball)

        real = put_bound("interval", bound)

    return slower


def costs(now, call, example):
    """An attack that finds nothing, and costs this for each call and each example."""

    def attack(model, x, y, ball, *, scope, start=None):
        now[0] += call + example * len(x)
        return Perturbation(x + 0, {}, scope)

    return Attack("costly", attack, starts=True)


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_the_time_is_that_of_the_work(scope, now):
    model, x, y = model_and_examples(300)
    method = Method.of(costs(now, 0.01, 0.001), scope, 64)
    columns, rows = (0.0, 0.05, 0.1, 0.2), (0.0, 0.02)
    groups = {"sample": 3, "batch": 5, "dataset": 1}[scope]
    attacked = 7 if scope == "sample" else 8  # there (0, 0) is not attacked
    work = (0.01 * groups + 0.001 * 300) * attacked
    found = told(model, x, y, method, columns, rows)
    assert found.parts["attack"] == pytest.approx(work, rel=0.3)
    low, high = found.interval
    assert low < work + REPORT < high
    half = told(model, x, y, method, columns, rows, workers=2).parts["attack"]
    shared = {"sample": 2 / 3, "batch": 3 / 5, "dataset": 5 / 8}[scope]  # whole groups, or what waits for its neighbours
    assert half == pytest.approx(shared * work, rel=0.3)


def test_what_is_lost_early_costs_nothing_later(now):
    """Half of the examples fall at the second radius: the others alone are attacked from there on."""
    model, x, y = model_and_examples(200)
    fragile = torch.arange(200) % 2 == 0

    def attack(model, x_, y_, ball, *, scope, start=None):
        now[0] += 0.01 * len(x_)
        return Perturbation(torch.where((ball.eps_x > 0.01) & (x_[:, :1] > 2), x_ + 0.0, x_), {}, scope)

    x = torch.where(fragile[:, None], x + 0.0, x)
    method, unit = Method.of(Attack("fragile", attack, starts=True)), JointBall(1.0, 1.0, None)
    right = told(model, x, y, method, (0.0, 0.05, 0.1), (0.0,), unit=unit)
    wrong = told(model, x, torch.where(fragile, (y + 1) % 3, y), method, (0.0, 0.05, 0.1), (0.0,), unit=unit)
    assert wrong.clean == 0.5
    assert wrong.parts["attack"] == pytest.approx(right.parts["attack"] / 2, rel=0.2)  # what is wrong undisturbed is not attacked


def test_the_time_of_certificates_is_added(now, interval_costs):
    """Nothing is certified far out: a walk from (last column, first row) along the border, one bound a step."""
    model, x, y = model_and_examples(300)
    interval_costs(0.002)
    method = Method.of(costs(now, 0.0, 0.001))
    columns, rows = tuple(0.1 * i for i in range(9)), tuple(0.05 * i for i in range(9))
    found = told(model, x, y, method, columns, rows, certify="interval")
    started = now[0]
    experiment.prove(Case.of(model, x, y), Grid(columns, rows, UNIT), BOUNDS["interval"])
    assert found.parts["certificates"] == pytest.approx(now[0] - started, rel=0.5)


def test_a_long_run_is_said_to_be_long_and_a_smaller_one_is_proposed(now):
    model, x, y = model_and_examples(300)
    found = told(model, x, y, Method.of(costs(now, 0.0, 10.0)), (0.0, 0.1), (0.0, 0.1))
    low, high = found.interval
    assert low < 10.0 * 300 * 3 < high
    assert now[0] < 60  # one example, at one point
    ((n, points),) = re.findall(r"--limit (\d+) takes about .*, and shows every accuracy to within (\d+) points", str(found))
    assert found.seconds * int(n) / 300 == pytest.approx(SOON, rel=0.3)
    assert 0.98 / int(n) ** 0.5 == pytest.approx(int(points) / 100, rel=0.2)  # at an accuracy of one half


# ---------------------------------------------------------------- in time, whatever is asked


def fails(send):
    send("first")
    raise ValueError("why")


def test_what_fails_elsewhere_is_raised_here():
    with pytest.raises(ValueError, match="why"):
        list(watched(fails, seconds=60))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(40, 4, generator=g)
    Path("m.py").write_text(
        "import time, torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()\n"
        "class Nap(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, z):\n        return z.clone()\n"
        "    @staticmethod\n    def backward(ctx, g):\n        time.sleep(3.0)\n        return g\n"
        "class Slow(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = net()\n"
        "    def forward(self, x):\n        return Nap.apply(self.net(x)) * (1 if x.sum().item() > -9 else 2)\n"
        "def slow():\n    return Slow().eval()\n"
    )
    import importlib.util

    spec = importlib.util.spec_from_file_location("m_here", "m.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    y = made.net()(x).argmax(1)
    np.savez("d.npz", x=x.numpy(), y=y.numpy())
    np.savez("shuffled.npz", x=x.numpy(), y=((y + 1) % 3).numpy())
    return tmp_path


def test_what_does_not_end_is_named(here, monkeypatch, capsys):
    """A network whose gradient takes three seconds: one example at one point takes longer than the time that there is."""
    monkeypatch.setattr(experiment, "LIMIT", 4.0)
    argv = [
        "evaluate",
        "m.py:slow",
        "--data",
        "d.npz",
        "--eps-x",
        "0:0.1:3",
        "--eps-w",
        "0:0.1:3",
        "--preflight",
        "--workers",
        "1",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "more than" in out
    assert "one example at one point of the grid did not end in time" in out


def test_a_run_begins_with_what_it_is_going_to_be(here, capsys):
    argv = ["evaluate", "m.py:net", "--data", "d.npz", "--eps-x", "0,0.1", "--eps-w", "0,0.01", "--workers", "1", "--out", "run"]
    assert main(argv) == 0
    assert "4 cells of the grid x 40 examples: about" in capsys.readouterr().err
    assert main(argv) == 0
    assert "cells of the grid" not in capsys.readouterr().err  # there is nothing left to do


@pytest.mark.slow
def test_certify_tells_too_and_counts_the_fronts(here, capsys):
    argv = ["certify", "m.py:net", "--data", "d.npz", "--eps-x", "0,0.1", "--eps-w", "0,0.01", "--workers", "1"]
    assert main([*argv, "--accuracy", "0.5", "--preflight"]) == 0
    captured = capsys.readouterr()
    assert "4 cells of the grid x 40 examples: about" in captured.out
    assert "0.weight: (8, 4), by 0.01" in captured.out
    assert "at first sight: about" in captured.err
    assert not Path("runs").exists()
    assert main([*argv, "--preflight", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["interval"]
    assert 0 < low < found["seconds"] < high
    assert (found["cells"], found["examples"], found["clean_accuracy"], found["doubts"]) == (4, 40, 1.0, [])
    plan = experiment.Certified(experiment.CertifySettings(model="m.py:net", data="d.npz", accuracy=(0.5,))).plan(1)
    assert preflight(plan, looked_at(plan.case, plan.grid.unit), []).parts["certificates"] > 0


# ---------------------------------------------------------------- radii that were not given


def test_without_radii_a_grid_is_chosen_said_and_kept(here, capsys, caplog):
    import yaml

    with caplog.at_level(logging.INFO, logger="nonsingular"):
        assert main(["evaluate", "m.py:net", "--data", "d.npz", "--workers", "1", "--quiet", "--out", "run"]) == 0
    (said,) = [r.getMessage() for r in caplog.records if "not given" in r.getMessage()]
    held = yaml.safe_load(Path("run/config.yaml").read_text())
    spread = float(np.sqrt(np.load("d.npz")["x"].var(0).mean()))
    assert held["eps_x"][0] == 0 and held["eps_x"][-1] == pytest.approx(spread / 5, rel=0.5)
    assert held["relative"] is True and held["eps_w"][1] == pytest.approx(1 / 127 / 2, rel=0.05)  # half a step of int8
    assert f"--eps-x {','.join(f'{r:g}' for r in held['eps_x'])}" in said
    assert f"--relative --eps-w {','.join(f'{r:g}' for r in held['eps_w'])}" in said
    assert main(["evaluate", "m.py:net", "--data", "d.npz", "--workers", "1", "--quiet", "--out", "run"]) == 0  # goes on there
    Path("again.yaml").write_text(Path("run/config.yaml").read_text())
    assert main(["evaluate", "--config", "again.yaml", "--workers", "1", "--quiet", "--out", "run"]) == 0


def test_what_was_given_is_kept(here):
    given = experiment.EvaluateSettings(model="m.py:net", data="d.npz", eps_x=(0.0, 0.3))
    job = experiment.Attacked(given)
    assert job.grid.eps_x == (0.0, 0.3) and job.settings.relative and "--eps-x" not in str(job.proposed)
    given = experiment.EvaluateSettings(model="m.py:net", data="d.npz", eps_w=(0.0, 0.3))
    job = experiment.Attacked(given)
    assert job.grid.eps_w == (0.0, 0.3) and not job.settings.relative and "--eps-w" not in str(job.proposed)


def test_in_python_the_error_proposes_numbers():
    import nonsingular as ns

    model, x, y = model_and_examples()
    for call in (ns.evaluate, ns.certified_surface):
        with pytest.raises(
            ns.InvalidInput, match=r"eps_x and eps_w not given; e.g. eps_x=\[0.0, 0.0.*eps_w=\[0.0, 0.004.*relative=True"
        ):
            call(model, (x, y))
        with pytest.raises(ns.InvalidInput, match=r"^eps_w not given; e.g. eps_w="):
            call(model, (x, y), eps_x=0.1)


# ---------------------------------------------------------------- doubts stand beside the numbers


def test_labels_of_another_network_are_doubted_everywhere(here, capsys):
    grid = ["--eps-x", "0,0.1", "--eps-w", "0,0.01", "--workers", "1"]
    argv = ["evaluate", "m.py:net", "--data", "shuffled.npz", *grid, "--certify", "interval", "--out", "run"]
    doubt, sent = "no better than chance", []
    experiment._preflight(
        sent.append, experiment.EvaluateSettings(model="m.py:net", data="shuffled.npz").model_dump_json(), False, 1
    )
    lines = str(sent[1]).splitlines()[1:]  # the first says which radii were chosen
    assert lines[0] == "clean accuracy: 0.0 % of 40 examples"
    assert lines[1].startswith("warning: the model is right for 0.0 % of 40 examples") and doubt in lines[1]
    assert main([*argv, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(doubt) == 1
    page = Path("run/report.html").read_text()
    beside = page[page.index('class="verdict"') : page.index("<h2")]
    assert '<p class="warn">' in beside and doubt in beside
    text = Path("run/report.md").read_text()
    assert text.index(doubt) < text.index("| Model")
    assert main([*argv, "--json"]) == 0
    surface = json.loads(capsys.readouterr().out)
    assert doubt in surface["about"]["doubts"][0] and surface["certified"]["about"]["doubts"] == surface["about"]["doubts"]
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.count(doubt) == 1


def test_a_certified_run_and_python_carry_their_doubts_too(here, caplog):
    import nonsingular as ns

    grid = ["--eps-x", "0,0.1", "--eps-w", "0,0.01", "--workers", "1", "--quiet"]
    assert main(["certify", "m.py:net", "--data", "shuffled.npz", *grid, "--out", "run"]) == 0
    (model,) = json.loads(Path("run/results.json").read_text())["models"].values()
    assert "no better than chance" in model["surfaces"][0]["about"]["doubts"][0]
    net, x, y = model_and_examples()
    assert "no better" in ns.evaluate(net, (x, (y + 1) % 3), eps_x=[0.0], eps_w=[0.0]).about["doubts"][0]
    assert ns.evaluate(net, (x, y), eps_x=[0.0], eps_w=[0.0]).about["doubts"] == []
