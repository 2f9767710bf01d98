"""Efforts: sweeps over the grid from large balls to small ones and back, each of which goes on from the one before."""

import itertools
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch

from nonsingular.attacks.shared_apgd import _rise, shared_apgd
from nonsingular.attacks.strongest import strongest
from nonsingular.catalog import Attack, declared
from nonsingular.errors import InvalidInput
from nonsingular.evaluation.attacked import evaluate
from nonsingular.evaluation.effort import EFFORTS, TOGETHER
from nonsingular.network.calling import logits_at
from nonsingular.network.margins import is_correct
from nonsingular.results.files import Log
from nonsingular.threat.ball import JointBall
from nonsingular.threat.perturbation import Perturbation
from test_nested import model_and_examples

GRID = {"eps_x": (0.0, 0.05, 0.1, 0.2), "eps_w": (0.0, 0.02, 0.05, 0.1)}


@pytest.mark.parametrize("scope", [pytest.param("batch", marks=pytest.mark.slow), "dataset"])
def test_more_effort_never_leaves_more_right(scope):
    model, x, y = model_and_examples("dense")
    radii = {"eps_x": (0.0, 0.1), "eps_w": (0.0, 0.02, 0.05)}
    quick, standard, thorough = (
        evaluate(model, (x, y), **radii, scope=scope, batch_size=30, effort=effort) for effort in EFFORTS
    )
    assert (standard.accuracy <= quick.accuracy).all()
    assert (thorough.accuracy <= standard.accuracy).all()
    assert not quick.rises and not standard.rises and not thorough.rises
    assert [s.about["effort"] for s in (quick, standard, thorough)] == list(EFFORTS)
    assert "effort quick" in str(quick)


def test_in_scope_sample_thorough_breaks_all_that_standard_breaks():
    model, x, y = model_and_examples("dense", 12)
    radii = {"eps_x": (0.02, 0.05), "eps_w": (0.02, 0.05)}
    quick, standard, thorough = (evaluate(model, (x, y), **radii, effort=effort).outcomes for effort in EFFORTS)
    assert (thorough <= standard).all()
    assert quick.sum() >= standard.sum()


def test_the_function_of_an_attack_walks_over_the_grid_as_its_name_does():
    assert declared(strongest).budget
    assert not declared(partial(strongest, steps=3)).budget  # its own settings stay
    model, x, y = model_and_examples("dense")
    radii = {"eps_x": (0.0, 0.1), "eps_w": (0.0, 0.02, 0.05), "scope": "dataset"}
    named, given = (evaluate(model, (x, y), **radii, attack=attack) for attack in ("strongest", strongest))
    assert (named.outcomes == given.outcomes).all()


def test_an_unknown_effort_is_refused():
    with pytest.raises(InvalidInput, match="there is no effort 'much'; choose one of quick, standard, thorough"):
        evaluate(*model_and_examples("dense")[:1], model_and_examples("dense")[1:], eps_x=0.1, eps_w=0.1, effort="much")


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_the_gradient_of_the_loss_is_that_of_autograd(size):
    logits = (size * torch.randn(200, 7, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y = torch.arange(200) % 7
    exact = logits.double()
    (g,) = torch.autograd.grad((exact / 0.3).softmax(1).gather(1, y[:, None]).sum(), [logits])
    found = _rise(logits.detach(), y, 0.3)
    torch.testing.assert_close(found, g, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("radii", [(0.1, 0.05), (0.0, 0.05), (0.1, 0.0)])
def test_no_run_ends_above_its_start(radii):
    model, x, y = model_and_examples("dense", 200)
    ball = JointBall(*radii)
    point = None
    counts = list[int]()
    for explore in (True, False, True):
        point = shared_apgd(model, x, y, ball, start=point, explore=explore, steps=2)
        counts.append(int(is_correct(logits_at(model, point), y).sum()))
    assert counts == sorted(counts, reverse=True)


def test_the_way_back_finds_what_small_balls_miss():
    """What is found in a large ball, shrunk, is a start in the smaller one."""
    model, x, y = model_and_examples("dense", 40)
    seen = defaultdict(list)

    def counting(model, x, y, ball, *, scope, start=None, explore=True, steps=4):
        point = strongest(model, x, y, ball, scope=scope, start=start, explore=explore, steps=steps)
        begun = len(y) if start is None else int(is_correct(logits_at(model, start), y).sum())
        seen[ball.eps_x].append((begun, start is None, explore))
        return point

    attack = Attack("counting", counting, starts=True, budget=True)
    found = evaluate(model, (x, y), eps_x=(0.05, 0.1, 0.2), eps_w=(0.05,), scope="dataset", attack=attack)
    assert seen[0.2][0][1] and not seen[0.05][0][1]  # the largest ball is the first, and the only one without a start
    assert [explore for _, _, explore in seen[0.1]][:1] == [False]  # every second column explores
    assert (np.diff(found.accuracy[0]) <= 0).all()
    # what each cell begins from in the first sweep is no worse than what it is when nothing moves
    assert all(begun <= len(y) for cell in seen.values() for begun, *_ in cell)


def weak(model, x, y, ball, *, scope, start=None, explore=True, steps=4):
    """Does nothing in a few steps, and breaks six examples more in many."""
    now = x.clone() if start is None else start.x.clone()
    if steps > 4:
        right = is_correct(logits_at(model, Perturbation(now)), y).nonzero().flatten()[:6]
        now[right] = ball.input_box(x).project_(1 - x)[right]
    return Perturbation(now, {}, scope)


def test_what_a_longer_attack_still_finds_is_said(tmp_path):
    """Of 25 cells one is tried: the number is in the record, a doubt says it, and a second run takes both from the log."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.ones(9), -torch.ones(9)]))
        model[1].bias.copy_(torch.tensor([-4.5, 4.5]))
    x = torch.rand(60, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    y, grid = model(x).argmax(1), {"eps_x": (0.96, 0.97, 0.98, 0.99, 1.0), "eps_w": (0.0, 0.01, 0.02, 0.03, 0.04)}
    attack = Attack("weak", weak, starts=True, budget=True)
    found = evaluate(model, (x, y), **grid, scope="dataset", attack=attack, log=tmp_path / "log")
    (left,) = found.about["left"]
    assert left["points"] == pytest.approx(10) and left["eps_w"] > 0
    (doubt,) = (d for d in found.about["doubts"] if "to be had" in d)
    assert "about 10.0 points" in doubt and f"({left['eps_x']:g}, {left['eps_w']:g})" in doubt
    entries = (tmp_path / "log").read_bytes()
    again = evaluate(model, (x, y), **grid, scope="dataset", attack=attack, log=tmp_path / "log")
    assert again.about == found.about and (tmp_path / "log").read_bytes() == entries


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_where_no_weight_moves_a_shared_w_is_no_excuse(scope):
    """At eps_w = 0 all scopes are one question: what finds more in scope sample is used where W' is shared, too."""
    model, x, y = model_and_examples("dense", 200)
    radii = {"eps_x": (0.0, 0.05, 0.1, 0.2), "eps_w": (0.0,)}
    shared, own = (evaluate(model, (x, y), **radii, scope=s, batch_size=100) for s in (scope, "sample"))
    assert (shared.accuracy <= own.accuracy + 0.005).all()  # one example
    ball = JointBall(0.1, 0.0)
    only = shared_apgd(model, x, y, ball, explore=False)
    assert (
        is_correct(logits_at(model, shared_apgd(model, x, y, ball, start=only)), y) <= is_correct(logits_at(model, only), y)
    ).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize("calls", [3, 20, 26])
def test_a_run_that_stops_in_any_sweep_goes_on_to_the_same_bits(calls, tmp_path):
    model, x, y = model_and_examples("dense", 80)
    left = itertools.count()
    limit = [calls]

    def stopping(model, x, y, ball, *, scope, start=None, explore=True, steps=4):
        if next(left) == limit[0]:
            raise Stop
        return strongest(model, x, y, ball, scope=scope, start=start, explore=explore, steps=steps)

    attack = Attack("stopping", stopping, starts=True, budget=True)
    options = {**GRID, "scope": "dataset", "attack": attack}
    (tmp_path / "cut").mkdir()
    log = tmp_path / "cut" / "log"
    with pytest.raises(Stop):
        evaluate(model, (x, y), **options, log=log)
    before = sum(1 for _ in Log(log))
    limit[0] = -1
    again = evaluate(model, (x, y), **options, log=log)
    (tmp_path / "whole").mkdir()
    whole = evaluate(model, (x, y), **options, log=tmp_path / "whole" / "log")
    assert 0 < before < 16 * len(TOGETHER["standard"])
    np.testing.assert_array_equal(again.outcomes, whole.outcomes)
    assert sum(1 for _ in Log(log)) == sum(1 for _ in Log(tmp_path / "whole" / "log")) == 32  # nothing is done twice

    def margins(path):
        return {(e["key"], c["eps_x"], c["eps_w"]): c["margins"] for e in Log(path) for c in e["cells"]}

    assert margins(log) == margins(tmp_path / "whole" / "log")


def test_a_standard_surface_is_near_a_long_run():
    """On this network the attack that walked once, with 4 steps a cell, was up to 15 points above the same run with 80."""
    model, x, y = model_and_examples("dense", 200)
    standard = evaluate(model, (x, y), **GRID, scope="dataset")
    for i, j in ((1, 1), (2, 1), (2, 2), (3, 1)):
        ball = JointBall(GRID["eps_x"][j], GRID["eps_w"][i])
        point = shared_apgd(model, x, y, ball, steps=80)
        right = is_correct(logits_at(model, point), y).double().mean().item()
        assert standard.accuracy[i, j] <= right + 0.01
    assert torch.is_grad_enabled()
