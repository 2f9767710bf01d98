"""alpha-CROWN: hidden ends with slopes of their own, layer after layer, in pieces where memory is small."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nonsingular.bounds.alpha import alpha_crown, raised_among, raised_bounds
from nonsingular.bounds.interval import Boxed, region
from nonsingular.bounds.linear import crown, hidden_bounds
from nonsingular.models.architectures import mlp
from nonsingular.network import memory
from nonsingular.network.calling import recording
from nonsingular.threat.ball import JointBall


def conv(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Wide enough for windows, deep enough for slopes before the last hidden layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, 1, 1), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(32, 3),
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 1, 8, 8).double()
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("eps_w", [0.0, 0.01])
def test_raised_boxes_hold_what_hidden_neurons_reach_and_are_never_wider(eps_w):
    model, x, y = conv(0)
    where = region(model, x, y, JointBall(0.05, eps_w, moves="all"))
    with recording():
        plain, raised = hidden_bounds(where), raised_bounds(where, 4)
    narrower = 0
    for a, b in zip(plain, raised, strict=True):
        assert (b.lo >= a.lo - 1e-12).all() and (b.hi <= a.hi + 1e-12).all()
        narrower += int((b.hi - b.lo < a.hi - a.lo - 1e-6).sum())
    assert narrower > 50
    generator = torch.Generator().manual_seed(0)
    at = 0
    for k, layer in enumerate(model):
        at = next(i for i in range(at + 1, len(plain)) if where.graph.nodes[i].shape == tuple(model[: k + 1](x).shape[1:]))
        if isinstance(layer, nn.Flatten):
            continue
        for _ in range(30):
            u = torch.rand(x.shape, generator=generator).double().round()
            moved = {
                n: torch.where(torch.rand(p.shape, generator=generator) < 0.5, p - eps_w, p + eps_w)
                for n, p in model[: k + 1].named_parameters()
            }
            z = functional_call(model[: k + 1], moved, (torch.lerp(where.x.lo, where.x.hi, u),))
            assert (z >= raised[at].lo - 1e-9).all() and (z <= raised[at].hi + 1e-9).all()


def test_small_memory_means_pieces_and_the_same_bounds(monkeypatch):
    model, x, y = conv(1)
    x, y = x[:1], y[:1]
    ball = JointBall(0.03, 0.01, moves="all")
    whole = alpha_crown(model, x, y, ball, steps=2, hidden=2)
    monkeypatch.setattr(memory, "BUDGET", 2**19)
    assert alpha_crown(model, x, y, ball, steps=2).sum() < whole.sum()  # no room for hidden slopes, unless they are asked for
    torch.testing.assert_close(alpha_crown(model, x, y, ball, steps=2, hidden=2), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("net", ["dense", "conv"])
def test_hidden_slopes_gain_and_nothing_is_below_crown(net):
    model, x, y = conv(2)
    if net == "dense":
        model = mlp((5,), 3, hidden=(8, 8, 6)).double().eval()
        x = torch.rand(2, 5).double()
        y = model(x).argmax(1)
    ball = JointBall(0.05, 0.01)
    low = [crown(model, x, y, ball), *(alpha_crown(model, x, y, ball, steps=6, hidden=hidden) for hidden in (0, 6))]
    for worse, better in pairwise(low):
        assert (better >= worse - 1e-6).all()
        assert better.sum() > worse.sum() + 1e-4
    assert (low[2] >= low[0]).all()
    assert torch.equal(alpha_crown(model, x, y, ball, steps=0), low[0])


def test_only_the_wanted_ends_are_raised_and_what_follows_from_them():
    model, x, y = conv(3)
    where = region(model, x, y, JointBall(0.1, 0.02, moves="all"))
    node = 3  # conv, relu, conv: the second one's output
    wanted = torch.zeros(len(x), *where.graph.nodes[node].shape, dtype=torch.bool)
    with torch.no_grad():
        plain = hidden_bounds(where)
    wanted[0, :2] = ((plain[node].lo < 0) & (plain[node].hi > 0))[0, :2]
    with recording():
        found, everything = raised_among(Boxed(where, plain), {node: wanted}, 4), raised_bounds(where, 4)
    for i, (old, new) in enumerate(zip(plain, found, strict=True)):
        assert (new.lo >= old.lo).all() and (new.hi <= old.hi).all()
        if i < node:
            assert torch.equal(new.lo, old.lo) and torch.equal(new.hi, old.hi)
    moved = (found[node].lo > plain[node].lo) | (found[node].hi < plain[node].hi)
    assert moved.any() and not moved[~wanted].any()
    torch.testing.assert_close(found[node].hi[wanted], everything[node].hi[wanted], rtol=0, atol=2e-3)
    assert (found[-1].hi[0] < plain[-1].hi[0]).all()  # by intervals
    assert torch.equal(found[-1].hi[1], plain[-1].hi[1])
