"""What is said before a run: what moves, by hand; what cannot be certified, by name; a time that follows the work."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nonsingular import preflight as module
from nonsingular.cli import main
from nonsingular.evaluation import choose
from nonsingular.preflight import preflight
from nonsingular.threat import Perturbation


def setting(n=30):
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.rand(n, 4, generator=g)
    return model, x, model(x).argmax(1)


def test_what_moves_is_counted():
    model, x, y = setting()
    found = preflight(model, x, y, choose(model, attack="paper"), (0.0, 0.1), (0.0, 0.02))
    assert found.numbers == 4 * 5 + 5 * 3
    assert found.moved["0.weight"]["shape"] == [5, 4]
    assert found.moved["0.weight"]["radius"] == pytest.approx(0.02)
    assert found.fixed == ("0.bias", "2.bias")
    assert (found.cells, found.examples) == (4, 30)
    assert "35 numbers" in str(found)
    everything = preflight(model, x, y, choose(model, attack="paper", moves="all"), (0.1,), (0.02,))
    assert everything.numbers == 35 + 8
    assert not everything.fixed


def test_what_has_no_rule_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return torch.special.bessel_j0(self.fc(x))

    _, x, y = setting()
    found = preflight(Odd().eval(), x, y, choose(Odd(), attack="paper"), (0.1,), (0.02,))
    assert set(found.certifies) == set(module.QUICK)
    assert all("bessel_j0" in why or "Linear" in why or "theorem" in why for why in found.certifies.values())
    assert "can be certified by: no bound" in str(found)
    assert "not by crown" in str(found)


@pytest.mark.parametrize("scope", ["sample", "batch", "dataset"])
def test_the_time_is_that_of_the_work(scope, monkeypatch):
    """A clock that an attack turns on by 0.01 s for each example."""
    model, x, y = setting(300)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def attack(model, x, y, ball, *, scope, start=None):
        now[0] += 0.01 * len(x)
        return Perturbation(x + 0, {}, scope)

    found = preflight(model, x, y, choose(model, attack=attack, scope=scope, batch_size=64), (0.0, 0.05, 0.1, 0.2), (0.0, 0.02))
    attacked = 7 if scope == "sample" else 8  # there (0, 0) is not attacked
    assert found.seconds == pytest.approx(0.01 * 300 * attacked, rel=0.25)
    half = preflight(
        model, x, y, choose(model, attack=attack, scope=scope, batch_size=64), (0.0, 0.05, 0.1, 0.2), (0.0, 0.02), workers=2
    )
    assert half.seconds == pytest.approx(found.seconds / 2)


def test_the_time_of_certificates_is_added(monkeypatch):
    model, x, y = setting(300)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def attack(model, x, y, ball, *, scope):
        now[0] += 0.01 * len(x)
        return Perturbation(x + 0, {}, scope)

    def prove(model, x, *args):
        now[0] += 0.03 * len(x)

    monkeypatch.setattr(module, "prove", prove)
    method = choose(model, attack=attack)
    alone = preflight(model, x, y, method, (0.05, 0.1), (0.02,)).seconds
    assert alone == pytest.approx(0.01 * 300 * 2)
    assert preflight(model, x, y, method, (0.05, 0.1), (0.02,), certify="crown").seconds == pytest.approx(alone + 0.03 * 300)


def test_it_is_told_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "digits", "--epochs", "1", "--hidden", "8", "--quiet", "--out", "net"]) == 0
    argv = ["evaluate", "net", "--eps-x", "0,0.1", "--eps-w", "0,0.01", "--limit", "20", "--workers", "1", "--out", "run"]
    capsys.readouterr()
    assert main([*argv, "--preflight"]) == 0
    out = capsys.readouterr().out
    assert "4 cells of the grid x 20 examples" in out
    assert "1.weight: (8, 64), by 0.01" in out
    assert not Path("run").exists()
    assert main(argv) == 0
    assert "4 cells of the grid x 20 examples" in capsys.readouterr().err
    assert main(argv) == 0
    assert "cells of the grid" not in capsys.readouterr().err  # there is nothing left to do
