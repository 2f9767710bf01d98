"""Verdicts over flipped bits: against every set by brute force, random inputs, and the words flipped one by one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import nonsingular as ns
from nonsingular.bounds.flip_layers import layer_boxes, layer_margins
from nonsingular.bounds.flips import slots_of
from nonsingular.bounds.linear import hidden_bounds
from nonsingular.certificates.flips import stored_network
from nonsingular.faults.words import Flip
from nonsingular.network.margins import margins, worst_margin
from test_flips import least, net, sampled


def replayed(model, found, i, bits, moves):
    """Logits of one example with the flips and the input of its verdict, made here in the words of the rounded module."""
    made = ns.quantize(copy.deepcopy(model).double(), bits, moves=moves)
    steps = {n: p.detach().double().abs().max() / (2 ** (bits - 1) - 1) for n, p in model.named_parameters()}
    weights = dict(made.named_parameters())
    for flip in found.flips[i]:
        word = made.words[flip.name].view(-1)
        old = int(word[flip.index]) % 2**bits
        new = old ^ (1 << flip.bit)
        word[flip.index] = new - 2**bits if new >= 2 ** (bits - 1) else new
        weights[flip.name].data.view(-1)[flip.index] = word[flip.index] * steps[flip.name]
    for name, w in found.perturbation.weights.items():
        torch.testing.assert_close(w[i], weights[name].detach())
    return made(found.perturbation.x[i : i + 1])


def check(model, x, y, found, truth, *, bits, flips, eps_x=0.0, moves="weights"):
    """truth: (B, K) least margins: of all sets and inputs at eps_x = 0, else of some."""
    worst = worst_margin(truth, y)
    assert bool((found.lower <= truth + 1e-9).all())
    for i, status in enumerate(found.status):
        logits = replayed(model, found, i, bits, moves)
        assert found.upper[i].item() == pytest.approx(worst_margin(logits[:, y[i]] - logits, y[i : i + 1]).item(), abs=1e-9)
        assert len({*found.flips[i]}) == len(found.flips[i]) <= flips
        assert bool(((found.perturbation.x[i] - x[i]).abs() <= eps_x + 1e-7).all())
        assert (status == "falsified") == (logits.argmax() != y[i]).item()
        assert status != "verified" or (worst[i] > 0 and bool(worst_margin(found.lower, y)[i] > 0))
        assert eps_x > 0 or (status == "verified") == bool(worst[i] > 0)


@pytest.mark.parametrize(
    "name, bits, flips, apart",
    [
        ("dense", 2, 1, 0.5), ("smooth", 3, 1, 1.0), ("conv", 2, 1, 0.0), ("pool", 3, 1, 0.5), ("residual", 3, 1, 0.0),
        ("parts", 2, 1, 2.0), ("dense", 2, 2, 0.5), ("smooth", 2, 2, 1.0),
    ],
)  # fmt: skip
def test_at_one_input_every_set_is_decided(name, bits, flips, apart):
    model, shape = net(name, 0, apart)
    x = torch.rand(2, *shape)
    x[1, ..., 0] = 0.0
    y = ns.quantize(model, bits)(x).argmax(1)
    truth = least(model, x, y, bits, flips, "weights").detach()
    told = []
    found = ns.decide_flips(model, x, y, bits=bits, flips=flips, report=told.append)
    assert told == [1, 1] and bool((found.parts >= 0).all())
    check(model, x, y, found, truth, bits=bits, flips=flips)


@pytest.mark.parametrize(
    "name, flips, eps_x", [("dense", 1, 0.3), ("conv", 1, 0.2), ("residual", 1, 0.1), ("dense", 2, 0.1), ("parts", 2, 0.05)]
)
def test_with_inputs_in_a_box(name, flips, eps_x):
    model, shape = net(name, 1, 2.0)
    x = torch.rand(2, *shape)
    y = ns.quantize(model, 3)(x).argmax(1)
    truth = sampled(model, x, y, 3, flips, "weights", 200, eps_x)
    found = ns.decide_flips(model, x, y, bits=3, flips=flips, eps_x=eps_x, seconds=20)
    assert "timeout" not in found.status
    check(model, x, y, found, truth.detach(), bits=3, flips=flips, eps_x=eps_x)
    proven = ns.certify_flips(model, x, y, bits=3, flips=flips, eps_x=eps_x).verified
    assert all(status == "verified" for status, one in zip(found.status, proven.tolist(), strict=True) if one)


@pytest.mark.parametrize("name", ["dense", "smooth", "conv", "residual", "parts"])
def test_bounds_layer_by_layer(name):
    model, shape = net(name, 2)
    x, eps_x = torch.rand(2, *shape), 0.125
    y = ns.quantize(model, 3)(x).argmax(1)
    stored = stored_network(model, x, y, ns.JointBall(eps_x, 0.0, (0, 1)), ns.UniformRounding(3))
    where = stored.where(x.double(), y)
    slots = slots_of(where.graph, stored.changes, 1)
    with torch.no_grad():
        still = hidden_bounds(where)
        found, wider = layer_margins(where, slots, y, still), layer_boxes(where, slots, still)
        corners = (x.double() + eps_x * torch.randn(3, *x.shape).sign()).clamp(0, 1)
        truth = torch.stack([least(model, at, y, 3, 1, "weights") for at in (x, *corners)]).amin(0)
        assert bool((found.low <= truth + 1e-9).all())
        changes = [(n, k, t) for n, d in stored.changes.items() for k in range(3) for t in range(d[0].numel())]
        for n, k, t in changes[:: max(1, len(changes) // 20)]:
            bit = stored.flipped([Flip(n, t, k)])
            graph = replace(where.graph, params={**where.graph.params, **bit})
            group = t // (stored.changes[n][0, 0].numel() if stored.changes[n].dim() > 2 else 1)
            at = next(i for i, slot in enumerate(slots) if slot.name == n)
            for points in (x.double(), *corners):
                values = graph.values(points)
                assert bool((found.of[at][..., group] <= margins(values[-1], y) + 1e-9).all())
                for slot in slots:
                    z, box = values[slot.node.inputs[0]], wider[slot.node.inputs[0]]
                    assert bool(((z >= box.lo - 1e-9) & (z <= box.hi + 1e-9)).all())


def test_biases_and_scales_may_flip():
    model, shape = net("parts", 0, 4.0)
    x = torch.rand(2, *shape)
    y = ns.quantize(model, 3, moves="all")(x).argmax(1)
    found = ns.decide_flips(model, x, y, bits=3, moves="all")
    check(model, x, y, found, least(model, x, y, 3, 1, "all").detach(), bits=3, flips=1, moves="all")


def test_verdicts_by_hand():
    # 3 bits, W = [[3, 1], [-3, 0]] at (1, 1): margin 7; every flip takes at most 4, and any two of them 8
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 1.0], [-3.0, 0.0]])
    x, y = torch.ones(1, 2), torch.tensor([0])
    one, two = (ns.decide_flips(model, x, y, bits=3, flips=m) for m in (1, 2))
    assert one.status == ("verified",) and one.lower[0, 1].item() == 3.0
    assert two.status == ("falsified",) and two.upper.item() == -1.0 and len(two.flips[0]) == 2
    wrong = ns.decide_flips(model, x, 1 - y, bits=3)
    assert wrong.status == ("falsified",) and wrong.flips == ((),) and wrong.perturbation.x.equal(x.double())
    # 2 bits, W = [[1], [0]], margin 3.5.  1 = 01 -> 10 = -2 takes 3, with both bits; 01 -> 11 = -1 and 00 -> 01 = 1 take 2 and 1.
    # The top bit of 1 twice would take 4: no such set
    model = nn.Sequential(nn.Linear(1, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [0.0]]), torch.tensor([2.5, 0.0])
    for eps_x in (0.0, 1e-3):
        close = ns.decide_flips(model, torch.ones(1, 1), y, bits=2, flips=2, eps_x=eps_x)
        assert close.status == ("verified",) and 0.49 < close.lower[0, 1].item() <= 0.5


def test_time_that_is_spent_and_settings_that_cannot_be():
    model, shape = net("dense", 1, 0.5)
    x = torch.rand(1, *shape)
    y = ns.quantize(model, 4)(x).argmax(1)
    hurried = ns.decide_flips(model, x, y, bits=4, flips=3, eps_x=0.2, seconds=1e-9)
    assert hurried.status[0] != "verified" and bool((hurried.lower <= sampled(model, x, y, 4, 3, "weights", 50, 0.2)).all())
    for settings, said in (({"seconds": 0}, "seconds is 0"), ({"flips": 0}, "flips is 0"), ({"bits": 1}, "bits is 1")):
        with pytest.raises(ns.InvalidInput, match=said):
            ns.decide_flips(model, x, y, **settings)
