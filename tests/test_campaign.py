"""Campaigns on simulated chips: against a loop of ten lines, and what follows from the definition of each number."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import nonsingular as ns
import nonsingular.evaluation.campaign as campaigns
from nonsingular.results.files import Log
from nonsingular.results.statistics import binomial_tail, clopper_pearson

RATES = (0.0, 0.005, 0.05)
QUICK = partial(ns.apgd, steps=4, restarts=0, targets=1, keep=0)


@pytest.fixture(scope="module")
def case():
    data = ns.load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    return ns.train(model, data, epochs=6, lr=0.01).model.eval(), data.test.x[:60], data.test.y[:60]


def test_accuracies_are_those_of_a_loop(case):
    model, x, y = case
    found = ns.campaign(model, (x, y), rates=RATES, chips=5, seed=3)
    weights = dict(model.named_parameters())
    for i, rate in enumerate(RATES):
        for c in range(5):
            flipped = ns.BitErrors(rate)(weights, torch.Generator().manual_seed(3 + c))
            right = torch.func.functional_call(model, flipped, (x,)).argmax(1) == y
            assert found.after[i, 0, c] == pytest.approx(right.double().mean().item())
    assert found.chips == (3, 4, 5, 6, 7) and found.n == 60 and found.before is None
    rounded = ns.quantize(model)
    assert np.allclose(found.after[0], (rounded(x).argmax(1) == y).double().mean().item())
    assert found.clean == pytest.approx((model(x).argmax(1) == y).double().mean().item())
    assert (found.counts["errors"][0] == 0).all() and (np.diff(found.counts["errors"], axis=0) > 0).all()
    assert (found.counts["bits"] == 8 * (64 * 24 + 240)).all()
    assert found.mean()[0] > found.mean()[2] + 0.05 and found.spread()[0] == 0 < found.spread()[2]
    assert (found.worst() <= found.mean()).all() and (found.every <= found.worst()).all()


def test_inputs_after_and_before_the_fault(case):
    model, x, y = case
    found = ns.campaign(
        model, (x[:30], y[:30]), rates=(0.0, 0.02), chips=3, eps_x=(0.0, 0.05, 0.1), draws=2, attack=QUICK
    )  # fmt: skip
    assert (np.diff(found.after, axis=1) <= 0).all() and (np.diff(found.every, axis=1) <= 0).all()
    assert (found.before[:, 0] == found.after[:, 0]).all()  # no radius: the same inputs
    assert found.before.mean() > found.after.mean()  # who knows the chip breaks more
    surface = ns.evaluate(ns.quantize(model), (x[:30], y[:30]), eps_x=[0.1], eps_w=[0.0], attack=QUICK)
    assert found.after[0, 2, 0] == pytest.approx(surface.accuracy[0, 0], abs=1 / 30)
    assert found.about["attack"].startswith("apgd(") and found.about["fault"]["storage"]["bits"] == 8


def test_a_campaign_goes_on_from_its_log_and_its_record_comes_back(case, tmp_path, monkeypatch):
    model, x, y = case
    log, settings = tmp_path / "events.jsonl", {"rates": RATES, "eps_x": (0.0, 0.03), "draws": 1, "attack": QUICK}
    ns.campaign(model, (x[:10], y[:10]), chips=2, log=log, **settings)
    ran = []
    alone = campaigns.chip_alone
    monkeypatch.setattr(campaigns, "chip_alone", lambda *a: ran.append(a[2]) or alone(*a))
    more = ns.campaign(model, (x[:10], y[:10]), chips=4, log=log, **settings)
    assert ran == [2, 3]
    whole = ns.campaign(model, (x[:10], y[:10]), chips=4, **settings)
    assert json.dumps(more.to_dict()) == json.dumps(whole.to_dict())
    ran.clear()
    ns.campaign(model, (x[:10], y[:10]), chips=2, log=log, **settings | {"draws": 0})  # another question
    assert ran == [0, 1]
    back = ns.Campaign.from_dict(json.loads(json.dumps(more.to_dict())))
    assert back.lines(0.5) == more.lines(0.5) and len(back.lines()) == 6
    for spoil in ({"after": [[1.0]]}, {"every": "x"}, {"clean": None}, {"counts": {}}):
        with pytest.raises(ns.InvalidInput, match="no record of a campaign"):
            ns.Campaign.from_dict(more.to_dict() | spoil)
    text = log.read_text().splitlines()
    entry = json.loads(text[0])["entry"]
    bad = Log(tmp_path / "bad.jsonl")
    bad.append(entry | {"right": "AAAA"})
    with pytest.raises(ns.InvalidInput, match="holds no chips"):
        ns.campaign(model, (x[:10], y[:10]), chips=2, log=bad.path, **settings)


def test_faults_without_a_rate_and_values_that_are_not_finite(case):
    model, x, y = case
    exact = ns.campaign(model, (x, y), fault="uniform", chips=2)
    assert exact.rates == (None,) and (exact.after[..., 0] == exact.after[..., 1]).all()
    wild = ns.campaign(model, (x, y), fault=ns.BitErrors(0.05, ns.FloatFormat("float16")), chips=3)
    assert wild.counts["not_finite"].sum() > 0
    assert (wild.unseen <= 1 - wild.after + 1e-12).all() and wild.unseen.sum() < (1 - wild.after).sum()  # NaN is seen


def test_shares_of_chips_with_their_interval(case):
    model, x, y = case
    found = ns.campaign(model, (x, y), rates=(0.05,), chips=8)
    share, low, high = found.share(0.7)
    good = int((found.after >= 0.7).sum())
    assert share == good / 8 and (low, high) == pytest.approx(clopper_pearson(good, 8))
    # by hand: 10 of 10, one-sided 2.5 %: p^10 = 0.025
    assert clopper_pearson(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert clopper_pearson(0, 4) == (0.0, pytest.approx(1 - 0.025 ** (1 / 4)))
    low, high = clopper_pearson(3, 20)  # as the tables have it
    assert (round(low, 4), round(high, 4)) == (0.0321, 0.3789)
    assert binomial_tail(2, 3, 0.5) == pytest.approx(0.5) and binomial_tail(1, 1000, 1e-3) == pytest.approx(1 - 0.999**1000)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"fault": "bits"}, "there is no fault 'bits'; choose one of uniform"),
        ({"fault": 3}, "fault is 3"),
        ({"fault": "uniform", "rates": (0.1,)}, "has no rate"),
        ({"rates": (0.1, 0.01)}, "in rising order"),
        ({"rates": (2.0,)}, "rate is 2.0"),
        ({"eps_x": ()}, "eps_x is"),
        ({"chips": 0}, "chips is 0"),
        ({"draws": -1}, "draws is -1"),
        ({"eps_x": 0.1, "attack": "corners"}, "does not move inputs"),
        ({"domain": (0.0, 0.1)}, "outside the domain"),
    ],
)
def test_what_cannot_be_is_refused(case, settings, said):
    model, x, y = case
    with pytest.raises(ns.InvalidInput, match=said):
        ns.campaign(model, (x, y), **{"chips": 2} | settings)
