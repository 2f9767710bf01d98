"""Certificates at a bit error rate: by hand, and against many chips."""

import math

import pytest
import torch
from torch import nn

import nonsingular as ns


def made():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    model[2].bias.data[0] += 1
    x = torch.rand(12, 5)
    return model, x, ns.quantize(model, 4)(x).argmax(1)


def test_by_hand():
    model, x, y = made()
    found = ns.certify_rate(model, x, y, rate=0.01, bits=4, flips=2)
    n = 4 * (5 * 6 + 6 * 3)
    terms = [math.comb(n, k) * 0.01**k * 0.99 ** (n - k) for k in range(3)]
    assert found.bits == n and found.probability == pytest.approx([sum(terms[: k + 1]) for k in range(3)])
    assert found.accuracy[0] == 1.0 and found.accuracy[1] == ns.certify_flips(model, x, y, bits=4).accuracy
    assert found.mean == pytest.approx(sum(t * a for t, a in zip(terms, found.accuracy, strict=True)))
    assert found.at(0.1) == 1.0 and found.at(0.5) == found.accuracy[2] and found.at(0.999) == 0.0
    assert 0 < found.accuracy[2] <= found.accuracy[1]


def test_as_many_chips_reach_it_as_is_proven():
    model, x, y = made()
    found = ns.certify_rate(model, x, y, rate=0.003, bits=4, flips=1)
    chips = ns.campaign(
        model, (x, y), fault=ns.BitErrors(0.003, ns.UniformRounding(4)), chips=300
    )  # fmt: skip
    for accuracy, probability in zip(found.accuracy, found.probability, strict=True):
        share = chips.share(accuracy - 1e-9)[0][0, 0]
        assert share >= probability - 4 * math.sqrt(0.25 / 300)
    assert chips.mean()[0, 0] >= found.mean - 0.03
    near = ns.certify_rate(model, x, y, rate=0.003, bits=4, flips=1, eps_x=0.05)
    assert near.accuracy[0] <= 1 and near.accuracy[1] <= found.accuracy[1]


@pytest.mark.parametrize("settings, said", [({"rate": 2}, "rate is 2"), ({"rate": 0.1, "flips": -1}, "flips is -1")])
def test_what_cannot_be_is_refused(settings, said):
    model, x, y = made()
    with pytest.raises(ns.InvalidInput, match=said):
        ns.certify_rate(model, x, y, **settings)
    with pytest.raises(ns.InvalidInput, match="confidence is 1"):
        ns.RateCertificate(0.1, 8, (1.0,), (0.5,)).at(1)
