"""Bits needed for each tensor: no rounding breaks what is certified, and no tensor has a bit too many."""

import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.faults.uniform import UniformRounding
from nonsingular.threat.ball import JointBall


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(40, 6)
    return model, x, model(x).argmax(1)


def box(model, bits, eps_x):
    weights = dict(model.named_parameters())
    radii = {n: r for name, b in bits.items() for n, r in UniformRounding(b).radii({name: weights[name]}).items()}
    return JointBall(eps_x, radii)


@pytest.mark.parametrize("eps_x", [0.0, 0.01])
def test_a_thousand_roundings_break_nothing_that_is_certified(case, eps_x):
    model, x, y = case
    found = ns.bits_needed(model, x, y, accuracy=0.6, eps_x=eps_x)
    assert 0.6 <= found.accuracy < 1, "nothing that can break says nothing"
    generator = torch.Generator().manual_seed(1)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    steps = {n: w.abs().max() / (2 ** (found.bits[n] - 1) - 1) for n, w in weights.items() if n in found.bits}
    for k in range(1000):
        away = {n: torch.rand(weights[n].shape, generator=generator) - 0.5 for n in steps}
        if k % 2:  # to the ends
            away = {n: t.sign() / 2 for n, t in away.items()}
        moved = {n: w + (away[n] * steps[n] if n in steps else 0) for n, w in weights.items()}
        inputs = (x + eps_x * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        assert (torch.func.functional_call(model, moved, (inputs,)).argmax(1) == y)[found.verified].all()
    stored = ns.quantize(model, found.bits)
    assert (stored(x).argmax(1) == y)[found.verified].all()
    for name, words in stored.words.items():
        assert words.abs().max() == 2 ** (found.bits[name] - 1) - 1


def test_no_tensor_has_a_bit_too_many(case):
    model, x, y = case
    found = ns.bits_needed(model, x, y, accuracy=0.7)
    assert ns.certify(model, x, y, box(model, found.bits, 0.0), bound="crown").verified.equal(found.verified)
    for name, b in found.bits.items():
        fewer = {**found.bits, name: b - 1}
        assert b == 2 or ns.certify(model, x, y, box(model, fewer, 0.0), bound="crown").accuracy < 0.7
    alike = dict.fromkeys(found.bits, found.uniform)
    assert ns.certify(model, x, y, box(model, alike, 0.0), bound="crown").accuracy >= 0.7
    less = dict.fromkeys(found.bits, found.uniform - 1)
    assert ns.certify(model, x, y, box(model, less, 0.0), bound="crown").accuracy < 0.7
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert found.total == sum(b * sizes[n] for n, b in found.bits.items()) <= found.total_uniform
    assert found.total_uniform == found.uniform * sum(sizes[n] for n in found.bits)


def test_more_accuracy_needs_more_bits_and_bad_settings_are_said(case):
    model, x, y = case
    some, most = (ns.bits_needed(model, x, y, accuracy=a).uniform for a in (0.3, 0.9))
    assert some < most
    everything = ns.bits_needed(model, x, y, accuracy=0.3, moves="all", per_channel=True)
    assert everything.bits.keys() == dict(model.named_parameters()).keys()
    for settings, said in (
        ({"accuracy": 1.5}, "above 0 and at most 1"),
        ({"most": 1}, "from 2 to 16"),
        ({"accuracy": 1.0, "most": 3}, "with 3 bits"),
        ({"accuracy": 0.5, "eps_x": 0.5}, "with 16 bits"),
    ):
        with pytest.raises(ns.InvalidInput, match=said):
            ns.bits_needed(model, x, y, **settings)
    for bits, said in (
        ({"0.weight": 4}, "none for 2.weight"),
        (dict.fromkeys(("0.weight", "2.weight", "4.weight", "a"), 4), "names a"),
    ):
        with pytest.raises(ns.InvalidInput, match=said):
            ns.quantize(model, bits)
